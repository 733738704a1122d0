# SPDX-License-Identifier: Apache-2.0
"""An endpoint without its overlay: what ``secure_fallback: down`` does.

One routing rule for each of the overlay's prefixes, in the endpoint's own namespace,
before all rules but ``local``: packets to the overlay are prohibited, connects there
fail with EACCES. Links, addresses and routes are not touched, so that taking the rules
away restores exactly what was. Layouts: include/uapi/linux/fib_rules.h, netlink(7).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable

from . import netns
from .config import Network

PREFERENCE = 44
"""Of our rules; the kernel's own are 0 (local), 32766 and 32767."""
RTM_NEWRULE, RTM_DELRULE = 32, 33
NLM_F_REQUEST, NLM_F_ACK, NLM_F_EXCL, NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
FRA_DST, FRA_PRIORITY = 1, 6
FR_ACT_PROHIBIT = 8
RULES_MAX = 128  # more than prefixes in router.json
_HEAD = struct.Struct("=IHHII")
_RULE = struct.Struct("=BBBBB2xBI")  # family, dst_len, src_len, tos, table, action, flags


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _request(kind: int, flags: int, family: int, prefix: Network | None) -> bytes:
    length = prefix.prefixlen if prefix is not None else 0
    body = _RULE.pack(family, length, 0, 0, 0, FR_ACT_PROHIBIT, 0)
    if prefix is not None:
        body += _attribute(FRA_DST, prefix.network_address.packed)
    body += _attribute(FRA_PRIORITY, struct.pack("=I", PREFERENCE))
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, 1, 0) + body


class _Rules:
    """The routing rules of this thread's namespace."""

    def __init__(self) -> None:
        self.nl = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self.nl.settimeout(2)

    def ask(self, kind: int, flags: int, family: int, prefix: Network | None, done: int) -> bool:
        """False where the kernel answers *done*, or knows no such family. Raises OSError."""
        self.nl.send(_request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, family, prefix))
        code = -struct.unpack_from("=i", self.nl.recv(4096), _HEAD.size)[0]
        if code in (done, errno.EAFNOSUPPORT):
            return False
        if code:
            raise OSError(code, f"routing rule {prefix or ''}: {os.strerror(code)}")
        return True

    def add(self, prefixes: Iterable[Network]) -> None:
        for prefix in prefixes:
            family = socket.AF_INET if prefix.version == 4 else socket.AF_INET6
            self.ask(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family, prefix, errno.EEXIST)

    def drop(self) -> None:
        """All of ours, whichever prefixes they are for."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for _unused in range(RULES_MAX):
                if not self.ask(RTM_DELRULE, 0, family, None, errno.ENOENT):
                    break


def _apply(prefixes: Iterable[Network] | None) -> None:
    rules = _Rules()
    with rules.nl:
        if prefixes is None:
            rules.drop()
        else:
            rules.add(prefixes)


def block(fd: int, prefixes: Iterable[Network]) -> None:
    """Cut the namespace behind *fd* off from *prefixes*. Raises OSError.

    Blocks for the life of a thread, well under a millisecond; so does :func:`unblock`.
    """
    netns.inside(fd, lambda: _apply(prefixes))


def unblock(fd: int) -> None:
    """Undo every :func:`block`, whoever did it. Raises OSError."""
    netns.inside(fd, lambda: _apply(None))
