# SPDX-License-Identifier: Apache-2.0
"""Address prefixes in the form that messages have: 16 bytes and a length of 0 to 128.

IPv4 is mapped (``10.0.0.0/8`` is ``::ffff:10.0.0.0``, length 104), but an IPv6
prefix never holds an IPv4 address, ``::/0`` included: who writes it means IPv6.
Workers import this; the standard library's networks take several times the room.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import NamedTuple

from .wire import unpack_addr

MAPPED = 0xFFFF << 32
"""::ffff:0:0 (RFC 4291, 2.5.5.2)."""


class PrefixError(ValueError):
    """Text that is no prefix: what is wrong (*cause*) and what to do (*step*)."""

    def __init__(self, cause: str, step: str) -> None:
        super().__init__(f"{cause}; {step}")
        self.cause = cause
        self.step = step


class Prefix(NamedTuple):
    """The addresses from *first* on that share its *length* leading bits, of 128."""

    first: int
    length: int

    @property
    def last(self) -> int:
        """The last address."""
        return self.first | (1 << 128 - self.length) - 1

    @property
    def is_v4(self) -> bool:
        """Does it hold IPv4 addresses? Then it holds no others."""
        # A shorter prefix cannot have all of the sixteen ones before its host bits.
        return self.first >> 32 == 0xFFFF

    def covers(self, other: Prefix) -> bool:
        """Is every address of *other* one of ours?"""
        return (
            self.length <= other.length
            and self.first == other.first >> (128 - self.length) << (128 - self.length)
            and self.is_v4 == other.is_v4
        )

    def holds(self, address: int) -> bool:
        """Is *address* one of ours?"""
        return self.covers(Prefix(address, 128))

    def __str__(self) -> str:
        length = self.length - 96 if self.is_v4 else self.length
        return f"{unpack_addr(self.first.to_bytes(16, 'big'))}/{length}"


V4 = Prefix(MAPPED, 96)
"""0.0.0.0/0."""
V6 = Prefix(0, 0)
"""::/0."""


def parse(text: str) -> Prefix:
    """*text* is ADDRESS/LENGTH, or an address, which stands for itself alone.

    A prefix of IPv4-mapped addresses is that of the IPv4 addresses. Raises PrefixError.
    """
    address, slash, tail = text.partition("/")
    if "%" in address:
        raise PrefixError(
            f"{_shown(text)} has a scope id", "leave out the % and what follows it, up to the /"
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        raw = socket.inet_pton(family, address)
    except (OSError, ValueError):  # ValueError: a NUL, or no text (lone surrogates)
        raise PrefixError(
            f"{_shown(text)} is not an IPv4 or IPv6 prefix",
            "write it as ADDRESS/LENGTH, as in 10.44.0.0/16",
        ) from None
    bits = 8 * len(raw)
    length = bits
    if slash:
        if not (tail.isascii() and tail.isdigit() and len(tail) <= 3 and int(tail) <= bits):
            raise PrefixError(
                f"{_shown(text)} has no length from 0 to {bits} after the /",
                f"write it as ADDRESS/LENGTH, as in {address}/{bits}",
            )
        length = int(tail)
    first = int.from_bytes(raw, "big")
    if bits == 32:
        first, length = first | MAPPED, length + 96
    elif first >> 32 == 0xFFFF and length < 96:
        raise PrefixError(
            f"{text} reaches beyond the IPv4-mapped addresses, ::ffff:0:0/96",
            "write the IPv4 and the IPv6 addresses as prefixes of their own",
        )
    proper = Prefix(first >> (128 - length) << (128 - length), length)
    if proper.first != first:
        raise PrefixError(
            f"{text} has bits set after its length",
            f"write {proper}, or {address} for this one address",
        )
    return proper


def collapse(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The same addresses in the fewest prefixes, sorted: equal sets compare equal."""
    kept: list[Prefix] = []
    # A stable second sort puts IPv4 first, away from the IPv6 prefixes around it.
    for each in sorted(sorted(set(prefixes)), key=lambda prefix: not prefix.is_v4):
        if kept and kept[-1].covers(each):
            continue
        new = each
        while kept and _are_halves(kept[-1], new):
            new = Prefix(kept.pop().first, new.length - 1)
        kept.append(new)
    return tuple(kept)


def _are_halves(low: Prefix, high: Prefix) -> bool:
    """Do the two, in order, make up the prefix that is one bit shorter?"""
    return (
        low.length == high.length
        and low.is_v4 == high.is_v4
        and low.length > (V4.length if low.is_v4 else 0)
        and low.first ^ high.first == 1 << 128 - low.length
    )


def _shown(text: str) -> str:
    """*text* quoted, and cut where somebody put a book."""
    return repr(text if len(text) <= 80 else text[:80] + "...")
