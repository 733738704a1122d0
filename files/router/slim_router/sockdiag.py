# SPDX-License-Identifier: Apache-2.0
"""The kernel's TCP sockets by NETLINK_SOCK_DIAG (sock_diag(7)): dumps, and aborting some.

Standard library only, and no pyroute2: the worker imports this, its private
memory is bounded at 4 MB, and a generic netlink parser takes several times the
200 ms that a table of 10,000 sockets may cost. Layouts: include/uapi/linux/
inet_diag.h and tcp.h. All fields are read in host byte order except ports and
addresses, which the kernel keeps in network order.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from .row import HostName

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
NLM_F_DUMP_INTR = 0x10
NLM_F_ACK = 0x4
NLMSG_ERROR, NLMSG_DONE = 2, 3
INET_DIAG_INFO = 2
SOCK_DESTROY = 21
REQUESTS = 32
"""Requests of one datagram: their answers fit any receive buffer."""

STATES = {
    1: "established", 2: "syn-sent", 3: "syn-recv", 4: "fin-wait-1",
    5: "fin-wait-2", 6: "time-wait", 7: "close", 8: "close-wait",
    9: "last-ack", 10: "listen", 11: "closing", 12: "new-syn-recv",
}  # fmt: skip
"""include/net/tcp_states.h."""

LIVE = 0xFFF & ~(1 << 6 | 1 << 7 | 1 << 10 | 1 << 12)
"""Mask of the states of connections: without TIME_WAIT, CLOSE and LISTEN."""

LISTEN = 1 << 10

RECEIVE_SIZE = 1 << 15  # the kernel fills no more a datagram
ANSWER_SIZE = 4096  # of one socket; room of a MiB, say, would be mapped anew for each

_NLMSG = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=IHHIIBBBBI48s")
# nlmsghdr without what we skip, then inet_diag_msg (72 bytes):
# family, state, timer, retrans | sport, dport | src, dst | if, cookie |
# expires, rqueue, wqueue, uid, inode
_MESSAGE = struct.Struct("=BB2x2s2s16s16s4xQ12xII")
# Of the same: length, kind, cookie; and the name of the other end.
_HEAD = struct.Struct("=IH54xQ")
_PORT = struct.Struct("!H")
# struct inet_diag_sockid: sport, dport | src, dst | if | cookie
_NAME = struct.Struct("!HH16s16s4x8s")
_TWO_U64 = struct.Struct("=QQ")
_INFO = 1 << (INET_DIAG_INFO - 1)
# offsetof(struct tcp_info, tcpi_bytes_acked); tcpi_bytes_received follows
_BYTES_ACKED = 120
_MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


class Sock(NamedTuple):
    """One TCP socket. Addresses are 16 bytes, IPv4 mapped; 0 bytes without info."""

    cookie: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    state: int
    bytes_acked: int
    bytes_received: int
    inode: int
    uid: int


def open_netlink() -> socket.socket:
    """A socket for :func:`dump`, of the caller's network namespace. Raises OSError."""
    nl = socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )
    nl.settimeout(5)
    try:
        nl.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        nl.bind((0, 0))
    except OSError:
        nl.close()
        raise
    return nl


_sequence = 0


def dump(
    nl: socket.socket, family: int, states: int = LIVE, want_info: bool = False
) -> Iterator[Sock]:
    """Every TCP socket of *family* in one of the *states* (a mask of 1 << state).

    Of the network namespace that *nl* was made in. Raises OSError. The caller
    must exhaust or drop the iterator before it asks again on the same socket; of a
    dump that was dropped half-way the rest is read and thrown away.
    """
    global _sequence
    _sequence = sequence = _sequence + 1 & 0x7FFFFFFF
    ext = _INFO if want_info else 0
    nl.send(
        _REQUEST.pack(
            _REQUEST.size,
            SOCK_DIAG_BY_FAMILY,
            NLM_F_REQUEST | NLM_F_DUMP,
            sequence,
            0,
            family,
            socket.IPPROTO_TCP,
            ext,
            0,
            states,
            bytes(48),
        )
    )
    is_v4 = family == socket.AF_INET
    message, port = _MESSAGE.unpack_from, _PORT.unpack
    done, data, at = False, b"", 0
    try:
        while not done:
            data = nl.recv(RECEIVE_SIZE)
            at, size = 0, len(data)
            while at + 16 <= size:
                length, kind, _unused, number, _unused = _NLMSG.unpack_from(data, at)
                if length < 16 or at + length > size:
                    raise OSError(errno.EPROTO, "sock_diag: message with a wrong length")
                end = at + length
                if number == sequence:
                    if kind == SOCK_DIAG_BY_FAMILY and length >= 88:
                        _unused, state, sport, dport, src, dst, cookie, uid, inode = message(
                            data, at + 16
                        )
                        acked = received = 0
                        if want_info:
                            acked, received = _info(data, at + 88, end)
                        if is_v4:
                            src, dst = _MAPPED + src[:4], _MAPPED + dst[:4]
                        yield Sock(
                            cookie, src, port(sport)[0], dst, port(dport)[0],
                            state, acked, received, inode, uid,
                        )  # fmt: skip
                    elif kind in (NLMSG_DONE, NLMSG_ERROR):
                        done = True
                        _check(kind, data, at, length)
                at += length + 3 & ~3
    finally:
        # The kernel refuses a second dump (EBUSY) while the first is unread.
        if not done:
            _skip(nl, sequence, data, at)


class Found(NamedTuple):
    """A socket that :func:`hunt` was after, and the kernel's name for it."""

    sock: Sock
    name: bytes  # struct inet_diag_sockid


def hunt(nl: socket.socket, family: int, cookies: Container[int]) -> Iterator[list[Found]]:
    """The live TCP sockets of *family* that have one of *cookies*: a list for each datagram
    of the kernel's, so that the caller can do something else in between. *nl* must be the
    caller's alone until the end.

    Raises OSError. Ten times as fast as :func:`dump` where few are wanted of many.
    """
    nl.send(
        _REQUEST.pack(
            _REQUEST.size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 0, 0, family,
            socket.IPPROTO_TCP, _INFO, 0, LIVE, bytes(48),
        )
    )  # fmt: skip
    head, done = _HEAD.unpack_from, False
    while not done:
        data = nl.recv(RECEIVE_SIZE)
        size, at = len(data), 0
        data += bytes(_HEAD.size)  # what ends a dump is shorter
        found = []
        while at + 16 <= size:
            length, kind, cookie = head(data, at)
            if length < 16 or at + length > size:
                raise OSError(errno.EPROTO, "sock_diag: message with a wrong length")
            if kind == SOCK_DIAG_BY_FAMILY:
                if cookie in cookies:
                    found.append(_found(data, at, at + length))
            elif kind in (NLMSG_DONE, NLMSG_ERROR):
                done = True
                _check(kind, data, at, length)
            at += length + 3 & ~3
        yield found


def named(name: HostName, cookie: int) -> tuple[int, bytes]:
    """The address family, and the kernel's name (struct inet_diag_sockid), of a host
    connection's socket."""
    local, lport, remote, rport = name
    family = socket.AF_INET6
    if local.startswith(_MAPPED) and remote.startswith(_MAPPED):
        family, local, remote = socket.AF_INET, local[12:], remote[12:]
    return family, _NAME.pack(lport, rport, local, remote, cookie.to_bytes(8, sys.byteorder))


def ask(nl: socket.socket, family: int, names: Sequence[bytes]) -> list[Found]:
    """The TCP sockets with these *names* (struct inet_diag_sockid, the cookie included), at
    most REQUESTS of them; those that have ended are missing. Raises OSError."""
    nl.send(_requests(SOCK_DIAG_BY_FAMILY, family, names))
    found = []
    # (The kernel's own word for the name has the socket's family, which need not be ours.)
    for name, (kind, data, at, end) in zip(names, _answers(nl, len(names)), strict=True):
        if kind == SOCK_DIAG_BY_FAMILY and end - at >= 88:
            found.append(Found(_found(data, at, end).sock, name))
    return found


def _found(data: bytes, at: int, end: int) -> Found:
    family, state, sport, dport, src, dst, cookie, uid, inode = _MESSAGE.unpack_from(data, at + 16)
    if family == socket.AF_INET:
        src, dst = _MAPPED + src[:4], _MAPPED + dst[:4]
    sock = Sock(
        cookie, src, _PORT.unpack(sport)[0], dst, _PORT.unpack(dport)[0], state,
        *_info(data, at + 88, end), inode, uid,
    )  # fmt: skip
    return Found(sock, data[at + 20 : at + 68])


def destroy(nl: socket.socket, family: int, names: Sequence[bytes]) -> int:
    """Abort the TCP connections with these *names* (struct inet_diag_sockid, the cookie
    included), at most REQUESTS of them, by SOCK_DESTROY: every copy of the descriptor answers
    ECONNABORTED, the other end sees a reset. Those that have ended are none.

    errno of the last one that could not be aborted, or 0. EOPNOTSUPP: a kernel without
    CONFIG_INET_DIAG_DESTROY. Raises OSError.
    """
    nl.send(_requests(SOCK_DESTROY, family, names))
    failed = 0
    for kind, data, at, _unused in _answers(nl, len(names)):
        if kind == NLMSG_ERROR:
            code = -struct.unpack_from("=i", data, at + 16)[0]
            if code not in (0, errno.ENOENT):
                failed = code
    return failed


def _requests(kind: int, family: int, names: Sequence[bytes]) -> bytes:
    """A datagram with a request of *kind* for each; the answers have *kind* as their number."""
    flags, ext = (NLM_F_REQUEST | NLM_F_ACK, 0) if kind == SOCK_DESTROY else (NLM_F_REQUEST, _INFO)
    return b"".join(
        _REQUEST.pack(
            _REQUEST.size,
            kind,
            flags,
            kind,
            0,
            family,
            socket.IPPROTO_TCP,
            ext,
            0,
            0xFFFFFFFF,
            name,
        )
        for name in names
    )


def _answers(nl: socket.socket, number: int) -> Iterator[tuple[int, bytes, int, int]]:
    """*number* answers of one message each: its kind, and where in which datagram it lies."""
    answered = 0
    while answered < number:
        data = nl.recv(ANSWER_SIZE)
        at = 0
        while at + 20 <= len(data):
            length, kind, _unused, _unused, _unused = _NLMSG.unpack_from(data, at)
            if length < 16 or at + length > len(data):
                raise OSError(errno.EPROTO, "sock_diag: message with a wrong length")
            answered += 1
            yield kind, data, at, at + length
            at += length + 3 & ~3


def _check(kind: int, data: bytes, at: int, length: int) -> None:
    """Raises OSError for an error message."""
    if kind == NLMSG_ERROR:
        code = -struct.unpack_from("=i", data, at + 16)[0] if length >= 20 else errno.EPROTO
        if code:
            raise OSError(code, f"sock_diag: {os.strerror(code)}")


def _skip(nl: socket.socket, sequence: int, data: bytes, at: int) -> None:
    """Read the dump *sequence* to its end, which may be in data[at:] already."""
    with contextlib.suppress(OSError):
        while True:
            while at + 16 <= len(data):
                length, kind, _unused, number, _unused = _NLMSG.unpack_from(data, at)
                if number == sequence and kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                at += max(16, length + 3 & ~3)
            data, at = nl.recv(RECEIVE_SIZE), 0


def _info(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(bytes acknowledged, bytes received) from the attributes in data[at:end]."""
    while at + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > end:
            break
        if kind == INET_DIAG_INFO:
            if length >= 4 + _BYTES_ACKED + 16:
                acked, received = _TWO_U64.unpack_from(data, at + 4 + _BYTES_ACKED)
                return acked, received
            break
        at += length + 3 & ~3
    return 0, 0
