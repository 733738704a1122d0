# SPDX-License-Identifier: Apache-2.0
"""The router's two backends of secure mode against the real module and the real programs.

    python3 tests/unit/worker/guests/run.py kmod 6.1 MODULE.ko
    python3 tests/unit/worker/guests/run.py bpf 6.12

Boots a guest (tools/guest) and runs attempts.py in it; this machine's own kernel takes
neither. MODULE.ko is what files/kmod/tests/run.sh builds. Ends with the guest's status.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
ROUTER = ROOT / "files" / "router"
sys.path.insert(0, str(ROOT / "files" / "bpf" / "tests"))

import pack  # noqa: E402 - found by the path above

LIST = """
import sys
sys.path.insert(0, sys.argv[1])
import slim_router.worker, slim_router.secure_bpf
print(" ".join(sys.modules))
"""
NOT_THERE = ("slim_router", "__main__", "site", "usercustomize", "_distutils", "certifi")


def main(mode: str, kernel: str, *modules: str) -> int:
    """Boot and run; the guest's exit status."""
    done = subprocess.run(
        [pack.INTERPRETER, "-I", "-c", LIST, ROUTER], capture_output=True, text=True, check=True
    )
    wanted = [name for name in done.stdout.split() if not name.startswith(NOT_THERE)]
    pack.MODULES += (*wanted, "encodings.ascii", "encodings.latin_1")
    with tempfile.TemporaryDirectory(prefix="slim-guest-") as scratch:
        tar = pack.pack(Path(scratch) / "python.tar")
        files = [tar, HERE / "attempts.py", ROUTER / "slim_router", *map(Path, modules)]
        return subprocess.run(
            [sys.executable, "-m", "guest", "--kernel", kernel, "--mem", "768",
             "--deadline", "500", "--load=tcp_diag", "--init", HERE / "init.sh",
             "--argument", mode, *files],
            env={**os.environ, "PYTHONPATH": str(ROOT / "tools")}, check=False,
        ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
