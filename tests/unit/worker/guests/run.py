# SPDX-License-Identifier: Apache-2.0
"""The router's two backends of secure mode against the real module and the real programs.

    python3 tests/unit/worker/guests/run.py kmod 6.1 MODULE.ko
    python3 tests/unit/worker/guests/run.py bpf 6.12
    python3 tests/unit/worker/guests/run.py cost 6.12 MODULE.ko

Boots a guest (tools/guest) and runs attempts.py in it, or, for the cost, warm.py with
instructions counted; this machine's own kernel takes neither backend. MODULE.ko is what
files/kmod/tests/run.sh builds. Ends with the guest's status; `cost` ends with 1 if a
warm connect costs more than BAR times what it costs without secure mode.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
ROUTER = ROOT / "files" / "router"
sys.path.insert(0, str(ROOT / "files" / "bpf" / "tests"))

import pack  # noqa: E402 - found by the path above

#: Instructions of a warm connect with a backend, by those without.
BAR = 1.10
COSTS = {
    "byte_min_us": "with the first byte, at best",
    "byte_p50_us": "with the first byte, median",
}
"""What is judged: connect and the server's first byte, so the instructions of both ends. Not
connect() alone: how much of the server's side runs before it returns is the scheduler's
choice, so that it has several values."""
SHOWN = {
    "connect_min_us": "connect() alone, at best",
    "connect_p50_us": "connect() alone, median",
}
"""What is printed beside it."""
LIST = """
import sys
sys.path.insert(0, sys.argv[1])
import slim_router.worker, slim_router.secure_bpf
if sys.argv[2] == "cost":
    import slim_router.cli, slim_router.supervisor, slim_router.zygote
    import concurrent.futures.thread, multiprocessing  # imported late
print(" ".join(sys.modules))
"""
NOT_THERE = ("slim_router", "__main__", "site", "usercustomize", "_distutils", "certifi")
PROGRAMS = ("ip", "setpriv", "env")
AUTHORITY = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 \
    -subj /CN=ca -keyout ca.key -out ca.pem
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=node1 \
    -addext subjectAltName=DNS:node1 -keyout host.key -out host.csr
openssl x509 -req -in host.csr -CA ca.pem -CAkey ca.key -days 3650 -copy_extensions copy \
    -out host.pem
"""


def _python(scratch: Path, purpose: str) -> Path:
    """A tar with the interpreter, what the router imports, and the router."""
    done = subprocess.run(
        [pack.INTERPRETER, "-I", "-c", LIST, ROUTER, purpose],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    wanted = [name for name in done.stdout.split() if not name.startswith(NOT_THERE)]
    pack.MODULES += (*wanted, "encodings.ascii", "encodings.latin_1")
    return pack.pack(scratch / "python.tar")


def _boot(kernel: str, script: str, words: list[str], options: list[str], files: list[Path]) -> str:
    """What the guest prints; ends this program if the guest's status is not 0."""
    arguments = [word for each in words for word in ("--argument", each)]
    done = subprocess.run(
        [sys.executable, "-m", "guest", "--kernel", kernel, "--mem", "768", "--load=tcp_diag",
         *options, "--init", HERE / script, *arguments, *files],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def _programs(scratch: Path) -> Path:
    """A tar with programs of this machine that the guest's busybox has not, or less of."""
    found = {
        Path(shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") or "") for name in PROGRAMS
    }
    target = scratch / "programs.tar"
    with tarfile.open(target, "w") as tar:
        for path in sorted(found | pack.libraries(found)):
            tar.add(path.resolve(), arcname=str(path).lstrip("/"))
    return target


def cost(kernel: str, module: Path, scratch: Path) -> int:
    """Warm connects without secure mode and with each backend, in one guest."""
    subprocess.run(["sh", "-e", "-c", AUTHORITY], cwd=scratch, check=True, capture_output=True)
    subprocess.run(["make", "-s", "-C", ROOT / "files" / "shim"], check=True)
    setup = scratch / "setup"
    source = ROOT / "bench" / "programs" / "setup.c"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", setup, source, "-lm"], check=True)
    files = [
        *(_python(scratch, "cost"), _programs(scratch), HERE / "warm.py", setup, module),
        *(scratch / name for name in ("ca.pem", "host.pem", "host.key")),
        ROOT / "files" / "shim" / "build" / "libslim.so",
    ]
    options = ["--icount", "--deadline", "1500", "--load=bridge", "--load=veth"]
    said = _boot(kernel, "warm.sh", [], options, files)
    rows = [json.loads(line[5:]) for line in said.splitlines() if line.startswith("warm {")]
    took = {
        (mode, name): statistics.median(row[name] for row in rows if row["mode"] == mode)
        for mode in ("none", "kmod", "bpf")
        for name in {**COSTS, **SHOWN}
    }
    failed = 0
    for mode in ("kmod", "bpf"):
        for name, title in {**COSTS, **SHOWN}.items():
            ratio = took[mode, name] / took["none", name]
            note = "" if name in SHOWN else f" (bar {BAR})"
            print(f"cost   warm connect, {title}, {mode} by none: {ratio:.3f}{note}")
            failed |= name in COSTS and ratio > BAR
    return failed


def main(mode: str, kernel: str, *modules: str) -> int:
    """Boot and run; 0 if all is well."""
    with tempfile.TemporaryDirectory(prefix="slim-guest-") as name:
        scratch = Path(name)
        if mode == "cost":
            return cost(kernel, Path(modules[0]), scratch)
        files = [_python(scratch, mode), HERE / "attempts.py", ROUTER / "slim_router"]
        _boot(kernel, "init.sh", [mode], ["--deadline", "500"], [*files, *map(Path, modules)])
        return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
