# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the FORWARD chain out of the text of iptables-save or iptables -S.

Private to this collection. A packet filter and a policy of connections are not the
same: what has no counterpart is reported with its line and reason, never left out in
silence. Options: iptables(8), iptables-extensions(8).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from ansible_collections.slim.overlay.plugins.plugin_utils import _policy

CHAIN = "FORWARD"
ACTIONS = {"ACCEPT": "allow", "DROP": "deny", "REJECT": "deny"}
# What says more of a REJECT; connections are refused with a reset anyway.
IGNORED_WITH_VALUE = ("--reject-with", "-c", "--set-counters")
MATCHES = ("tcp", "multiport", "comment", "conntrack", "state")
# Each flag that must be looked at, and of those the ones that must be set: a packet
# that begins a connection.
SYN = ("FIN,SYN,RST,ACK", "SYN")


class Skip(Exception):
    """A rule that a policy cannot say; the text is the reason."""


@dataclass
class Rule:
    """What was understood of one line."""

    action: str = ""
    sources: list[str] = field(default_factory=list)
    destinations: list[str] = field(default_factory=list)
    ports: list[str] = field(default_factory=list)
    comment: str = ""


def parse(text, prefix="forward"):
    """{default, rules, not_imported} of the chain.

    :raises ValueError: there is no such chain in the text.
    """
    default = ""
    rules, left = [], []
    table = "filter"
    position = 0
    for number, raw in enumerate(str(text).splitlines(), 1):
        line = raw.strip()
        if line.startswith("*"):
            table = line[1:]
        if table != "filter" or not line or line[0] in "#*":
            continue
        words = _words(line)
        if words[:1] == [f":{CHAIN}"] and len(words) > 1:
            default = words[1]
        elif words[:2] == ["-P", CHAIN] and len(words) > 2:
            default = words[2]
        elif words[:2] in (["-A", CHAIN], ["--append", CHAIN]):
            position += 1
            try:
                rules.append(_rule(words[2:], f"{prefix}-{position}"))
            except Skip as reason:
                left.append(_skipped(number, line, words, str(reason)))
    if default not in ("ACCEPT", "DROP"):
        raise ValueError(
            f"no policy of the chain {CHAIN} in the table filter; give the output of iptables-save "
            "or of iptables -S"
        )
    return {"default": ACTIONS[default], "rules": rules, "not_imported": left}


def _words(line):
    """A line as iptables-restore splits it, without the counters in front (-c)."""
    if line.startswith("["):
        line = line.partition("]")[2].strip()
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ValueError(f"{line!r}: {error}; give the text as iptables-save wrote it") from error


def _target(words):
    for flag in ("-j", "--jump", "-g", "--goto"):
        if flag in words[:-1]:
            return words[words.index(flag) + 1]
    return ""


def _skipped(number, line, words, reason):
    """With *opens*: may the import allow something that this rule kept out?"""
    return {
        "line": number,
        "text": line,
        "reason": reason,
        "opens": _target(words) not in ("ACCEPT", "LOG", "NFLOG", "", "MARK", "CONNMARK", "TCPMSS"),
    }


def _rule(words, name):
    target = _target(words)
    if target not in ACTIONS:
        raise Skip(
            f"its target {target} is none of {', '.join(ACTIONS)}, and other chains are not read"
            if target
            else "it has no target"
        )
    rule = Rule(ACTIONS[target])
    rest = iter(words)
    for word in rest:
        if word == "!":
            raise Skip(f"it says what does not match (! {next(rest, '')}); a rule has no negation")
        _option(rule, word, rest)
    made = {"id": name, "action": rule.action}
    for key in ("sources", "destinations", "ports", "comment"):
        value = getattr(rule, key)
        if value:
            made[key] = value
    refused = _policy.rule_refused(made)
    if refused:
        raise Skip(refused)
    return made


def _value(word, rest):
    value = next(rest, None)
    if value is None:
        raise Skip(f"{word} has no value")
    return value


def _option(rule, word, rest):
    """Take in one option and its value. Raises Skip."""
    if word in ("-j", "--jump", *IGNORED_WITH_VALUE):
        _value(word, rest)
        if word in ("-c", "--set-counters"):
            _value(word, rest)
    elif word in ("-s", "--source", "--src"):
        rule.sources += _prefixes(_value(word, rest))
    elif word in ("-d", "--destination", "--dst"):
        rule.destinations += _prefixes(_value(word, rest))
    elif word in ("-p", "--protocol"):
        protocol = _value(word, rest)
        if protocol not in ("tcp", "6", "all", "0"):
            raise Skip(f"it is about {protocol}; a policy is about TCP, the rest takes the overlay")
    elif word in ("-m", "--match"):
        match = _value(word, rest)
        if match not in MATCHES:
            raise Skip(f"a policy has nothing like the match {match}")
    elif word == "--comment":
        rule.comment = _comment(_value(word, rest))
    elif word in ("--dport", "--destination-port", "--dports", "--destination-ports"):
        rule.ports += [_ports(each) for each in _value(word, rest).split(",")]
    elif word in ("--sport", "--source-port", "--sports", "--source-ports", "--ports", "--port"):
        raise Skip(
            "it looks at source ports, which a policy does not; answers belong to their connection "
            "and need no rule"
        )
    elif word in ("--ctstate", "--state"):
        states = _value(word, rest).split(",")
        if "NEW" not in states:
            raise Skip(
                f"it is about packets of state {','.join(states)}; a policy judges connections, and "
                "their packets follow"
            )
    elif word == "--syn" or (word == "--tcp-flags" and (next(rest, ""), next(rest, "")) == SYN):
        pass  # the packet that begins a connection: what a policy is about
    elif word in ("-i", "-o", "--in-interface", "--out-interface"):
        raise Skip(f"it looks at the interface {_value(word, rest)}; a policy knows addresses only")
    else:
        raise Skip(f"a policy has nothing like {word!r}")


def _prefixes(text):
    """iptables takes several, and masks written out; everybody is no prefix at all."""
    found = []
    for each in text.split(","):
        address, _slash, mask = each.partition("/")
        if "." in mask:
            mask = _length(mask, each)
        if mask != "0":
            found.append(f"{address}/{mask}" if mask else address)
    return found


def _length(mask, text):
    """Bits of a mask such as 255.255.0.0."""
    try:
        parts = [int(part) for part in mask.split(".")]
    except ValueError as error:
        raise Skip(f"{text} has no mask that could be read") from error
    bits = "".join(f"{part:08b}" for part in parts)
    if len(bits) != 32 or "01" in bits:
        raise Skip(f"the mask of {text} is not a prefix")
    return str(bits.count("1"))


def _ports(text):
    """80, 80:90, :1023 and 1024: as a policy has them."""
    low, colon, high = text.partition(":")
    if not colon:
        return text
    # 0 is no port that anybody connects to.
    low = "1" if low in ("", "0") else low
    return f"{low}-{high or '65535'}"


def _comment(text):
    limit = _policy.router("policy").COMMENT_MAX
    return "".join(char if char.isprintable() else " " for char in text)[:limit]
