# SPDX-License-Identifier: Apache-2.0
"""The parts of the gate, in their order: cheap ones first."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = CHECKOUT / ".cache"
OUTPUT = CACHE / "test"
TOOLS = Path(sys.executable).parent

#: Directories with Python of ours, as far as they exist.
PYTHON_SOURCES = ("bench", "files", "plugins", "tests", "tools")
TYPED_SOURCES = (
    "files/router/slim_router",
    "files/fallback/slim_fallback",
    "files/bpf/slim_bpf",
    "files/qos/slim_qos",
    "files/cni/slim_cni",
    "tools/lab",
    "tools/guest",
    "tools/gate",
    "bench",
)

#: Of guests, as tools/guest names them.
KERNELS = ("6.1", "6.12")

Words = list[str]


@dataclass(frozen=True)
class Part:
    """One thing to check; it holds if all of its commands do."""

    name: str
    what: str
    #: Made when the part starts, because an earlier part may have made its inputs.
    commands: Callable[[bool], list[Words]]
    #: Seconds before the part counts as hung.
    limit: float
    #: Only with --long, or when named.
    long: bool = False
    #: Where pytest leaves its counts, if pytest runs.
    junit: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    directory: Path = CHECKOUT


def present(names: tuple[str, ...]) -> list[str]:
    """Those of the paths that exist."""
    return [name for name in names if (CHECKOUT / name).exists()]


def _tool(name: str, *words: str) -> Words:
    return [str(TOOLS / name), *words]


def _pytest(part: str, long: bool, *words: str) -> Words:
    chosen = [] if long else ["-m", "not long"]
    return _tool("pytest", "-q", "--color=no", f"--junit-xml={OUTPUT / part}.xml", *chosen, *words)


def _mypy(long: bool) -> list[Words]:
    # One run each: two directories may hold files of the same name.
    cache = f"--cache-dir={CACHE / 'mypy'}"
    return [_tool("mypy", cache, name) for name in present(TYPED_SOURCES)]


def _ansible_lint(long: bool) -> list[Words]:
    return [_tool("ansible-lint", "--offline", "--profile", "production", "--nocolor")]


def _c(long: bool) -> list[Words]:
    return [["make", "-C", "files/shim", "test"]]


def _fuzz(long: bool) -> list[Words]:
    runs = 20 if long else 1
    bounds = ["-o", f"timeout={300 * runs}"]
    return [["env", f"SLIM_FUZZ_RUNS={runs}", *_pytest("fuzz", long, "tests/fuzz", *bounds)]]


def _molecule(long: bool) -> list[Words]:
    return [_tool("molecule", "test", "--scenario-name", "default")]


def _guests(long: bool) -> list[Words]:
    router = "tests/unit/worker/guests/run.py"
    modules = CACHE / "guest" / "kmod"
    return [
        ["make", "-C", "files/kmod", "test", f"LONG={'1' if long else ''}"],
        ["make", "-C", "files/bpf", "check", "test"],
        *(
            [sys.executable, router, "kmod", kernel, str(modules / kernel / "slim_kmod.ko")]
            for kernel in KERNELS
        ),
        *([sys.executable, router, "bpf", kernel] for kernel in KERNELS),
        *(
            [sys.executable, router, "cost", kernel, str(modules / kernel / "slim_kmod.ko")]
            for kernel in (KERNELS if long else KERNELS[-1:])
        ),
        # (with --long the integration tests run all of it)
        *([] if long else [_escapes("kmod", KERNELS[-1]), _escapes("bpf", KERNELS[0])]),
    ]


def _escapes(keeper: str, kernel: str) -> Words:
    """The escape suite in brief: the socket as connect() gave it, in the hands of root."""
    words = ["--keeper", keeper, "--kernel", kernel, "--variant", "direct", "--identity", "root"]
    return [sys.executable, "-m", "tests.escape.guests", *words]


def parts() -> list[Part]:
    """All parts."""
    ansible = {
        "ANSIBLE_COLLECTIONS_PATH": str(CACHE / "collections"),
        "ANSIBLE_HOME": str(CACHE / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        "NO_COLOR": "1",
        # ansible-lint and molecule look for each other and for ansible on the PATH.
        "PATH": f"{TOOLS}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    lab = {
        "SLIMLAB_NAME": os.environ.get("SLIMLAB_NAME", "test"),
        "PATH": ansible["PATH"],
        # Every program that a test wants is installed by now: none is skipped for one.
        "SLIM_GATE": "1",
    }
    return [
        Part(
            "ruff",
            "Python style",
            lambda long: [_tool("ruff", "check", "--no-cache", *present(PYTHON_SOURCES))],
            120,
        ),
        Part("mypy", "Python types", _mypy, 300),
        Part("yamllint", "YAML style", lambda long: [_tool("yamllint", "--strict", ".")], 120),
        Part(
            "ansible-lint",
            "roles and playbooks, profile production",
            _ansible_lint,
            600,
            environment=ansible,
        ),
        Part(
            "unit",
            "unit tests",
            # A file's tests share what they set up; those of different files share nothing.
            lambda long: [_pytest("unit", long, "-n", "auto", "--dist", "loadfile", "tests/unit")],
            900,
            junit=OUTPUT / "unit.xml",
            environment=ansible,
        ),
        Part(
            "fuzz",
            "each decoder fuzzed for a bounded time",
            _fuzz,
            3600,
            junit=OUTPUT / "fuzz.xml",
            environment=ansible,
        ),
        Part("c", "shim and its tests under sanitizers", _c, 900),
        Part(
            "integration",
            "integration and conformance tests in the lab",
            # Tests wait more than they compute: two labs at a time.
            lambda long: [
                _pytest("integration", long, "-n", "2", "--dist", "loadfile", "tests/integration")
            ],
            2400,
            junit=OUTPUT / "integration.xml",
            environment=lab,
        ),
        Part(
            "guests",
            "kernel module and BPF programs in guests",
            _guests,
            5400,
            environment={"PATH": ansible["PATH"]},
        ),
        Part(
            "sanity",
            "ansible-test sanity",
            lambda long: [[sys.executable, "-m", "gate.sanity"]],
            900,
            environment={**ansible, "PYTHONPATH": str(CHECKOUT / "tools")},
        ),
        Part(
            "molecule",
            "molecule scenario default",
            _molecule,
            600,
            environment={**ansible, "SLIMLAB_NAME": "molecule"},
        ),
        *(
            Part(
                f"secure-{mode}",
                f"molecule scenario secure, mode {mode}: virtual machines, reboots, another kernel",
                lambda long: [_tool("molecule", "test", "--scenario-name", "secure")],
                3 * 3600,
                long=True,
                environment={**ansible, "SLIM_SECURE": mode},
            )
            for mode in ("kmod", "bpf")
        ),
    ]
