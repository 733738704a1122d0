# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The policy as data, judged on the controller by the router's own code.

Private to this collection. What a rule may be is written down once, in
files/router/slim_router/policy.py, which is pure Python and travels with the
collection; here it is loaded under a name of its own and asked about every field.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "files" / "router" / "slim_router"
PACKAGE = "_slim_overlay_router"

PROBLEMS_MAX = 200
"""Sentences of one answer: who has more wrong than that does not read them."""

FINDINGS_S = 20.0
"""CPU time for warnings."""

_BASE = {"id": "rule", "action": "deny"}


@functools.cache
def router(name):
    """A module of the router's package; nothing else of the router is touched."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, SOURCES / "__init__.py", submodule_search_locations=[str(SOURCES)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[PACKAGE] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{PACKAGE}.{name}")


def plain(value):
    """Ansible's data without its tags, so that messages call types what YAML calls them."""
    if isinstance(value, dict):
        return {plain(str(key)): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return value


def problems(value, where="slim_policy"):
    """Every reason for which the router would refuse it, and not only the first: each names
    rule, field, cause and next step."""
    found = []
    for sentence in _problems(plain(value), where):
        if len(found) == PROBLEMS_MAX:
            return [*found, f"{where}: and more; correct these first"]
        found.append(sentence)
    return found


def _problems(value, where):
    policy, reader = router("policy"), router("reader")
    if not isinstance(value, dict):
        yield f"{where}: a {reader.kind(value)}, not a mapping; give default and rules"
        return
    for name in sorted(map(str, set(value) - set(policy.KEYS))):
        yield f"{where}: unknown key {name!r}; remove it, the known keys are default, rules"
    # The rest of it with no rules, then the rules one by one.
    head = {name: value[name] for name in ("default",) if name in value}
    yield from _refusal(policy.parse, {"version": 1, "revision": 0, "rules": [], **head}, where)
    rules = value.get("rules")
    if not isinstance(rules, list):
        yield from _refusal(
            policy.parse,
            {"version": 1, "revision": 0, "default": "deny"}
            | ({"rules": rules} if "rules" in value else {}),
            where,
        )
        return
    good = True
    for number, item in enumerate(rules, 1):
        for sentence in _of_rule(policy, item, f"{where}: {policy.label(number, item)}"):
            good = False
            yield sentence
    yield from _twins(policy, rules, where)
    if good:
        # What only the whole list shows: too many rules, prefixes or ranges.
        for sentence in _refusal(
            policy.parse, {"version": 1, "revision": 0, "default": "deny", "rules": rules}, where
        ):
            if "has it already" not in sentence:
                yield sentence


def _refusal(read, *arguments):
    """Nothing, or why it is refused."""
    try:
        read(*arguments)
    except router("reader").ConfigError as error:
        yield str(error)


def _of_rule(policy, item, where):
    """Nothing for a good rule; else every field by itself, beside good ones, so that none
    hides another."""
    whole = list(_refusal(policy.parse_rule, item, where))
    if not whole or not isinstance(item, dict):
        yield from whole
        return
    for name in item:
        if name not in policy.RULE_KEYS:
            yield from _refusal(policy.parse_rule, {**_BASE, name: None}, where)
    for name in policy.RULE_KEYS:
        probe = {key: text for key, text in _BASE.items() if key != name}
        if name in item:
            probe[name] = item[name]
        yield from _refusal(policy.parse_rule, probe, where)


def _twins(policy, rules, where):
    numbers = {}
    for number, item in enumerate(rules, 1):
        name = item.get("id") if isinstance(item, dict) else None
        if not isinstance(name, str):
            continue
        other = numbers.setdefault(name, number)
        if other != number:
            yield (
                f"{where}: {policy.label(number, item)}: id: rule {other} has it already; "
                "give each rule an id of its own"
            )


def warnings(value, where="slim_policy"):
    """Rules that can never match, by one earlier rule. Nothing about a list that is wrong."""
    policy, findings = router("policy"), router("findings")
    value = plain(value)
    if not isinstance(value, dict):
        return []
    try:
        parsed = policy.parse({**value, "version": 1, "revision": 0}, where)
    except router("reader").ConfigError:
        return []
    found = findings.findings(parsed, FINDINGS_S)
    sentences = [f"{where}: {each}" for each in found.found]
    if not found.complete:
        sentences.append(f"{where}: not all pairs of rules were compared: there are too many")
    return sentences


def rule_refused(rule):
    """Why the router would refuse this rule; an empty string for a good one."""
    return "; ".join(_refusal(router("policy").parse_rule, rule, f"rule {rule['id']}"))
