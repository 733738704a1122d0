# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of its peers: where they are, what they lease, who they are."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from hashlib import blake2s

WINDOW = 8192  # nonces that may be outstanding at once under one pair key


@dataclass(slots=True)
class Location:
    """Where hellos to one peer go, or why none can (``reason`` of docs/protocol.md)."""

    vip: bytes
    found: bool
    reason: int
    address: str = ""
    port: int = 0
    key_id: int = 0
    mac: blake2s | None = None
    # Microseconds of the clock: a worker that starts anew under the same key is
    # ahead of its predecessor, which used less than one nonce a microsecond.
    nonce: int = field(default_factory=lambda: time.time_ns() // 1000)

    def next_nonce(self) -> int:
        self.nonce += 1
        return self.nonce

    def target(self, family: int) -> tuple[str, int]:
        """Socket address of the peer's data port for a socket of *family* (2 or 10)."""
        if family == 10 and ":" not in self.address:
            return ("::ffff:" + self.address, self.port)
        return (self.address, self.port)


@dataclass(slots=True)
class Lease:
    """Leave to connect to one (vip, port) until ``until`` (monotonic seconds)."""

    location: Location
    port: int
    until: float
    period: float
    next_port: int
    renewing: bool = False


@dataclass(slots=True)
class Pair:
    """A peer that may send hellos to us under one trunk key, and the nonces seen."""

    mac: blake2s
    top: int = 0
    seen: int = 0

    def fresh(self, nonce: int) -> bool:
        """True once for each nonce; False for a replay or one older than the window."""
        if nonce > self.top:
            shift = nonce - self.top
            self.seen = ((self.seen << shift) | 1) & ((1 << WINDOW) - 1) if shift < WINDOW else 1
            self.top = nonce
            return True
        age = self.top - nonce
        if age >= WINDOW or self.seen >> age & 1:
            return False
        self.seen |= 1 << age
        return True
