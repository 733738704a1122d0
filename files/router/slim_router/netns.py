# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: from a path to the kernel's cookie for it.

The supervisor's main thread never changes its namespace. setns(2) works on one
thread, so a thread is made for the question and ends with it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SIOCGIFCONF = 0x8912  # include/uapi/linux/sockios.h
IFREQ_SIZE = 40  # sizeof(struct ifreq) on 64 bits: netdevice(7)
INTERFACES_MAX = 256
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14
CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h


class NetnsError(OSError):
    """The path does not lead to a network namespace that we can enter."""


@dataclass(frozen=True, slots=True)
class Identity:
    """(device, inode) of a namespace file: stable while somebody holds it open."""

    device: int
    inode: int


def cookie_of(sock: socket.socket) -> int:
    """The cookie of the network namespace that *sock* was made in. Raises OSError."""
    raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    return int(struct.unpack("=Q", raw)[0])


def own_cookie() -> int:
    """The cookie of this process's namespace. Raises OSError before Linux 5.14."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        return cookie_of(sock)


def identify(path: str) -> Identity | None:
    """What lies at *path* now; None if nothing or no namespace file.

    `ip netns add` makes a plain file first and mounts the namespace over it:
    a file that is not on nsfs is not there yet.
    """
    try:
        found = Path(path).stat()
        nsfs = Path("/proc/self/ns/net").stat().st_dev
    except OSError:
        return None
    if found.st_dev != nsfs:
        return None
    return Identity(found.st_dev, found.st_ino)


def open_path(path: str) -> tuple[int, Identity]:
    """A descriptor of the namespace at *path*, close-on-exec. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if found.st_dev != Path("/proc/self/ns/net").stat().st_dev:
            raise NetnsError(f"{path}: not a namespace file")
    except BaseException:
        os.close(fd)
        raise
    return fd, Identity(found.st_dev, found.st_ino)


def cookie_of_fd(fd: int) -> int:
    """The cookie of the network namespace behind *fd*. Raises OSError."""
    return inside(fd, own_cookie)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """*fd*, closed at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def addresses() -> list[str]:
    """The IPv4 addresses of this thread's namespace, of interfaces that are up. Raises OSError."""
    room = array.array("B", bytes(INTERFACES_MAX * IFREQ_SIZE))
    where, size = room.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ifconf = bytearray(struct.pack("iL", size, where))
        fcntl.ioctl(sock, SIOCGIFCONF, ifconf)
    used = struct.unpack_from("i", ifconf)[0]
    # struct ifreq: the name (16 bytes), then a sockaddr_in, whose address is at 4.
    return [
        socket.inet_ntoa(room[at + 20 : at + 24].tobytes())
        for at in range(0, used - IFREQ_SIZE + 1, IFREQ_SIZE)
    ]


def inside(fd: int, call: Callable[[], T]) -> T:
    """What *call* returns in the network namespace behind *fd*. Raises OSError.

    Blocks for the life of a thread (well under a millisecond).
    """
    outcome: list[T | OSError] = []

    def visit() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)  # os.setns() is 3.12 and later
            if libc.setns(fd, CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise NetnsError(code, f"setns: {os.strerror(code)}")
            outcome.append(call())
        except OSError as error:
            outcome.append(error)

    thread = threading.Thread(target=visit, name="slim-netns", daemon=True)
    thread.start()
    thread.join(5)
    if not outcome:
        raise NetnsError("no answer from the namespace within 5 s")
    found = outcome[0]
    if isinstance(found, OSError):
        raise found
    return found
