# SPDX-License-Identifier: Apache-2.0
"""Run the escape suite in guests with Debian's kernels (tools/guest), without a lab.

    PYTHONPATH=tools python3 -m tests.escape.guests
        [--kernel 6.1|6.12] [--keeper open|kmod|bpf] [--variant V] [--identity I]
        [--out DIRECTORY]

*open* proves the suite on that kernel; *kmod* and *bpf* load what guards the sockets and
must let nothing out. What a guest printed is left in DIRECTORY (default .cache/escape);
tests/escape/table.py measure takes it. Needs QEMU; kmod needs a C compiler, bpf libbpf.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lab import names

HERE = Path(__file__).resolve().parent
ROOT = names.CHECKOUT
OUT = ROOT / ".cache" / "escape"
KERNELS = ("6.1", "6.12")
KEEPERS = ("open", "kmod", "bpf")


def _guest(*words: str | os.PathLike[str]) -> list[str]:
    return [sys.executable, "-m", "guest", *(os.fspath(word) for word in words)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "tools")}


def _program(place: Path) -> Path:
    program = place / "escape-static"
    command = ["make", "-s", "-C", str(HERE), f"BUILD={place}", str(program)]
    subprocess.run(command, check=True, timeout=300)
    return program


def _module(place: Path, kernel: str) -> Path:
    """Build the module for a kernel out of its tree."""
    asked = subprocess.run(
        _guest("--kernel", kernel, "--headers"),
        env=_environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    )
    tree = place / f"kmod-{kernel}"
    tree.mkdir(exist_ok=True)
    sources = ROOT / "files" / "kmod"
    for path in [*sources.glob("*.c"), *sources.glob("*.h"), sources / "Kbuild"]:
        shutil.copy2(path, tree)
    # Without pahole there is no BTF; the module needs none.
    words = ["make", "-s", "-C", asked.stdout.strip(), f"M={tree}"]
    words += ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    subprocess.run(words, check=True, timeout=600)
    module = tree / "slim_kmod.ko"
    subprocess.run(["strip", "--strip-debug", module], check=True, timeout=60)
    return module


def run(
    kernel: str,
    keeper: str,
    *,
    variants: str = "all",
    identities: str = "user,root,userns",
    out: Path = OUT,
    deadline: int = 900,
) -> tuple[int, Path]:
    """Boot one guest and run the suite; its exit status and the file of what it printed."""
    out.mkdir(parents=True, exist_ok=True)
    words: list[str | os.PathLike[str]] = [
        "--kernel",
        kernel,
        "--smp",
        "2",
        "--load",
        "dummy",
        "--load",
        "kcm",
    ]
    words += ["--deadline", str(deadline), "--init", HERE / "guest.sh"]
    for argument in (keeper, variants, identities):
        words += ["--argument", argument]
    files = [_program(out)]
    if keeper == "kmod":
        files.append(_module(out, kernel))
    elif keeper == "bpf":
        # Python and libbpf for a guest without packages, as files/bpf/tests has them.
        packing = f"import pack, pathlib; pack.pack(pathlib.Path({str(out / 'python.tar')!r}))"
        tests = {**os.environ, "PYTHONPATH": str(ROOT / "files" / "bpf" / "tests")}
        subprocess.run([sys.executable, "-c", packing], env=tests, check=True, timeout=120)
        files.append(out / "python.tar")
        words += ["--mem", "768", "--load", "tcp_diag"]
    printed = out / f"{kernel}-{keeper}.log"
    with printed.open("w") as log:
        done = subprocess.run(
            _guest(*words, *files),
            env=_environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=deadline + 120,
        )
    return done.returncode, printed


def main() -> int:
    """Entry point; 1 if any guest let something out, or broke."""
    parser = argparse.ArgumentParser(
        prog="guests", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--kernel", action="append", choices=KERNELS)
    parser.add_argument("--keeper", action="append", choices=KEEPERS)
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--identity", action="append", default=[])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    failed = False
    for kernel in options.kernel or KERNELS:
        for keeper in options.keeper or KEEPERS:
            status, printed = run(
                kernel,
                keeper,
                variants=",".join(options.variant) or "all",
                identities=",".join(options.identity) or "user,root,userns",
                out=options.out,
            )
            lines = printed.read_text(errors="replace").splitlines()
            print(f"== Linux {kernel}, {keeper}: status {status} ({printed})")
            for line in lines:
                if line.startswith("escape:") or (keeper != "open" and " | " in line):
                    print(line.rstrip())
            failed = failed or status != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
