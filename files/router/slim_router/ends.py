# SPDX-License-Identifier: Apache-2.0
"""The ends of TCP sockets, as the kernel tells them. Part of the supervisor.

sock_diag(7) has multicast groups on which the kernel reports every TCP socket of a
network namespace at the moment when it is freed, with its last figures (`ss -E` shows
them): net/core/sock_diag.c, sock_diag_broadcast_destroy, since Linux 4.3. Joining needs
no capability but to be in the namespace. A listener that does not read in time loses
reports and is told so (ENOBUFS).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from . import netns, sockdiag

GROUPS = 1 << 0 | 1 << 2
"""SKNLGRP_INET_TCP_DESTROY (1) and SKNLGRP_INET6_TCP_DESTROY (3), as bits of nl_groups:
include/uapi/linux/sock_diag.h."""
BUFFER = 8 << 20
"""Bytes of kernel memory for reports that wait: about 20,000 of them."""
READ_MAX = 4096
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
SO_ATTACH_FILTER = 26

# offsetof(struct inet_diag_msg, id.idiag_sport) and idiag_dport, behind the nlmsghdr.
_SPORT_AT, _DPORT_AT = 20, 22
# Classic BPF (include/uapi/linux/bpf_common.h): load a half-word, compare, return.
_LDH, _JGE, _JGT, _RET = 0x28, 0x35, 0x25, 0x06

_HEAD = struct.Struct("=IH10xBB2x2s2s16s16s4xQ")
_ATTRIBUTE = struct.Struct("=HH")
_PORT = struct.Struct("!H")
_MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"
_HEAD_SIZE = 88  # nlmsghdr and inet_diag_msg

# Offsets in struct tcp_info (include/uapi/linux/tcp.h), which only grows.
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_FIGURES = (
    ("bytes_sent", _U64, 120),  # tcpi_bytes_acked
    ("bytes_received", _U64, 128),
    ("segments_out", _U32, 136),
    ("segments_in", _U32, 140),
    ("retransmits", _U32, 100),  # tcpi_total_retrans: segments
    ("bytes_retransmitted", _U64, 208),
    ("rtt_us", _U32, 68),
    ("rtt_var_us", _U32, 72),
    ("min_rtt_us", _U32, 148),
    ("delivery_rate", _U64, 160),  # bytes per second
    ("busy_us", _U64, 168),
    ("rwnd_limited_us", _U64, 176),
    ("sndbuf_limited_us", _U64, 184),
)
NO_RTT = 0xFFFFFFFF
"""tcpi_min_rtt where none was measured (tcp_min_rtt() of a fresh connection)."""


class End(NamedTuple):
    """A socket that is no more. Addresses are 16 bytes, IPv4 mapped."""

    cookie: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    figures: dict[str, int | None] | None


class Ends:
    """The reports of one network namespace. Not for several threads."""

    def __init__(self, fd: int | None = None, ports: tuple[int, int] | None = None) -> None:
        """Of the namespace behind the descriptor *fd*, or of our own.

        *ports*: only of sockets with a port in this range, on either side; the kernel
        itself looks, so that a busy program of the host costs nothing. Raises OSError.
        """
        self.overruns = 0
        self.blind = ""
        """Why the kernel does not report; it can still be asked (:meth:`living`)."""
        self.sock, self._asks = self._open() if fd is None else netns.inside(fd, self._open)
        self.ports = ports
        try:
            if ports is not None:
                self.narrow(ports)
            self._join()
        except OSError as error:
            self.blind = error.strerror or str(error)

    def _join(self) -> None:
        self.sock.bind((0, GROUPS))

    @staticmethod
    def _open() -> tuple[socket.socket, socket.socket]:
        asks = sockdiag.open_netlink()
        try:
            sock = socket.socket(
                socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                sockdiag.NETLINK_SOCK_DIAG,
            )  # fmt: skip
        except OSError:
            asks.close()
            raise
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        return sock, asks

    def narrow(self, ports: tuple[int, int]) -> None:
        """Only sockets with a port in the range *ports* from now on. Raises OSError."""
        first, last = ports
        program = b"".join(
            struct.pack("=HBBI", *step)
            for step in (
                (_LDH, 0, 0, _SPORT_AT),
                (_JGE, 0, 1, first),
                (_JGT, 0, 4, last),
                (_LDH, 0, 0, _DPORT_AT),
                (_JGE, 0, 1, first),
                (_JGT, 0, 1, last),
                (_RET, 0, 0, 0),
                (_RET, 0, 0, 0xFFFFFFFF),
            )
        )
        held = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("HP", len(program) // 8, ctypes.addressof(held))
        self.sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
        self.ports = ports

    def read(self, most: int) -> Iterator[End]:
        """What has been reported, at most *most*. Raises OSError for a socket that is done for."""
        recv = self.sock.recv
        for _unused in range(most):
            try:
                data = recv(READ_MAX)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.overruns += 1
                continue
            end = parse(data)
            if end is not None:
                yield end

    def living(self, cookies: set[int]) -> set[int]:
        """Those of *cookies* whose sockets live. Raises OSError."""
        found: set[int] = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for some in sockdiag.hunt(self._asks, family, cookies):
                found.update(each.sock.cookie for each in some)
        return found

    def close(self) -> None:
        """No more reports; the namespace may go."""
        with contextlib.suppress(OSError):
            self.sock.close()
        self._asks.close()


def parse(data: bytes) -> End | None:
    """One report; None for what is none."""
    if len(data) < _HEAD_SIZE:
        return None
    length, kind, family, _unused, sport, dport, src, dst, cookie = _HEAD.unpack_from(data)
    if kind != sockdiag.SOCK_DIAG_BY_FAMILY or not _HEAD_SIZE <= length <= len(data):
        return None
    if family == socket.AF_INET:
        src, dst = _MAPPED + src[:4], _MAPPED + dst[:4]
    return End(
        cookie, src, _PORT.unpack(sport)[0], dst, _PORT.unpack(dport)[0],
        _figures(data, length),
    )  # fmt: skip


def _figures(data: bytes, end: int) -> dict[str, int | None] | None:
    at = _HEAD_SIZE
    while at + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > end:
            return None
        if kind == sockdiag.INET_DIAG_INFO:
            size, start = length - 4, at + 4
            made: dict[str, int | None] = {}
            for name, layout, offset in _FIGURES:
                known = offset + layout.size <= size  # an older kernel's structure is shorter
                made[name] = layout.unpack_from(data, start + offset)[0] if known else None
            if made["min_rtt_us"] == NO_RTT:
                made["min_rtt_us"] = None
            return made
        at += length + 3 & ~3
    return None
