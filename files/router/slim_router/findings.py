# SPDX-License-Identifier: Apache-2.0
"""Rules of a policy that can never match: for validators and operators, not for workers."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from .policy import Policy, Ports, Rule
from .prefix import Prefix

SECONDS_MAX = 20.0
"""CPU time after which we stop looking. 10,000 plain rules take well under a second."""

BLOCK_RULES = 2048
BLOCK_PARTS = 16_384
"""Earlier rules, and their prefixes and ranges, that are compared at a time: their number
squared is the bits that an index of them takes."""

Part = TypeVar("Part", Prefix, Ports)
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that an earlier one covers. Numbers count from 1."""

    number: int
    id: str
    by_number: int
    by_id: str
    contradicts: bool  # else it is redundant: the earlier rule has the same action

    def __str__(self) -> str:
        if self.contradicts:
            said = "contradicts it; move it before that rule, or remove it"
        else:
            said = "says the same; remove it"
        return (
            f"rule {self.number} ({self.id}): never matches, rule {self.by_number}"
            f" ({self.by_id}) covers it and {said}"
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, in the order of the rules, and how much was looked at."""

    found: tuple[Finding, ...]
    compared: int  # pairs of rules, in order, that are known to be right or found
    pairs: int  # that there are

    @property
    def complete(self) -> bool:
        """Were all pairs compared?"""
        return self.compared == self.pairs


def findings(policy: Policy, seconds: float = SECONDS_MAX) -> Findings:
    """Each rule that one earlier rule covers fully, with the first such rule.

    Covered means: every tenant, source, destination and port of the later rule is one of the
    earlier rule's too. Exact for one earlier rule. Not found: rules that several earlier ones
    cover together (two halves of a prefix in two rules), and rules that say what the default
    would do anyway. *seconds* of CPU time bound the search; ``complete`` tells whether they
    were enough.
    """
    rules = policy.rules
    pairs = len(rules) * (len(rules) - 1) // 2
    deadline = time.thread_time() + seconds
    found: dict[int, Finding] = {}
    compared = 0
    for begin, end in _blocks(rules):
        index = _Index(rules[begin:end])
        for number in range(begin + 1, len(rules)):
            earlier = min(number, end) - begin
            if number not in found:
                try:
                    by = index.cover(rules[number], earlier, deadline)
                except TimeoutError:
                    return Findings(_sorted(found), compared, pairs)
                if by is not None:
                    by += begin
                    found[number] = Finding(
                        number + 1, rules[number].id, by + 1, rules[by].id,
                        rules[number].action != rules[by].action,
                    )  # fmt: skip
            compared += earlier
    return Findings(_sorted(found), compared, pairs)


def _sorted(found: dict[int, Finding]) -> tuple[Finding, ...]:
    return tuple(found[number] for number in sorted(found))


def _blocks(rules: Sequence[Rule]) -> Iterator[tuple[int, int]]:
    """(first, one past the last) of runs of rules that are not too large for an index."""
    begin = parts = 0
    for number, rule in enumerate(rules):
        size = len(rule.sources) + len(rule.destinations) + len(rule.ports) + 1
        if number > begin and (number - begin >= BLOCK_RULES or parts + size > BLOCK_PARTS):
            yield begin, number
            begin, parts = number, 0
        parts += size
    if begin < len(rules):
        yield begin, len(rules)


def covers(one: Rule, other: Rule) -> bool:
    """Does *one* match whatever *other* does?"""
    return (
        one.tenant in (None, other.tenant)
        and _hold(one.ports, other.ports, _range_in_range)
        and _hold(one.sources, other.sources, Prefix.covers)
        and _hold(one.destinations, other.destinations, Prefix.covers)
    )


def _hold(
    outer: Sequence[Part], inner: Sequence[Part], holds: Callable[[Part, Part], bool]
) -> bool:
    # Both are joined as far as they can be, so that what lies in several lies in one.
    if not outer:
        return True
    return bool(inner) and all(any(holds(big, small) for big in outer) for small in inner)


def _range_in_range(outer: Ports, inner: Ports) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


class _Index:
    """Some rules, each a bit of large numbers: which of them can cover a given one?"""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._sources = _Axis(_spans(rule.sources) for rule in rules)
        self._destinations = _Axis(_spans(rule.destinations) for rule in rules)
        self._ports = _Axis(rule.ports or _WHOLE for rule in rules)
        self._of_any = 0
        self._of_tenant: dict[str, int] = {}
        for bit, rule in enumerate(rules):
            if rule.tenant is None:
                self._of_any |= 1 << bit
            else:
                self._of_tenant[rule.tenant] = self._of_tenant.get(rule.tenant, 0) | 1 << bit

    def cover(self, rule: Rule, count: int, deadline: float) -> int | None:
        """The first of our first *count* rules that covers *rule*.

        Raises TimeoutError when the thread has used its CPU time.
        """
        able = self._of_any & (1 << count) - 1
        if rule.tenant is not None:
            able |= self._of_tenant.get(rule.tenant, 0) & (1 << count) - 1
        able = self._ports.narrow(able, rule.ports or _WHOLE)
        able = self._sources.narrow(able, _spans(rule.sources))
        able = self._destinations.narrow(able, _spans(rule.destinations))
        # Almost always the first one does: the axes know the ends of each span only, and
        # the address family; a rule with two prefixes may hold both ends and not the middle.
        while True:
            if time.thread_time() > deadline:
                raise TimeoutError
            if not able:
                return None
            bit = (able & -able).bit_length() - 1
            if covers(self._rules[bit], rule):
                return bit
            able &= able - 1


_WHOLE: tuple[Span, ...] = ((0, 1 << 130),)


def _spans(prefixes: Sequence[Prefix]) -> Sequence[Span]:
    """First and last addresses; IPv4 lies beside IPv6, not in it."""
    if not prefixes:
        return _WHOLE
    spans = []
    for each in prefixes:
        aside = 1 << 128 if each.is_v4 else 0
        spans.append((each.first + aside, each.last + aside))
    return spans


class _Axis:
    """Which rules hold a point of a line: the line in segments, a number of bits for each."""

    def __init__(self, spans: Iterable[Sequence[Span]]) -> None:
        turns: dict[int, int] = {0: 0}
        for number, those in enumerate(spans):
            for first, last in those:
                # A span that begins where another of the same rule ended turns nothing.
                turns[first] = turns.get(first, 0) ^ 1 << number
                turns[last + 1] = turns.get(last + 1, 0) ^ 1 << number
        self._starts = sorted(turns)
        self._sets = []
        inside = 0
        for start in self._starts:
            inside ^= turns[start]
            self._sets.append(inside)

    def narrow(self, able: int, spans: Sequence[Span]) -> int:
        """Those of *able* that hold both ends of each span."""
        for span in spans:
            if not able:
                break
            for point in span:
                able &= self._sets[bisect_right(self._starts, point) - 1]
        return able
