# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a Unix socket, and may secure mode serve it?

A process in the initial user namespace that holds (or can get: the bounding set)
NET_ADMIN, NET_RAW or SYS_ADMIN is above the rule that a tag makes. It is refused.
This tells of misconfigured containers, process by process; what a container was
started with is the runtime's affair, and a process that has it can hide it.

The process is the one that made the socket (SO_PEERCRED), held by a pidfd so that
its number cannot become another's while we look.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from dataclasses import dataclass

SO_PEERPIDFD = 77  # include/uapi/asm-generic/socket.h, since 6.5
INITIAL_USER_NS = 0xEFFFFFFD  # PROC_USER_INIT_INO, include/linux/proc_ns.h
CAPABILITIES = {12: "NET_ADMIN", 13: "NET_RAW", 21: "SYS_ADMIN"}
"""include/uapi/linux/capability.h."""
STATUS_MAX = 8192
_PEER = struct.Struct("=iII")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller is not served: *who*, the cause, what to do. All of it can be printed."""

    who: str
    cause: str
    step: str
    pid: int = 0


class Caller:
    """The process that made the other end. A context manager: it owns two descriptors."""

    def __init__(self, sock: socket.socket) -> None:
        """Raises OSError when it cannot be told for certain, ProcessLookupError when it ended."""
        seen = time.clock_gettime(time.CLOCK_BOOTTIME)
        pid, _uid, _gid = _PEER.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )
        if pid <= 0:
            raise ProcessLookupError("a process of another pid namespace tree")
        self.pid: int = pid
        self._directory = -1
        self._pidfd, certain = self._hold(sock)
        try:
            self._directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # The number was the process's when the directory was opened if it lives still.
            self._check_alive()
            if not certain and self._started() > seen:
                raise ProcessLookupError("its number is another process's now")
        except BaseException:
            self.close()
            raise

    def _hold(self, sock: socket.socket) -> tuple[int, bool]:
        """(pidfd, it is certainly that of the process that made the socket)."""
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
            return int.from_bytes(raw, "little"), True
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return os.pidfd_open(self.pid), False

    def _check_alive(self) -> None:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if poll.poll(0):
            raise ProcessLookupError("it has ended")

    def _read(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return os.read(fd, STATUS_MAX)
        finally:
            os.close(fd)

    def _started(self) -> float:
        """Seconds since boot, rounded down to a clock tick (proc(5), stat, field 22)."""
        fields = self._read("stat").rpartition(b")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")

    def namespace(self, kind: str) -> int:
        """The inode of its namespace of *kind* (net, user). Raises OSError."""
        return os.stat(f"ns/{kind}", dir_fd=self._directory).st_ino

    def status(self) -> dict[bytes, bytes]:
        """/proc/PID/status by name. Raises OSError."""
        lines = (line.partition(b":") for line in self._read("status").split(b"\n"))
        return {name: value.strip() for name, _unused, value in lines}

    def take_pidfd(self) -> int:
        """The pidfd, which is the caller's from now on."""
        fd, self._pidfd = self._pidfd, -1
        return fd

    def close(self) -> None:
        """Let go of the process."""
        for fd in (self._pidfd, self._directory):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._directory = -1

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_unused: object) -> None:
        self.close()


def refusal(caller: Caller, netns: int) -> Refusal | None:
    """Why *caller* must not be served for the endpoint whose namespace is inode *netns*."""
    status = caller.status()
    name = status.get(b"Name", b"?").decode("ascii", "replace")
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
    who = f"{printable} (pid {caller.pid})"
    if caller.namespace("net") != netns:
        return Refusal(
            who, "is not in the endpoint's network namespace", "run it there", caller.pid
        )
    ours = os.stat("/proc/self/ns/user").st_ino
    if caller.namespace("user") not in (ours, INITIAL_USER_NS):
        return None  # what it holds counts inside of its own user namespace only
    held = int(status[b"CapPrm"], 16) | int(status[b"CapBnd"], 16)
    names = [name for bit, name in CAPABILITIES.items() if held >> bit & 1]
    if not names:
        return None
    drop = " ".join(f"--cap-drop {name}" for name in names)
    return Refusal(who, f"holds {', '.join(names)}", f"drop it ({drop})", caller.pid)


def judge(sock: socket.socket, netns: int) -> tuple[Refusal | None, int]:
    """(why not, or None; a pidfd of whoever is refused, else -1). Never raises OSError."""
    try:
        with Caller(sock) as caller:
            found = refusal(caller, netns)
            return found, caller.take_pidfd() if found is not None else -1
    except (OSError, KeyError, ValueError, IndexError) as error:
        return Refusal("a process", f"cannot be looked at ({error})", "see docs/security.md"), -1
