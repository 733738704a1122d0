# SPDX-License-Identifier: Apache-2.0
"""Files of an image, looked at from the host without believing the image.

A path is resolved inside the image's root, whatever its links say: openat2(2) with
RESOLVE_IN_ROOT. Mounts go to descriptors, not to paths: open_tree(2), move_mount(2),
mount_setattr(2), Linux 5.12 and later.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

# The same numbers on every architecture: include/uapi/asm-generic/unistd.h.
OPEN_TREE, MOVE_MOUNT, OPENAT2, MOUNT_SETATTR = 428, 429, 437, 442
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10  # include/uapi/linux/openat2.h
OPEN_TREE_CLONE = 1  # include/uapi/linux/mount.h, as all below
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000  # include/uapi/linux/fcntl.h
LIBRARY_MAX = 64 << 20  # bytes of a file that is read; a libc has 2 to 3 MB

_libc = ctypes.CDLL(None, use_errno=True)


def _call(number: int, *words: object) -> int:
    # Every word as wide as a register: syscall(2) takes longs.
    wide = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    done = int(_libc.syscall(ctypes.c_long(number), *wide))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return done


class Root:
    """The root directory of a container that is about to start."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Forget it."""
        os.close(self.fd)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor of *path* inside. Raises OSError."""
        how = struct.pack(
            "=QQQ", flags | os.O_CLOEXEC, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
        )
        name = ctypes.c_char_p(os.fsencode(path))
        return _call(OPENAT2, self.fd, name, ctypes.c_char_p(how), len(how))

    def read(self, path: str) -> bytes | None:
        """What a regular file inside holds; None if there is none. Raises OSError."""
        try:
            fd = self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return file.read(LIBRARY_MAX)

    def names(self, path: str) -> list[str]:
        """The names in a directory inside, none if there is none. Raises OSError."""
        try:
            fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def mount(self, source: str, path: str) -> None:
        """Bind *source* of the host over the file *path* inside, read-only; an empty file is
        made where none is. Raises OSError."""
        try:
            target = self.open(path, os.O_PATH)
        except FileNotFoundError:
            os.close(self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            target = self.open(path, os.O_PATH)
        try:
            name = ctypes.c_char_p(os.fsencode(source))
            tree = _call(OPEN_TREE, AT_FDCWD, name, OPEN_TREE_CLONE | os.O_CLOEXEC)
            try:
                empty = ctypes.c_char_p(b"")
                attributes = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
                raw = struct.pack("=QQQQ", attributes, 0, 0, 0)
                _call(
                    MOUNT_SETATTR, tree, empty, AT_EMPTY_PATH, ctypes.c_char_p(raw), len(raw)
                )  # fmt: skip
                flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
                _call(MOVE_MOUNT, tree, empty, target, empty, flags)
            finally:
                os.close(tree)
        finally:
            os.close(target)
