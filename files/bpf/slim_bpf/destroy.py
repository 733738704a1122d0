# SPDX-License-Identifier: Apache-2.0
"""SOCK_DESTROY of TCP sockets by sock_diag(7): the peer gets a reset, readers wake up.

Needs CAP_NET_ADMIN and the sockets' own network namespace.
"""

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from itertools import islice

from .tags import Tagged

NETLINK_SOCK_DIAG = 4
SOCK_DESTROY = 21
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLMSG_ERROR = 2
ALL_STATES = 0xFFFFFFFF
# One answer of 36 bytes and the request in it: 64 fit any receive buffer.
BATCH = 64

_HEADER = struct.Struct("=IHHII")


def _request(tagged: Tagged, sequence: int) -> bytes:
    """struct nlmsghdr and struct inet_diag_req_v2 (uapi/linux/inet_diag.h)."""
    here, there = tagged.address, tagged.peer_address
    if tagged.family == socket.AF_INET:
        here, there = here[12:].ljust(16, b"\0"), there[12:].ljust(16, b"\0")
    body = struct.pack("=BBBBI", tagged.family, socket.IPPROTO_TCP, 0, 0, ALL_STATES)
    body += struct.pack("!HH", tagged.port, tagged.peer_port) + here + there
    body += struct.pack("=III", 0, tagged.cookie & 0xFFFFFFFF, tagged.cookie >> 32)
    return (
        _HEADER.pack(_HEADER.size + len(body), SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)
        + body
    )


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each acknowledgement in one datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _unused, sequence, _unused = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        if kind == NLMSG_ERROR:
            yield sequence, -struct.unpack_from("=i", data, offset + _HEADER.size)[0]
        offset += (length + 3) & ~3


def destroy(sockets: Iterable[Tagged]) -> dict[int, int]:
    """Abort each socket; answers with the errno by cookie of those that were not.

    ENOENT says that the socket is not connected any more: nothing to abort.
    EOPNOTSUPP: the kernel lacks CONFIG_INET_DIAG_DESTROY.
    """
    failed: dict[int, int] = {}
    queue = iter(sockets)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    ) as diag:
        diag.settimeout(10)
        while batch := list(islice(queue, BATCH)):
            diag.send(b"".join(_request(tagged, index) for index, tagged in enumerate(batch)))
            waiting = set(range(len(batch)))
            while waiting:
                for sequence, number in _answers(diag.recv(1 << 16)):
                    if sequence in waiting:
                        waiting.discard(sequence)
                        if number:
                            failed[batch[sequence].cookie] = number
    return failed


def explain(failed: dict[int, int]) -> str:
    """For a log line."""
    return ", ".join(f"{cookie}: {os.strerror(number)}" for cookie, number in failed.items())
