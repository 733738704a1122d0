# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""Would the host's firewall let a packet in?

Private to this collection. Walks nftables' JSON (libnftables-json(5)) and the
output of C(iptables -S) for one packet at a time. A rule with a match that is
not understood is passed over: it neither opens nor closes. So a "closed" may be
wrong where an exotic rule opens the port, and then slim_host_firewall: ignored
says that somebody knows better; an "open" may be wrong behind an exotic drop,
which the reachability check of slim_verify finds.
"""

from __future__ import annotations

import hashlib
import ipaddress
import shlex

MARK = "slim.overlay"
# Names of iptables' own tables, which `iptables -S` shows better than nft does.
COMPAT_TABLES = ("filter", "mangle", "nat", "raw", "security")
JUMPS_MAX = 32
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}


class Packet:
    """A first packet of a connection (or a datagram) that comes in."""

    def __init__(self, protocol, port, source, device="", address=""):
        self.protocol = protocol
        self.port = port
        self.source = source
        self.device = device
        self.address = address

    def text(self):
        """For messages."""
        return f"{self.protocol} {self.port} from {self.source}"


def packets(rules, sources, device="", address=""):
    """The packets to try: both ends of every range, from every source."""
    for source in sources:
        for rule in rules:
            for ports in rule["ports"]:
                for port in sorted({int(part) for part in str(ports).split("-")}):
                    yield Packet(rule["protocol"], port, source, device, address)


# --- nftables ---------------------------------------------------------------


def _same(value, right, sets):
    """Whether value (text or number) is in what the right side stands for, or None."""
    if isinstance(right, str) and right.startswith("@"):
        elements = sets.get(right[1:])
        return None if elements is None else _same(value, {"set": elements}, sets)
    if isinstance(right, dict):
        if "set" in right:
            elements = right["set"] if isinstance(right["set"], list) else [right["set"]]
            answers = [_same(value, element, sets) for element in elements]
            if True in answers:
                return True
            return None if None in answers else False
        if "elem" in right:
            return _same(value, right["elem"].get("val"), sets)
        if "prefix" in right:
            prefix = right["prefix"]
            try:
                network = ipaddress.ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
                return ipaddress.ip_address(str(value)) in network
            except ValueError:
                return False
        if "range" in right:
            low, high = right["range"]
            try:
                return int(low) <= int(value) <= int(high)
            except (TypeError, ValueError):
                pass
            try:
                return (
                    ipaddress.ip_address(low)
                    <= ipaddress.ip_address(value)
                    <= ipaddress.ip_address(high)
                )
            except (TypeError, ValueError):
                return None
        return None
    if isinstance(right, list):
        return _same(value, {"set": right}, sets)
    if isinstance(right, str) and right.endswith("*") and isinstance(value, str):
        return value.startswith(right[:-1])
    return str(value) == str(right)


def _value(left, packet):
    """What the packet has where a match looks, or None where that is not known."""
    if not isinstance(left, dict):
        return None
    if "payload" in left:
        payload = left["payload"]
        key = (payload.get("protocol"), payload.get("field"))
        if key in (("tcp", "dport"), ("udp", "dport"), ("th", "dport")):
            if key[0] in ("th", packet.protocol):
                return packet.port
            return ""  # A match on another protocol's port: false, not unknown.
        if key[0] in ("tcp", "udp", "icmp", "icmpv6", "ip6", "sctp") and key[0] != packet.protocol:
            return ""
        return {
            ("ip", "saddr"): packet.source,
            ("ip", "daddr"): packet.address or None,
            ("ip", "protocol"): packet.protocol,
        }.get(key)
    if "meta" in left:
        return {
            "l4proto": packet.protocol,
            "nfproto": "ipv4",
            "protocol": "ip",
            "iifname": packet.device or None,
            "iif": packet.device or None,
            "pkttype": "host",
        }.get(left["meta"].get("key"))
    if "ct" in left:
        return {"state": "new", "direction": "original"}.get(left["ct"].get("key"))
    if "fib" in left and left["fib"].get("result") == "type":
        return "local" if "daddr" in left["fib"].get("flags", []) else None
    return None


def _matches(match, packet, sets):
    value = _value(match["left"], packet)
    if value is None:
        return None
    answer = _same(value, match["right"], sets)
    if answer is None and match["op"] == "in":
        return None
    if match["op"] == "!=":
        return None if answer is None else not answer
    if match["op"] in ("==", "in"):
        return answer
    try:
        value, right = int(value), int(match["right"])
    except (TypeError, ValueError):
        return None
    return {
        "<": value < right,
        ">": value > right,
        "<=": value <= right,
        ">=": value >= right,
    }.get(match["op"])


class NftRules:
    """One `nft -j list ruleset`."""

    def __init__(self, document, skip_compat=False):
        self.chains = {}
        self.bases = []
        self.sets = {}
        for item in document.get("nftables", []):
            if "chain" in item:
                chain = item["chain"]
                key = (chain["family"], chain["table"], chain["name"])
                self.chains.setdefault(key, [])
                compat = skip_compat and key[0] == "ip" and key[1] in COMPAT_TABLES
                if (
                    chain.get("hook") in ("prerouting", "input")
                    and chain.get("type") == "filter"
                    and key[0] in ("ip", "inet")
                    and not compat
                ):
                    self.bases.append((chain["hook"] == "input", chain.get("prio", 0), key, chain))
            elif "rule" in item:
                rule = item["rule"]
                key = (rule["family"], rule["table"], rule["chain"])
                self.chains.setdefault(key, []).append(rule)
            elif "set" in item:
                found = item["set"]
                key = (found["family"], found["table"])
                self.sets.setdefault(key, {})[found["name"]] = found.get("elem", [])
        # prerouting first, then by priority, as the kernel does.
        self.bases.sort(key=lambda base: (base[0], base[1] if isinstance(base[1], int) else 0))

    def verdict(self, packet):
        """None where the packet comes in, else (chain key, text of what stops it)."""
        for _hook, _priority, key, chain in self.bases:
            answer, why = self._walk(key, packet, 0)
            if answer in (None, "return"):
                answer, why = chain.get("policy", "accept"), "its policy"
            if answer != "accept":
                return key, why
        return None

    def _walk(self, key, packet, depth):
        """(verdict or None at the chain's end, what gave it)."""
        if depth > JUMPS_MAX:
            return None, ""
        family, table, name = key
        sets = self.sets.get((family, table), {})
        for rule in self.chains.get(key, []):
            verdict = self._rule(rule, packet, sets)
            if verdict is None:
                continue
            kind, target = verdict
            why = f"rule {rule.get('handle')} of chain {name}"
            if kind in ("jump", "goto"):
                answer, inner = self._walk((family, table, target), packet, depth + 1)
                if answer not in (None, "return"):
                    return answer, inner
                if kind == "goto":
                    return None, ""
                continue
            return kind, why
        return None, ""

    @staticmethod
    def _rule(rule, packet, sets):
        """The rule's verdict for the packet, or None where it has none or is not understood."""
        for part in rule.get("expr", []):
            if "match" in part:
                if not _matches(part["match"], packet, sets):
                    return None
            elif "vmap" in part:
                return _vmap(part["vmap"], packet, sets)
            elif "limit" in part or "xt" in part:
                return None
            else:
                for kind in ("accept", "drop", "reject", "return"):
                    if kind in part:
                        return kind, ""
                for kind in ("jump", "goto"):
                    if kind in part:
                        return kind, part[kind]["target"]
        return None

    def ours(self):
        """The rules that this collection put in: list of (chain key, handle, comment)."""
        return [
            (key, rule["handle"], rule["comment"])
            for key, rules in self.chains.items()
            for rule in rules
            if str(rule.get("comment", "")).startswith(MARK)
        ]


def _vmap(vmap, packet, sets):
    value = _value(vmap.get("key"), packet)
    data = vmap.get("data")
    if isinstance(data, dict):
        data = data.get("set", [])
    if value is None or not isinstance(data, list):
        return None
    for pair in data:
        key, verdict = pair
        if _same(value, key, sets):
            kind = next(iter(verdict))
            body = verdict[kind]
            return kind, body["target"] if isinstance(body, dict) else ""
    return None


# --- iptables ---------------------------------------------------------------


class IptablesRules:
    """One `iptables -S` of the filter table."""

    def __init__(self, text):
        self.policies = {}
        self.chains = {}
        self.lines = []
        for line in text.splitlines():
            words = shlex.split(line)
            if len(words) < 3 and words[:1] != ["-N"]:
                continue
            if words[0] == "-P":
                self.policies[words[1]] = words[2]
            elif words[0] == "-A":
                self.chains.setdefault(words[1], []).append(words[2:])
                self.lines.append(words)

    def verdict(self, packet):
        """None where the packet comes in, else (chain name, text of what stops it)."""
        answer, why = self._walk("INPUT", packet, 0)
        if answer in (None, "RETURN"):
            answer, why = self.policies.get("INPUT", "ACCEPT"), "its policy"
        return None if answer == "ACCEPT" else ("INPUT", why)

    def _walk(self, chain, packet, depth):
        if depth > JUMPS_MAX:
            return None, ""
        for number, words in enumerate(self.chains.get(chain, []), 1):
            matched, kind, target = self._rule(words, packet)
            if not matched or target is None:
                continue
            if target in ("ACCEPT", "DROP", "REJECT", "RETURN"):
                return target, f"rule {number} of chain {chain}"
            if target not in self.chains:
                continue
            answer, why = self._walk(target, packet, depth + 1)
            if answer not in (None, "RETURN"):
                return answer, why
            if kind == "-g":
                return None, ""
        return None, ""

    @staticmethod
    def _rule(words, packet):
        """(matches, -j or -g, target); a rule that is not understood does not match."""
        index = 0
        negate = False
        kind = target = None
        while index < len(words):
            word = words[index]
            argument = words[index + 1] if index + 1 < len(words) else ""
            if word == "!":
                negate = True
                index += 1
                continue
            if word in ("-j", "-g"):
                # Options of the target follow; they change nothing for us.
                kind, target = word, argument
                break
            if word == "-m":
                known = argument in ("tcp", "udp", "multiport", "comment", "conntrack", "state")
                answer = True if known or argument == packet.protocol else None
            else:
                answer = _iptables_match(word, argument, packet)
            if answer is not None and negate:
                answer = not answer
            if not answer:
                return False, None, None
            negate = False
            index += 2
        return True, kind, target

    def ours(self):
        """The rules that this collection put in, as lists of words after -A."""
        return [
            words[1:]
            for words in self.lines
            if "--comment" in words and words[words.index("--comment") + 1].startswith(MARK)
        ]


def _iptables_match(option, argument, packet):
    """True, False, or None where the option is not understood."""
    if option == "-p":
        return argument in (packet.protocol, "all", str(PROTOCOLS.get(packet.protocol)))
    if option in ("-s", "-d"):
        value = packet.source if option == "-s" else packet.address
        if not value:
            return None
        try:
            return ipaddress.ip_address(value) in ipaddress.ip_network(argument, strict=False)
        except ValueError:
            return None
    if option == "-i":
        if not packet.device:
            return None
        if argument.endswith("+"):
            return packet.device.startswith(argument[:-1])
        return packet.device == argument
    if option in ("--dport", "--dports"):
        for part in argument.split(","):
            low, _colon, high = part.partition(":")
            try:
                if int(low) <= packet.port <= int(high or low):
                    return True
            except ValueError:
                return None
        return False
    if option in ("--ctstate", "--state"):
        return "NEW" in argument.split(",")
    if option == "--comment":
        return True
    return None


# --- what opens a port -------------------------------------------------------


def digest(rules, sources):
    """Names one set of openings, so that another set is told from it by the comment."""
    opened = sorted((rule["protocol"], [str(port) for port in rule["ports"]]) for rule in rules)
    text = repr((opened, sorted(sources)))
    return f"{MARK}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def nft_commands(key, rules, sources):
    """Commands (lists of words after nft) that open the ports at the head of a chain."""
    family, table, chain = key
    comment = f'"{digest(rules, sources)}"'
    hosts = f"{{ {', '.join(sorted(sources))} }}"
    return [
        [
            "insert",
            "rule",
            family,
            table,
            chain,
            "ip",
            "saddr",
            hosts,
            rule["protocol"],
            "dport",
            f"{{ {', '.join(str(port) for port in rule['ports'])} }}",
            "accept",
            "comment",
            comment,
        ]
        for rule in rules
    ]


def iptables_commands(rules, sources):
    """Commands (lists of words after iptables) that open the ports at the head of INPUT."""
    comment = digest(rules, sources)
    return [
        [
            "-I",
            "INPUT",
            "-s",
            source,
            "-p",
            rule["protocol"],
            "-m",
            "multiport",
            "--dports",
            ",".join(str(port).replace("-", ":") for port in rule["ports"]),
            "-m",
            "comment",
            "--comment",
            comment,
            "-j",
            "ACCEPT",
        ]
        for source in sorted(sources)
        for rule in rules
    ]


def firewalld_rules(rules, sources):
    """Rich rules (firewalld.richlanguage(5)) that open the ports."""
    return [
        f'rule family="ipv4" source address="{source}" '
        f'port port="{port}" protocol="{rule["protocol"]}" accept'
        for source in sorted(sources)
        for rule in rules
        for port in rule["ports"]
    ]
