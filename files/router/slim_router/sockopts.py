# SPDX-License-Identifier: Apache-2.0
"""What a worker sets on each host connection before it hands it over: mark, priority,
type of service, pacing (docs/architecture.md, "Rates and classes of service").

The mark names endpoint and class to the host's queues; the other three speak for
themselves. They are set once: from the hand-over on the worker holds no descriptor, so
that a change reaches what is connected later. Rates of an endpoint change at once
all the same, since they are the queues' and not the sockets'.
"""

from __future__ import annotations

import socket
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

SO_MAX_PACING_RATE = 47  # include/uapi/asm-generic/socket.h


@dataclass(frozen=True, slots=True)
class Treatment:
    """Of the connections to one port. Zero everywhere is what a socket has from birth."""

    mark: int = 0  # SO_MARK
    priority: int = 0  # SO_PRIORITY, 0 to 7
    tos: int = 0  # DSCP in the upper six bits, as IP_TOS has it
    pacing: int = 0  # SO_MAX_PACING_RATE, bytes of payload per second; 0 is without limit

    def options(self) -> list[tuple[int, int, int | bytes]]:
        """(level, name, value) for an IPv4 socket, in the order to set them in."""
        wanted: list[tuple[int, int, int | bytes]] = []
        if self.mark:
            wanted.append((socket.SOL_SOCKET, socket.SO_MARK, self.mark))
        if self.tos:
            wanted.append((socket.IPPROTO_IP, socket.IP_TOS, self.tos))
        if self.tos or self.priority:
            # Behind IP_TOS, which sets a priority of its own choice: ip(7).
            wanted.append((socket.SOL_SOCKET, socket.SO_PRIORITY, self.priority))
        if self.pacing:
            # Eight bytes since Linux 4.20; four end at 34 Gbit/s.
            value = struct.pack("=Q", self.pacing)
            wanted.append((socket.SOL_SOCKET, SO_MAX_PACING_RATE, value))
        return wanted


NONE = Treatment()
Options = tuple[tuple[int, int, int | bytes], ...]


class Treatments:
    """An endpoint's treatments by port: the service's, on both sides of a connection."""

    def __init__(self, message: dict[str, Any]) -> None:
        """*message* is the ``limits`` of the supervisor, which has checked it."""
        self.default = Treatment(**message["default"])
        plain = _both(self.default)
        rules = [(first, last, _both(Treatment(**f))) for first, last, f in message["ports"]]
        # From each of these ports on, up to the next one, the same rule wins: the first that
        # names it. (A table of all ports would take megabytes.)
        self._starts = sorted({0}.union(*({first, last + 1} for first, last, _unused in rules)))
        self._options = [
            next((made for first, last, made in rules if first <= port <= last), plain)
            for port in self._starts
        ]

    def dress(self, sock: socket.socket, port: int) -> None:
        """Set what connections to *port* have. Raises OSError."""
        four, six = self._options[bisect_right(self._starts, port) - 1]
        for level, name, value in six if sock.family == socket.AF_INET6 else four:
            sock.setsockopt(level, name, value)


def _both(treatment: Treatment) -> tuple[Options, Options]:
    """The options of an IPv4 and of an IPv6 socket. The latter may carry either protocol."""
    four = treatment.options()
    six = list(four)
    if treatment.tos:
        six.insert(0, (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, treatment.tos))
    return tuple(four), tuple(six)


def treatments(message: dict[str, Any] | None) -> Treatments | None:
    """None where there is nothing to set: all that the set-up path then looks at."""
    if not message:
        return None
    made = Treatments(message)
    return made if made.default != NONE or message["ports"] else None
