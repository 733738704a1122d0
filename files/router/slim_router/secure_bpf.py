# SPDX-License-Identifier: Apache-2.0
"""The BPF twin's side of secure mode: a pinned map of socket storage, by bpf(2).

The standard library only; the layouts are those of include/uapi/linux/bpf.h. One
update of the map is one tag: its key is a descriptor of ours, its storage belongs to
the socket. The programs that look at it are pinned beside it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Iterable

from . import sockdiag
from .secure import Revoked, SecureError
from .stopped import stopped

DIRECTORY = "/sys/fs/bpf/slim"
LSM_LIST = "/sys/kernel/security/lsm"
MAPS = ("tags", "stats", "revoke", "about")
MARK_TRIES = 3

SYS_BPF = {"x86_64": 321, "aarch64": 280}
BPF_MAP_LOOKUP_ELEM, BPF_MAP_UPDATE_ELEM, BPF_MAP_DELETE_ELEM = 1, 2, 3
BPF_OBJ_GET, BPF_OBJ_GET_INFO_BY_FD = 7, 15
BPF_MAP_TYPE_SK_STORAGE = 24
BPF_ANY, BPF_NOEXIST = 0, 1
LIVE = 1  # 2: revoked; files/bpf/tags.h
_NAME = struct.Struct("=2s2s16s16sIQ")  # inet_diag_sockid

_libc = ctypes.CDLL(None, use_errno=True)


class _Element(ctypes.Structure):
    """union bpf_attr of the commands on one element."""

    _fields_ = (
        ("map_fd", ctypes.c_uint32),
        ("zero", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    )


class _Value(ctypes.Structure):
    """What the map stores by socket; the programs have the same."""

    _fields_ = (
        ("cookie", ctypes.c_uint64),
        ("state", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    )


class _Object(ctypes.Structure):
    """union bpf_attr of BPF_OBJ_GET."""

    _fields_ = (("path", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32))


class _Info(ctypes.Structure):
    """union bpf_attr of BPF_OBJ_GET_INFO_BY_FD."""

    _fields_ = (("fd", ctypes.c_uint32), ("size", ctypes.c_uint32), ("info", ctypes.c_uint64))


class _MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
    )


def _bpf(command: int, attr: ctypes.Structure) -> int:
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"bpf(2) is not known on {platform.machine()}")
    result = int(_libc.syscall(number, command, ctypes.byref(attr), ctypes.sizeof(attr)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def pinned(path: str) -> int:
    """A descriptor of the object at *path*. Raises OSError."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(BPF_OBJ_GET, _Object(ctypes.addressof(name), 0, 0))


class Bpf:
    """The pinned map ``tags`` and the programs beside it."""

    mode = "bpf"

    def __init__(self, directory: str = "") -> None:
        self.directory = directory or DIRECTORY
        self._fd = -1
        self._id = 0
        # Held open: a link whose file is removed would otherwise be detached, and with it
        # the rule on every socket that is out there.
        self._links: list[int] = []
        # Made once: a tag allocates nothing.
        self._key, self._value = ctypes.c_int(), _Value(0, LIVE, 0)
        self._attr = _Element(
            0, 0, ctypes.addressof(self._key), ctypes.addressof(self._value), BPF_NOEXIST
        )
        self._size = ctypes.sizeof(self._attr)
        self._attr_at = ctypes.byref(self._attr)
        self._number = SYS_BPF.get(platform.machine(), -1)

    def _failed(self, what: str, error: OSError) -> SecureError:
        path = f"{self.directory}/{what}" if what else self.directory
        if error.errno == errno.ENOENT:
            cause, step = "not there", "load the programs (role slim_bpf)"
        elif error.errno in (errno.EPERM, errno.EACCES):
            cause = "bpf(2) is not permitted"
            step = "give the router CAP_SYS_ADMIN and, in its unit, SystemCallFilter=bpf"
        else:
            cause, step = error.strerror or str(error), "load the programs of this release"
        return SecureError(error.errno, f"secure mode bpf: {path}: {cause}; {step}")

    def open(self) -> None:
        self._check_lsm()
        try:
            fd = pinned(f"{self.directory}/tags")
        except OSError as error:
            raise self._failed("tags", error) from error
        try:
            found = self._check_map(fd)
            links = self._open_links()
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._id, self._links = fd, found, links
        self._attr.map_fd = fd

    @staticmethod
    def _check_lsm() -> None:
        try:
            with open(LSM_LIST, encoding="ascii") as file:
                listed = file.read().strip()
        except OSError:
            return  # securityfs is not to be seen from here: prove() tells
        if "bpf" not in listed.split(","):
            raise SecureError(
                errno.EOPNOTSUPP,
                f"secure mode bpf: {LSM_LIST}: {listed or 'empty'}: the kernel runs no BPF LSM"
                f" programs; add lsm={listed},bpf to its command line, or use kmod",
            )

    def _check_map(self, fd: int) -> int:
        info = _MapInfo()
        try:
            _bpf(
                BPF_OBJ_GET_INFO_BY_FD,
                _Info(fd, ctypes.sizeof(info), ctypes.addressof(info)),
            )
        except OSError as error:
            raise self._failed("tags", error) from error
        if (info.type, info.key_size, info.value_size) != (
            BPF_MAP_TYPE_SK_STORAGE, 4, ctypes.sizeof(_Value),
        ):  # fmt: skip
            raise SecureError(
                errno.EPROTO,
                f"secure mode bpf: {self.directory}/tags: map type {info.type}, key {info.key_size},"
                f" value {info.value_size} bytes: not ours; load the programs of this release",
            )
        return int(info.id)

    def _open_links(self) -> list[int]:
        found: list[int] = []
        try:
            for name in sorted(os.listdir(self.directory)):
                if name not in MAPS:
                    found.append(pinned(f"{self.directory}/{name}"))
        except OSError as error:
            for fd in found:
                os.close(fd)
            raise self._failed("", error) from error
        if not found:
            raise SecureError(
                errno.ENOENT,
                f"secure mode bpf: {self.directory}: a map without programs; load them"
                " (role slim_bpf)",
            )
        return found

    def identity(self) -> str:
        """The number of the map that is pinned now."""
        try:
            fd = pinned(f"{self.directory}/tags")
        except OSError as error:
            raise self._failed("tags", error) from error
        try:
            return f"map {self._check_map(fd)}"
        finally:
            os.close(fd)

    def tag(self, fd: int, cookie: int) -> None:
        self._key.value = fd
        self._value.cookie = cookie
        if _libc.syscall(self._number, BPF_MAP_UPDATE_ELEM, self._attr_at, self._size) == 0:
            return
        code = ctypes.get_errno()
        # Never over an older one: a revoked socket must not come to life again.
        if code == errno.EEXIST and self.state(fd) == LIVE:
            return
        raise OSError(code, f"socket storage: {os.strerror(code)}")

    def state(self, fd: int) -> int:
        """LIVE, 2 (revoked), or 0 for a socket without a tag. Raises OSError."""
        key, value = ctypes.c_int(fd), _Value()
        attr = _Element(self._fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        try:
            _bpf(BPF_MAP_LOOKUP_ELEM, attr)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        return int(value.state)

    def revoke(self, cookies: Iterable[int]) -> Revoked:
        """Mark, stop who holds them, reset, let go: files/bpf/README.md, "Revocation, in
        order". From the mark on every copy answers ECONNABORTED; no descriptor is taken away."""
        wanted = set(cookies)
        marks = self._mark(wanted)
        held = [
            pair
            for line in self._lines("slim_holders")
            if (pair := (int(line[0]), int(line[2])))[0] in wanted
        ]
        outside = {pid for _unused, pid in held if _is_outside(pid)}
        with (
            stopped(outside) if outside else contextlib.nullcontext(),
            contextlib.closing(sockdiag.open_netlink()) as nl,
        ):
            for line in marks.values():
                destroy(nl, line)
        return Revoked(len(wanted), held)

    def _mark(self, wanted: set[int]) -> dict[int, list[str]]:
        """The lines of slim_mark by cookie, for those that have a tag. Raises OSError."""
        fd = pinned(f"{self.directory}/revoke")
        found: dict[int, list[str]] = {}
        key, value = ctypes.c_uint64(), ctypes.c_uint32(1)
        attr = _Element(fd, 0, ctypes.addressof(key), ctypes.addressof(value), BPF_ANY)
        try:
            for cookie in wanted:
                key.value = cookie
                _bpf(BPF_MAP_UPDATE_ELEM, attr)
            for _unused in range(MARK_TRIES):
                for line in self._lines("slim_mark"):
                    if int(line[0]) in wanted:
                        found[int(line[0])] = line
                if len(found) == len(wanted):
                    break
            for cookie in wanted:
                key.value = cookie
                with contextlib.suppress(OSError):
                    _bpf(BPF_MAP_DELETE_ELEM, attr)
        finally:
            os.close(fd)
        return found

    def _lines(self, name: str) -> list[list[str]]:
        """What an iterator says; reading slim_mark is what marks."""
        with open(f"{self.directory}/{name}", encoding="ascii") as file:
            return [line.split() for line in file]

    def close(self) -> None:
        for fd in (self._fd, *self._links):
            if fd >= 0:
                os.close(fd)
        self._fd, self._links = -1, []
        self._attr.map_fd = 0xFFFFFFFF


def _is_outside(pid: int) -> bool:
    """Is the process in another network namespace than we are? The host's own, which share
    ours, do not sleep on a container's socket."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return False


def destroy(nl: socket.socket, line: list[str]) -> None:
    """Reset the connection of a line of slim_mark; an ended one is none. Raises OSError."""
    cookie, _state, family, port, peer_port, address, peer = line
    raw = [bytes.fromhex(text) for text in (address, peer)]
    if int(family) == socket.AF_INET:
        raw = [item[12:] + bytes(12) for item in raw]
    name = _NAME.pack(
        int(port).to_bytes(2, "big"), int(peer_port).to_bytes(2, "big"), *raw, 0, int(cookie)
    )
    code = sockdiag.destroy(nl, int(family), [name])
    if code:
        raise OSError(code, f"SOCK_DESTROY: {os.strerror(code)}")
