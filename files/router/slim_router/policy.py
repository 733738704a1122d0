# SPDX-License-Identifier: Apache-2.0
"""The policy: an ordered list of rules on who may connect to whom; the first match wins.

Data, strict reading from decoded JSON, and the way back. Pure: no files, no
sockets. What is read is normal: two ways to say the same compare equal. How a
connection is judged at speed is matcher.py's business, what a worker is told of
the list slices.py's.

    {"version": 1, "revision": 7, "default": "deny", "rules": [
      {"id": "web", "action": "allow", "sources": ["10.44.0.0/16"],
       "destinations": ["10.44.1.7"], "ports": [80, "8000-8080"],
       "tenant": "blue", "comment": "front end"}]}

Of a rule only ``id`` and ``action`` are needed: without sources, destinations,
ports or tenant (or with null) it is about any. An empty list is refused, because
it reads as "none" to a human. Messages count rules from 1, indexes from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from . import prefix
from .prefix import V4, V6, Prefix, PrefixError
from .reader import FORMAT, ConfigError, Reader, kind, shown
from .whole import is_whole

ACTIONS = ("allow", "deny")

RULES_MAX = 50_000
"""Rules of a policy; a worker's table numbers them with 16 bits."""

LISTED_MAX = 64
"""Prefixes in one field of a rule, and port ranges in a rule, as they are given."""

PARTS_MAX = 500_000
"""Prefixes and port ranges in all: 50,000 rules of 192 would take gigabytes."""

COMMENT_MAX = 256
"""Characters."""

KEYS = ("version", "revision", "default", "rules")
RULE_KEYS = ("id", "action", "sources", "destinations", "ports", "tenant", "comment")

Ports = tuple[int, int]
"""First and last of a range, both included."""

_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_EVERY_PORT: tuple[Ports, ...] = ((1, 65535),)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, in normal form: sorted, joined, () or None where it is about any."""

    id: str  # 1 to 64 of A-Z a-z 0-9 . _ : -
    action: str  # one of ACTIONS
    sources: tuple[Prefix, ...] = ()
    destinations: tuple[Prefix, ...] = ()
    ports: tuple[Ports, ...] = ()  # of the destination
    tenant: str | None = None
    comment: str = ""

    @property
    def allows(self) -> bool:
        """Does it let through what it matches?"""
        return self.action == "allow"

    def matches(self, tenant: str, source: int, destination: int, dport: int) -> bool:
        """Is it about this connection? Addresses as numbers of 128 bits, IPv4 mapped."""
        return (
            self.tenant in (None, tenant)
            and (not self.ports or any(low <= dport <= high for low, high in self.ports))
            and (not self.sources or any(each.holds(source) for each in self.sources))
            and (
                not self.destinations or any(each.holds(destination) for each in self.destinations)
            )
        )

    def __str__(self) -> str:
        """For humans: ``allow 10.44.0.0/16 to any port 80, 8000-8080 (tenant blue)``."""
        words = [self.action, _listing(self.sources), "to", _listing(self.destinations)]
        if self.ports:
            words += ["port", ", ".join(map(ports_text, self.ports))]
        if self.tenant is not None:
            words.append(f"(tenant {self.tenant})")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole list. *revision* tells it from its predecessors."""

    revision: int = 0
    default: str = "allow"  # one of ACTIONS: what no rule matches
    rules: tuple[Rule, ...] = ()

    def same_as(self, other: Policy) -> bool:
        """Does *other* say the same, whatever its revision?"""
        return self.default == other.default and self.rules == other.rules


def first_match(
    policy: Policy, tenant: str, source: bytes, destination: bytes, dport: int
) -> tuple[bool, int]:
    """(allowed, index of the rule or -1), rule by rule: to explain, not for the set-up path.

    Addresses are 16 bytes, IPv4 mapped.
    """
    src, dst = int.from_bytes(source, "big"), int.from_bytes(destination, "big")
    for index, rule in enumerate(policy.rules):
        if rule.matches(tenant, src, dst, dport):
            return rule.allows, index
    return policy.default == "allow", -1


# --- reading ----------------------------------------------------------------


def parse(value: object, where: str = "policy") -> Policy:
    """A checked :class:`Policy` from decoded JSON. Raises ConfigError, which names the rule
    (its number, from 1, and its id), the field, the cause and the next step."""
    reader = Reader(value, where, KEYS)
    reader.version()
    revision = reader.number("revision", 0, 2**63 - 1)
    default = _action(reader, "default")
    listed = reader.get("rules")
    if not isinstance(listed, list):
        raise reader.fail(
            "rules", f"a {kind(listed)}, not a list", "give a list, [] if there is none"
        )
    if len(listed) > RULES_MAX:
        raise reader.fail(
            "rules",
            f"{len(listed)} rules, {RULES_MAX} are possible",
            "join rules that differ in prefixes or ports only",
        )
    rules: list[Rule] = []
    numbers: dict[str, int] = {}
    parts = 0
    for number, item in enumerate(listed, 1):
        rule = parse_rule(item, f"{where}: {label(number, item)}")
        other = numbers.setdefault(rule.id, number)
        if other != number:
            raise ConfigError(
                f"{where}: rule {number} ({rule.id}): id: rule {other} ({rule.id}) has it"
                " already; give each rule an id of its own"
            )
        parts += len(rule.sources) + len(rule.destinations) + len(rule.ports)
        if parts > PARTS_MAX:
            raise ConfigError(
                f"{where}: rule {number} ({rule.id}): with it the rules have more than"
                f" {PARTS_MAX} prefixes and port ranges; use wider prefixes"
            )
        rules.append(rule)
    return Policy(revision, default, tuple(rules))


def label(number: int, item: object) -> str:
    """How messages name a rule of which nothing is known to be right."""
    name = item.get("id") if isinstance(item, dict) else None
    if isinstance(name, str) and _ID.fullmatch(name):
        return f"rule {number} ({name})"
    return f"rule {number}"


def parse_rule(item: object, where: str) -> Rule:
    """A checked :class:`Rule` from decoded JSON. Raises ConfigError."""
    reader = Reader(item, where, RULE_KEYS)
    name = reader.get("id")
    if not isinstance(name, str) or not _ID.fullmatch(name):
        raise reader.fail(
            "id",
            f"{shown(name)} is not an id",
            "give 1 to 64 letters (A-Z, a-z), digits, and . _ : -, in quotes",
        )
    tenant = reader.value.get("tenant")
    if tenant is not None:
        tenant = reader.text("tenant")
    return Rule(
        id=name,
        action=_action(reader, "action"),
        sources=_prefixes(reader, "sources"),
        destinations=_prefixes(reader, "destinations"),
        ports=_ports(reader),
        tenant=tenant,
        comment=_comment(reader),
    )


def _action(reader: Reader, name: str) -> str:
    value = reader.get(name)
    if not isinstance(value, str) or value not in ACTIONS:
        raise reader.fail(
            name, f"{shown(value)} is not an action", f"choose one of {', '.join(ACTIONS)}"
        )
    return value


def _list(reader: Reader, name: str) -> list[Any]:
    """The items of an optional field; [] where it is not there."""
    value = reader.value.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise reader.fail(
            name, f"a {kind(value)}, not a list", "give a list, or leave it out for any"
        )
    if not value:
        raise reader.fail(
            name, "an empty list, which nothing would match", "leave it out if any is meant"
        )
    if len(value) > LISTED_MAX:
        raise reader.fail(
            name,
            f"{len(value)} entries, {LISTED_MAX} are possible",
            "divide them among several rules",
        )
    return value


def _prefixes(reader: Reader, name: str) -> tuple[Prefix, ...]:
    found = []
    for item in _list(reader, name):
        if not isinstance(item, str):
            raise reader.fail(
                name, f"{shown(item)} is a {kind(item)}, not a prefix", "write it as a string"
            )
        try:
            found.append(prefix.parse(item))
        except PrefixError as error:
            raise reader.fail(name, error.cause, error.step) from None
    joined = prefix.collapse(found)
    return () if joined == (V4, V6) else joined


def _ports(reader: Reader) -> tuple[Ports, ...]:
    found = sorted(_range(reader, item) for item in _list(reader, "ports"))
    joined: list[Ports] = []
    for low, high in found:
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    made = tuple(joined)
    return () if made == _EVERY_PORT else made


def _range(reader: Reader, item: object) -> Ports:
    step = 'give a number from 1 to 65535, or a range as in "8000-8080"'
    if is_whole(item):
        low = high = item
    else:
        fits = _PORTS.fullmatch(item) if isinstance(item, str) else None
        if fits is None:
            raise reader.fail("ports", f"{shown(item)} is not a port or a range of ports", step)
        low = int(fits[1])
        high = int(fits[2] or low)
    if not (1 <= low <= 65535 and 1 <= high <= 65535):
        raise reader.fail("ports", f"{shown(item)} is not from 1 to 65535", step)
    if low > high:
        raise reader.fail("ports", f"{item!r} ends before it begins", f'write it as "{high}-{low}"')
    return low, high


def _comment(reader: Reader) -> str:
    value = reader.value.get("comment")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise reader.fail("comment", f"a {kind(value)}, not text", "give a string")
    if len(value) > COMMENT_MAX:
        raise reader.fail(
            "comment", f"{len(value)} characters, {COMMENT_MAX} are possible", "shorten it"
        )
    if not all(map(_is_plain, value)):
        raise reader.fail("comment", "holds a control character", "write it in one plain line")
    return value


def _is_plain(character: str) -> bool:
    """No control, no lone surrogate, no mark that turns the direction of writing; spaces of
    any width are plain, line and paragraph separators are not."""
    return character.isprintable() or (
        character.isspace() and character > "\x9f" and character not in "\u2028\u2029"
    )


# --- writing ----------------------------------------------------------------


def dump(policy: Policy) -> dict[str, Any]:
    """The canonical JSON form: ``parse(dump(policy)) == policy``."""
    return {
        "version": FORMAT,
        "revision": policy.revision,
        "default": policy.default,
        "rules": [dump_rule(rule) for rule in policy.rules],
    }


def dump_rule(rule: Rule) -> dict[str, Any]:
    """One rule in its canonical form, without the fields that are about any."""
    made: dict[str, Any] = {"id": rule.id, "action": rule.action}
    for name in ("sources", "destinations"):
        prefixes: tuple[Prefix, ...] = getattr(rule, name)
        if prefixes:
            made[name] = [str(each) for each in prefixes]
    if rule.ports:
        made["ports"] = [low if low == high else f"{low}-{high}" for low, high in rule.ports]
    if rule.tenant is not None:
        made["tenant"] = rule.tenant
    if rule.comment:
        made["comment"] = rule.comment
    return made


def ports_text(ports: Ports) -> str:
    """``80`` or ``8000-8080``."""
    low, high = ports
    return str(low) if low == high else f"{low}-{high}"


def _listing(prefixes: Iterable[Prefix]) -> str:
    return ", ".join(map(str, prefixes)) or "any"
