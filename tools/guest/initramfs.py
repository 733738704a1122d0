# SPDX-License-Identifier: Apache-2.0
"""The guest's file system: a cpio archive in the "newc" format.

Format: Documentation/driver-api/early-userspace/buffer-format.rst. Made here,
not by cpio(1), so that device nodes and ownership need no root.
"""

import io
import lzma
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from .errors import GuestError
from .kernels import Kernel

# Said on the console when the script has ended; machine.py waits for it.
MARKER = "guest: exit status "

INIT = f"""#!/bin/sh
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname guest
for module in /modules/*.ko; do
    [ -e "$module" ] && insmod "$module"
done
cd /test
"./$GUEST_SCRIPT" $GUEST_ARGUMENTS </dev/null
echo "{MARKER}$?"
poweroff -f
"""


class Archive:
    """Collects entries; `packed()` is what the kernel unpacks."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._inode = 0
        self._made: set[str] = set()

    def _entry(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._inode += 1
        fields = (
            self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name.encode()) + 1, 0,
        )  # fmt: skip
        head = b"070701" + b"".join(b"%08x" % one for one in fields) + name.encode() + b"\0"
        self._out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))

    def directory(self, name: str) -> None:
        parts = name.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            if path not in self._made:
                self._made.add(path)
                self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        name = name.strip("/")
        if "/" in name:
            self.directory(name.rpartition("/")[0])
        self._entry(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        self._entry(name.strip("/"), stat.S_IFLNK | 0o777, target.encode())

    def character(self, name: str, major: int, minor: int) -> None:
        self._entry(name.strip("/"), stat.S_IFCHR | 0o600, b"", (major, minor))

    def packed(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        return self._out.getvalue()


def _busybox() -> Path:
    path = shutil.which("busybox")
    if path is None or b"/ld-linux" in Path(path).read_bytes():
        raise GuestError("busybox: none, or not a static one; apt-get install busybox-static")
    return Path(path)


def _modules(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """The modules and what they need, in the order of loading."""
    table: dict[str, tuple[str, list[str]]] = {}
    listing = kernel.modules / "modules.dep"
    if listing.exists():
        for line in listing.read_text().splitlines():
            path, _unused, needs = line.partition(":")
            table[Path(path).name.split(".ko")[0].replace("-", "_")] = (path, needs.split())
    order: list[Path] = []
    for name in names:
        entry = table.get(name.replace("-", "_"))
        if entry is None:
            raise GuestError(
                f"module {name}: kernel {kernel.release} has none; is kmod (depmod) installed?"
            )
        for path in (*reversed(entry[1]), entry[0]):
            full = kernel.modules / path
            if full not in order:
                order.append(full)
    return order


def _add(archive: Archive, path: Path, name: str) -> None:
    if path.is_dir():
        archive.directory(name)
        for child in sorted(path.iterdir()):
            _add(archive, child, f"{name}/{child.name}")
    elif path.is_file():
        archive.file(name, path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)
    else:
        raise GuestError(f"{path}: neither a file nor a directory")


def build(
    kernel: Kernel,
    script: Path,
    arguments: list[str],
    files: Iterable[Path],
    modules: Iterable[str],
) -> bytes:
    """The archive: busybox, an init, the script and the files below /test."""
    archive = Archive()
    for name in ("bin", "dev", "etc", "modules", "proc", "root", "run", "sys", "test", "tmp"):
        archive.directory(name)
    archive.character("dev/console", 5, 1)
    archive.character("dev/null", 1, 3)
    archive.file("bin/busybox", _busybox().read_bytes(), 0o755)
    archive.link("bin/sh", "busybox")
    archive.file("etc/passwd", b"root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n")
    start = (
        "#!/bin/sh\n/bin/busybox --install -s /bin\n"
        f"export GUEST_SCRIPT='{script.name}' GUEST_ARGUMENTS='{' '.join(arguments)}'\nexec /bin/sh /init.sh\n"
    )
    archive.file("init", start.encode(), 0o755)
    archive.file("init.sh", INIT.encode(), 0o755)
    for count, module in enumerate(_modules(kernel, modules)):
        data = module.read_bytes()
        if module.suffix == ".xz":
            data = lzma.decompress(data)
        archive.file(f"modules/{count:02}-{module.name.removesuffix('.xz')}", data)
    archive.file(f"test/{script.name}", script.read_bytes(), 0o755)
    for path in files:
        _add(archive, path, f"test/{path.name}")
    return archive.packed()
