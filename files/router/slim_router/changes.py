# SPDX-License-Identifier: Apache-2.0
"""What a new policy changes, rule by rule: for check mode, diff mode and humans.

Rules are the same rule if they have the same id. Of those that stay, the fewest
that explain the new order are called moved.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .policy import RULE_KEYS, Policy, Rule, dump_rule

FIELDS = tuple(name for name in RULE_KEYS if name != "id")


@dataclass(frozen=True, slots=True)
class Change:
    """One rule whose fields differ; *fields* names them."""

    number: int  # in the new list, from 1
    before: Rule
    after: Rule
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diff:
    """All that differs between two policies but their revisions. Numbers count from 1."""

    default: tuple[str, str] | None  # (before, after) where it differs
    added: tuple[tuple[int, Rule], ...]  # by their new number
    removed: tuple[tuple[int, Rule], ...]  # by their old number
    changed: tuple[Change, ...]
    moved: tuple[tuple[str, int, int], ...]  # (id, old number, new number)

    def __bool__(self) -> bool:
        return bool(self.default or self.added or self.removed or self.changed or self.moved)

    def to_json(self) -> dict[str, Any]:
        """For modules and the admin socket."""
        return {
            "default": list(self.default) if self.default else None,
            "added": [{"number": number, **dump_rule(rule)} for number, rule in self.added],
            "removed": [{"number": number, **dump_rule(rule)} for number, rule in self.removed],
            "changed": [
                {
                    "id": change.after.id,
                    "number": change.number,
                    "fields": list(change.fields),
                    "before": dump_rule(change.before),
                    "after": dump_rule(change.after),
                }
                for change in self.changed
            ],
            "moved": [{"id": name, "from": old, "to": new} for name, old, new in self.moved],
        }

    def lines(self) -> list[str]:
        """For humans, one line a change."""
        found = []
        if self.default:
            found.append(f"default: {self.default[0]} -> {self.default[1]}")
        found += [f"- {number} {rule.id}: {rule}" for number, rule in self.removed]
        found += [f"+ {number} {rule.id}: {rule}" for number, rule in self.added]
        for change in self.changed:
            was, now = dump_rule(change.before), dump_rule(change.after)
            words = [f"{name} {_word(was, name)} -> {_word(now, name)}" for name in change.fields]
            found.append(f"~ {change.number} {change.after.id}: {'; '.join(words)}")
        found += [f"> {name}: {old} -> {new}" for name, old, new in self.moved]
        return found


def diff(old: Policy, new: Policy) -> Diff:
    """What *new* changes of *old*."""
    before = {rule.id: number for number, rule in enumerate(old.rules, 1)}
    after = {rule.id: number for number, rule in enumerate(new.rules, 1)}
    kept = [rule.id for rule in new.rules if rule.id in before]
    changed = []
    for name in kept:
        was, now = old.rules[before[name] - 1], new.rules[after[name] - 1]
        fields = tuple(field for field in FIELDS if getattr(was, field) != getattr(now, field))
        if fields:
            changed.append(Change(after[name], was, now, fields))
    still = _longest_rise([before[name] for name in kept])
    return Diff(
        default=(old.default, new.default) if old.default != new.default else None,
        added=tuple((after[rule.id], rule) for rule in new.rules if rule.id not in before),
        removed=tuple((before[rule.id], rule) for rule in old.rules if rule.id not in after),
        changed=tuple(changed),
        moved=tuple(
            (name, before[name], after[name]) for name in kept if before[name] not in still
        ),
    )


def _longest_rise(numbers: Sequence[int]) -> set[int]:
    """The members of a longest rising subsequence of different *numbers*."""
    ends: list[int] = []  # the smallest end of a rise of each length
    at: list[int] = []  # where in numbers it is
    before: list[int] = []  # of each number: where the one before it in its rise is
    for place, number in enumerate(numbers):
        length = bisect_left(ends, number)
        before.append(at[length - 1] if length else -1)
        if length == len(ends):
            ends.append(number)
            at.append(place)
        else:
            ends[length], at[length] = number, place
    found = set()
    place = at[-1] if at else -1
    while place >= 0:
        found.add(numbers[place])
        place = before[place]
    return found


def _word(rule: dict[str, Any], name: str) -> str:
    value = rule.get(name)
    if value is None:
        return "none" if name == "comment" else "any"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return repr(value) if name == "comment" else str(value)
