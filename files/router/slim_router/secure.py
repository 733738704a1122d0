# SPDX-License-Identifier: Apache-2.0
"""Secure mode: the kernel's rule on sockets that a container holds.

A host socket is *tagged* before it leaves the worker. Whoever is not in the
socket's own network namespace may then read, write and set a few options on it,
and nothing else, for as long as it lives. Two backends enforce that, the kernel
module (``kmod``, here) and the BPF twin (``bpf``, secure_bpf.py); mode ``none``
has no backend at all, so that it costs nothing.

The worker opens its backend itself, by its path: an open control file of a module
that was replaced answers EIO for ever, so a descriptor that the supervisor passed
could not follow it. The supervisor opens one of its own, to know whether endpoints
may be served. Neither may ever serve without: what fails here ends on the overlay.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from .sockets import cookie_of

KMOD_DIRECTORY = "/proc/slim_kmod"

RECORD = struct.Struct("<HBBiQQQ")
"""One record of the module's control file (docs/protocol.md, "Control files of
SlimKernModule")."""
RECORD_MAGIC, RECORD_VERSION = 0x4B53, 1
OP_TAG, OP_REVOKE = 1, 2
BATCH = 1024  # records that one write takes
GONE = (errno.EIO, errno.ENODEV, errno.EBADF)  # of a control file whose module is gone


class SecureError(OSError):
    """The backend cannot be used; the text names the thing, the cause, the next step."""

    def __str__(self) -> str:
        return str(self.args[-1])


@dataclass(frozen=True, slots=True)
class Revoked:
    """What became of a revocation."""

    revoked: int
    """Sockets that are revoked now; those that were gone already count."""
    leftovers: list[tuple[int, int]] = field(default_factory=list)
    """(cookie, pid) where somebody still holds a descriptor, which is dead all the same."""


class Backend(Protocol):
    """What enforces tags. No method may be called before ``open``."""

    mode: str

    def open(self) -> None:
        """Get hold of it and see that it works; may be called again. Raises SecureError."""

    def identity(self) -> str:
        """Changes when another module or map has taken its place. Raises SecureError."""

    def tag(self, fd: int, cookie: int) -> None:
        """Tag our TCP socket *fd*, whose SO_COOKIE is *cookie*. One system call, and none
        that waits. A live tag stays; a revoked one is an error. Raises OSError."""

    def revoke(self, cookies: Iterable[int]) -> Revoked:
        """Take these sockets away from everybody who holds them. Raises OSError."""

    def close(self) -> None:
        """Let go of it; tags stay."""


class Kmod:
    """SlimKernModule's control file."""

    mode = "kmod"

    def __init__(self, directory: str = "") -> None:
        self.directory = directory or KMOD_DIRECTORY
        self._fd = -1
        self._record = bytearray(RECORD.size)

    def _failed(self, what: str, error: OSError) -> SecureError:
        path = f"{self.directory}/{what}"
        if error.errno == errno.ENOENT:
            cause, step = "not there", "load slim_kmod (the kernel's log says why it did not)"
        elif error.errno in (errno.EPERM, errno.EACCES):
            cause = "not permitted without CAP_NET_ADMIN in the initial user and pid namespaces"
            step = "run the router on the host itself"
        else:
            cause, step = error.strerror or str(error), "see the kernel's log for slim_kmod"
        return SecureError(error.errno, f"secure mode kmod: {path}: {cause}; {step}")

    def identity(self) -> str:
        """The line of the file ``version``: format, version, hooks, build, time of load.

        MODULE-VERSION alone would be equal across releases; ``srcversion`` and ``loaded_ns``
        (docs/protocol.md) make each load of each build another line."""
        try:
            with open(f"{self.directory}/version", encoding="ascii") as file:
                text = file.readline(4096).strip()
        except OSError as error:
            raise self._failed("version", error) from error
        number = text.partition(" ")[0]
        if number != str(RECORD_VERSION):
            raise SecureError(
                errno.EPROTO,
                f"secure mode kmod: {self.directory}/version: control format {number or '(none)'},"
                f" this router speaks {RECORD_VERSION}; deploy module and router of one version",
            )
        return text

    def open(self) -> None:
        self.identity()
        try:
            fd = os.open(f"{self.directory}/control", os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._failed("control", error) from error
        self.close()
        self._fd = fd

    def tag(self, fd: int, cookie: int) -> None:
        RECORD.pack_into(self._record, 0, RECORD_MAGIC, RECORD_VERSION, OP_TAG, fd, cookie, 0, 0)
        try:
            done = os.write(self._fd, self._record)
        except OSError as error:
            if error.errno not in GONE:
                raise
            self.open()  # another module may have taken its place
            done = os.write(self._fd, self._record)
        if done != RECORD.size:
            raise OSError(errno.EIO, "the control file took no whole record")

    def revoke(self, cookies: Iterable[int]) -> Revoked:
        wanted = list(dict.fromkeys(cookies))
        for start in range(0, len(wanted), BATCH):
            records = b"".join(
                RECORD.pack(RECORD_MAGIC, RECORD_VERSION, OP_REVOKE, -1, cookie, 0, 0)
                for cookie in wanted[start : start + BATCH]
            )
            while records:
                try:
                    done = os.write(self._fd, records)
                except OSError as error:
                    if error.errno != errno.ENOENT:  # none of them lives any more
                        raise
                    done = len(records)
                records = records[max(done, RECORD.size) :]
        return Revoked(len(wanted), self._held(set(wanted)))

    def _held(self, cookies: set[int]) -> list[tuple[int, int]]:
        """Which of *cookies* somebody still has a descriptor of."""
        found: list[tuple[int, int]] = []
        with open(f"{self.directory}/tags", encoding="ascii") as file:
            next(file, "")  # the head
            for line in file:
                cookie, _state, _age, holder = (*line.split(), "", "", "", "")[:4]
                if cookie.isdigit() and int(cookie) in cookies and holder not in ("", "0"):
                    found.append((int(cookie), int(holder)))
        return found

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def make(mode: str) -> Backend | None:
    """The backend of *mode*, not open yet; none for ``none``. Raises SecureError."""
    if mode == "none":
        return None
    if mode == "kmod":
        return Kmod()
    if mode == "bpf":
        from .secure_bpf import Bpf  # costs memory that the others need not pay

        return Bpf()
    raise SecureError(errno.EINVAL, f"secure mode {mode!r}: not known; correct router.json")


def try_out(backend: Backend) -> None:
    """Tag a socket of our own that nobody else ever sees. Raises SecureError."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            backend.tag(probe.fileno(), cookie_of(probe))
    except SecureError:
        raise
    except OSError as error:
        raise SecureError(
            error.errno,
            f"secure mode {backend.mode}: a socket cannot be tagged ({error.strerror or error});"
            " see the kernel's log",
        ) from error


def prove(backend: Backend, enter: Callable[[], None], leave: Callable[[], None]) -> None:
    """See that a tag denies: try what is forbidden from inside of the endpoint's namespace.

    *enter* and *leave* move this thread there and back. Raises SecureError: whatever the
    backend says of itself, without a denial nothing may be handed over.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            backend.tag(probe.fileno(), cookie_of(probe))
        except OSError as error:
            raise SecureError(error.errno, f"secure mode {backend.mode}: {error}") from error
        enter()
        try:
            denied, allowed = _attempts(probe)
        finally:
            leave()
    if not denied or not allowed:
        what = "a forbidden call was let through" if not denied else "a permitted call was denied"
        raise SecureError(
            errno.EPERM,
            f"secure mode {backend.mode}: {what} on a tagged socket; load the backend of this"
            " release (for bpf: the kernel's lsm= list must hold bpf)",
        )


def _attempts(probe: socket.socket) -> tuple[bool, bool]:
    """(the forbidden is denied, the permitted is not)."""
    forbidden: tuple[Callable[[], object], ...] = (
        probe.getsockname,
        lambda: probe.bind(("127.0.0.1", 0)),
        lambda: probe.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0),
    )
    for call in forbidden:
        try:
            call()
        except PermissionError:
            continue
        except OSError:
            pass
        return False, True
    try:
        probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        return True, False
    return True, True
