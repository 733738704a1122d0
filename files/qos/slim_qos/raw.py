# SPDX-License-Identifier: Apache-2.0
"""What pyroute2 cannot do: put a root queue by and put it back as the kernel describes
it, and take queues and classes away without naming the options that they were made with.

pyroute2 decodes the options of the queues that it knows and cannot send them again as
they were; so the attribute is carried as bytes. linux/rtnetlink.h, linux/pkt_sched.h.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
from collections.abc import Iterator

NETLINK_ROUTE = 0
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC, RTM_DELTCLASS = 36, 37, 38, 41
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 1, 4, 0x300
NLM_F_REPLACE, NLM_F_CREATE = 0x100, 0x400
TCA_KIND, TCA_OPTIONS = 1, 2
ROOT = 0xFFFFFFFF
HEADER = struct.Struct("=IHHII")
TCMSG = struct.Struct("=BxxxiIII")
TIMEOUT_S = 10.0


def _ask(kind: int, flags: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    """The answers to one request: (type, body). Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.sendto(HEADER.pack(HEADER.size + len(body), kind, flags, 1, 0) + body, (0, 0))
        while True:
            data = sock.recv(1 << 20)
            while len(data) >= HEADER.size:
                size, answer, _flags, _number, _port = HEADER.unpack_from(data)
                if size < HEADER.size or size > len(data):
                    raise OSError(71, "a netlink answer is cut off")
                part = data[HEADER.size : size]
                data = data[(size + 3) & ~3 :]
                if answer == NLMSG_ERROR:
                    number = -int(struct.unpack_from("=i", part)[0])
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                if answer == NLMSG_DONE:
                    return
                yield answer, part


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            break
        found[kind & 0x3FFF] = data[4:size]
        data = data[(size + 3) & ~3 :]
    return found


def save(index: int) -> str:
    """The root queue of a device as text; "" if it is the kernel's own choice."""
    for kind, body in _ask(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, TCMSG.pack(0, index, 0, 0, 0)):
        _family, where, handle, parent, _info = TCMSG.unpack_from(body)
        if kind == RTM_NEWQDISC and where == index and parent == ROOT and handle:
            found = _attributes(body[TCMSG.size :])
            return json.dumps(
                {
                    "kind": found[TCA_KIND].rstrip(b"\0").decode(),
                    "handle": handle,
                    "options": base64.b64encode(found.get(TCA_OPTIONS, b"")).decode(),
                }
            )
    return ""


def remove(index: int, handle: int) -> None:
    """Take the root queue with this handle away, of whatever kind. Raises OSError."""
    body = TCMSG.pack(0, index, handle, ROOT, 0)
    for _answer in _ask(RTM_DELQDISC, NLM_F_REQUEST | NLM_F_ACK, body):
        pass


def remove_class(index: int, classid: int) -> None:
    """Take a class away whose children are gone. Raises OSError."""
    for _answer in _ask(
        RTM_DELTCLASS, NLM_F_REQUEST | NLM_F_ACK, TCMSG.pack(0, index, classid, 0, 0)
    ):
        pass


def restore(index: int, text: str) -> None:
    """Make the root queue again. Raises OSError, ValueError, KeyError."""
    saved = json.loads(text)
    body = TCMSG.pack(0, index, int(saved["handle"]), ROOT, 0)
    for kind, value in (
        (TCA_KIND, str(saved["kind"]).encode() + b"\0"),
        (TCA_OPTIONS, base64.b64decode(saved["options"])),
    ):
        if value:
            size = 4 + len(value)
            body += struct.pack("=HH", size, kind) + value + bytes(-size % 4)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    for _answer in _ask(RTM_NEWQDISC, flags, body):
        pass
