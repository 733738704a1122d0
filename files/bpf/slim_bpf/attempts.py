# SPDX-License-Identifier: Apache-2.0
"""Calls on a socket, made from a foreign network namespace: the load check's proof.

Not the escape suite: one call for each program and each rule of it.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

EPERM = 1
ECONNABORTED = 103

# asm-generic/socket.h, linux/tcp.h, asm-generic/ioctls.h, linux/sockios.h, linux/socket.h
SO_MARK, SO_PRIORITY, SO_PEERNAME, SO_COOKIE, SO_BINDTODEVICE = 36, 12, 28, 57, 25
TCP_ULP, TCP_REPAIR, TCP_INFO = 31, 19, 11
SIOCGIFCONF, SIOCGIFNAME, FIONREAD, FIONBIO = 0x8912, 0x8910, 0x541B, 0x5421
MSG_FASTOPEN, MSG_ZEROCOPY, MSG_ERRQUEUE = 0x20000000, 0x4000000, 0x2000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_libc.recv.restype = _libc.send.restype = _libc.sendto.restype = ctypes.c_ssize_t
_libc.recvmsg.restype = _libc.sendmsg.restype = ctypes.c_ssize_t

_LOOPBACK = struct.pack("=HHI8x", socket.AF_INET, 0, 0)
_UNSPEC = struct.pack("=H14x", socket.AF_UNSPEC)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call; expected is its errno on a live tag, 0 for "whatever, but not EPERM"."""

    name: str
    expected: int
    # The program that has to answer.
    program: str
    call: Callable[[int], int]

    def run(self, fd: int) -> int:
        """errno of the call, 0 if it succeeded."""
        ctypes.set_errno(0)
        result = self.call(fd)
        return ctypes.get_errno() if result in (-1, ctypes.c_void_p(-1).value) else 0


class _Message(ctypes.Structure):
    """struct msghdr"""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.c_void_p),
        ("vectors", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


def _set(level: int, name: int, value: bytes = b"\1\0\0\0") -> Callable[[int], int]:
    return lambda fd: int(_libc.setsockopt(fd, level, name, value, len(value)))


def _get(level: int, name: int) -> Callable[[int], int]:
    def call(fd: int) -> int:
        length = ctypes.c_uint32(256)
        return int(
            _libc.getsockopt(
                fd, level, name, ctypes.create_string_buffer(256), ctypes.byref(length)
            )
        )

    return call


def _name(function: str) -> Callable[[int], int]:
    def call(fd: int) -> int:
        length = ctypes.c_uint32(128)
        return int(
            getattr(_libc, function)(fd, ctypes.create_string_buffer(128), ctypes.byref(length))
        )

    return call


def _ioctl(number: int) -> Callable[[int], int]:
    return lambda fd: int(_libc.ioctl(fd, ctypes.c_ulong(number), ctypes.create_string_buffer(256)))


def _send(flags: int = 0) -> Callable[[int], int]:
    return lambda fd: int(_libc.send(fd, b"x", ctypes.c_size_t(1), socket.MSG_DONTWAIT | flags))


def _recv(flags: int = 0) -> Callable[[int], int]:
    def call(fd: int) -> int:
        buffer = ctypes.create_string_buffer(64)
        return int(_libc.recv(fd, buffer, ctypes.c_size_t(64), socket.MSG_DONTWAIT | flags))

    return call


def _control(fd: int) -> int:
    # One IP_TOS message.
    data = struct.pack("=QiiB7x", 17, socket.IPPROTO_IP, socket.IP_TOS, 16)
    control = ctypes.create_string_buffer(data, len(data))
    message = _Message(None, 0, None, 0, ctypes.addressof(control), len(data), 0)
    return int(_libc.sendmsg(fd, ctypes.byref(message), socket.MSG_DONTWAIT))


def _mmap(fd: int) -> int:
    return int(_libc.mmap(None, 4096, 1, 1, fd, 0) or 0)


def _chown(fd: int) -> int:
    return int(_libc.fchown(fd, 12345, 12345))


_SOCKET, _TCP, _IP = socket.SOL_SOCKET, socket.IPPROTO_TCP, socket.IPPROTO_IP

ATTEMPTS = (
    Attempt("connect(AF_UNSPEC)", EPERM, "slim_connect", lambda fd: _libc.connect(fd, _UNSPEC, 16)),
    Attempt("bind", EPERM, "slim_bind", lambda fd: _libc.bind(fd, _LOOPBACK, 16)),
    Attempt("listen", EPERM, "slim_listen", lambda fd: _libc.listen(fd, 1)),
    Attempt("accept", EPERM, "slim_accept", lambda fd: _libc.accept(fd, None, None)),
    Attempt("getsockname", EPERM, "slim_getsockname", _name("getsockname")),
    Attempt("getpeername", EPERM, "slim_getpeername", _name("getpeername")),
    Attempt("setsockopt SO_MARK", EPERM, "slim_setsockopt", _set(_SOCKET, SO_MARK)),
    Attempt("setsockopt SO_PRIORITY", EPERM, "slim_setsockopt", _set(_SOCKET, SO_PRIORITY)),
    Attempt(
        "setsockopt SO_BINDTODEVICE",
        EPERM,
        "slim_setsockopt",
        _set(_SOCKET, SO_BINDTODEVICE, b"lo"),
    ),
    Attempt("setsockopt IP_TOS", EPERM, "slim_setsockopt", _set(_IP, socket.IP_TOS)),
    Attempt("setsockopt TCP_ULP", EPERM, "slim_setsockopt", _set(_TCP, TCP_ULP, b"tls")),
    Attempt("setsockopt TCP_REPAIR", EPERM, "slim_setsockopt", _set(_TCP, TCP_REPAIR)),
    Attempt("setsockopt TCP_NODELAY", 0, "slim_setsockopt", _set(_TCP, socket.TCP_NODELAY)),
    Attempt("setsockopt SO_KEEPALIVE", 0, "slim_setsockopt", _set(_SOCKET, socket.SO_KEEPALIVE)),
    Attempt("getsockopt SO_PEERNAME", EPERM, "slim_getsockopt", _get(_SOCKET, SO_PEERNAME)),
    Attempt("getsockopt IP_TOS", EPERM, "slim_getsockopt", _get(_IP, socket.IP_TOS)),
    Attempt("getsockopt SO_ERROR", 0, "slim_getsockopt", _get(_SOCKET, socket.SO_ERROR)),
    Attempt("getsockopt SO_COOKIE", 0, "slim_getsockopt", _get(_SOCKET, SO_COOKIE)),
    Attempt("getsockopt TCP_INFO", 0, "slim_getsockopt", _get(_TCP, TCP_INFO)),
    Attempt(
        "sendto with an address",
        EPERM,
        "slim_sendmsg",
        lambda fd: _libc.sendto(fd, b"x", ctypes.c_size_t(1), socket.MSG_DONTWAIT, _LOOPBACK, 16),
    ),
    Attempt("send MSG_FASTOPEN", EPERM, "slim_sendmsg", _send(MSG_FASTOPEN)),
    Attempt("send MSG_ZEROCOPY", EPERM, "slim_sendmsg", _send(MSG_ZEROCOPY)),
    Attempt("sendmsg with a control message", EPERM, "slim_sendmsg", _control),
    Attempt("send", 0, "slim_sendmsg", _send()),
    Attempt("write", 0, "slim_sendmsg", lambda fd: _libc.write(fd, b"x", ctypes.c_size_t(1))),
    Attempt("recv MSG_ERRQUEUE", EPERM, "slim_recvmsg", _recv(MSG_ERRQUEUE)),
    Attempt("recv", 0, "slim_recvmsg", _recv()),
    Attempt("ioctl SIOCGIFCONF", EPERM, "slim_ioctl", _ioctl(SIOCGIFCONF)),
    Attempt("ioctl SIOCGIFNAME", EPERM, "slim_ioctl", _ioctl(SIOCGIFNAME)),
    Attempt("ioctl FIONREAD", 0, "slim_ioctl", _ioctl(FIONREAD)),
    Attempt("ioctl FIONBIO", 0, "slim_ioctl", _ioctl(FIONBIO)),
    Attempt("mmap", EPERM, "slim_mmap", _mmap),
    Attempt("fchown", EPERM, "slim_chown", _chown),
)

# On a revoked tag.
REVOKED_ATTEMPTS = (
    Attempt("send when revoked", ECONNABORTED, "slim_sendmsg", _send()),
    Attempt("recv when revoked", ECONNABORTED, "slim_recvmsg", _recv()),
    Attempt("recv again when revoked", ECONNABORTED, "slim_recvmsg", _recv()),
    Attempt(
        "shutdown when revoked", ECONNABORTED, "slim_shutdown",
        lambda fd: _libc.shutdown(fd, socket.SHUT_WR),
    ),
    Attempt("connect(AF_UNSPEC) when revoked", EPERM, "slim_connect",
            lambda fd: _libc.connect(fd, _UNSPEC, 16)),
)  # fmt: skip


def leave_namespace() -> None:
    """Move the calling process into a network namespace of its own. Raises OSError."""
    if _libc.unshare(CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "unshare(CLONE_NEWNET)")
