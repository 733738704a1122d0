# SPDX-License-Identifier: Apache-2.0
"""Packs this machine's Python, libbpf, files/bpf and the router into a tar for a guest without packages.

Only the modules that the programs import go in: about 20 MB, so that an
emulated guest unpacks it in a second.
"""

import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BPF = HERE.parent
ROUTER = BPF.parent / "router"
INTERPRETER = Path("/usr/bin/python3")
# What a program may import besides slim_bpf's own imports.
MODULES = (
    "slim_bpf.cli", "slim_router.secure_bpf",
    "encodings.ascii", "encodings.idna", "array", "mmap", "select", "signal", "tempfile", "threading",
    "time", "unittest", "traceback", "fcntl", "termios", "random", "resource", "subprocess",
)  # fmt: skip

_LIST = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for module in list(sys.modules.values()):
    for path in (getattr(module, "__file__", None), getattr(module, "__cached__", None)):
        if path:
            print(path)
"""


def _imported() -> set[Path]:
    answer = subprocess.run(
        [
            INTERPRETER,
            "-I",
            "-c",
            f"import sys; sys.path[:0] = [{str(BPF)!r}, {str(ROUTER)!r}]" + _LIST,
            *MODULES,
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    paths = {Path(line) for line in answer.stdout.split()}
    return {path for path in paths if path.is_file() and not {BPF, ROUTER} & {*path.parents}}


def libraries(paths: set[Path]) -> set[Path]:
    """What the dynamic loader wants for these, the loader itself included."""
    answer = subprocess.run(
        ["ldd", *map(str, sorted(paths))], check=True, capture_output=True, text=True
    )
    words = (word for line in answer.stdout.splitlines() for word in line.split())
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def pack(target: Path) -> Path:
    """Write the tar to target."""
    files = _imported()
    search = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64")
    libbpf = next(
        Path(place) / name
        for name in ("libbpf.so.1", "libbpf.so.0")
        for place in search
        if (Path(place) / name).exists()
    )
    binaries = {INTERPRETER, libbpf} | {path for path in files if path.suffix == ".so"}
    files |= binaries | libraries(binaries)
    with tarfile.open(target, "w") as tar:
        for path in sorted(files):
            tar.add(path.resolve(), arcname=str(path).lstrip("/"), recursive=False)
        for path in sorted((BPF / "slim_bpf").glob("*.py")):
            tar.add(path, arcname=f"bpf/slim_bpf/{path.name}")
        for path in sorted((ROUTER / "slim_router").glob("*.py")):
            tar.add(path, arcname=f"router/slim_router/{path.name}")
        for name in ("slim-bpf", "slim.bpf.o"):
            tar.add(BPF / name, arcname=f"bpf/{name}")
        for path in sorted(HERE.glob("*.py")):
            tar.add(path, arcname=f"bpf/tests/{path.name}")
    return target


if __name__ == "__main__":
    pack(Path(sys.argv[1]))
