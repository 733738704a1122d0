# SPDX-License-Identifier: Apache-2.0
"""Closed or open: the walk over nftables' and iptables' rules, and the opening of both.

    col-HEX: one network namespace, eth0 192.0.2.1/24, rules of the test's own

The kernel itself is asked nothing here: the walk has to agree with what the
rules say. Tests with a namespace need root, nft and iptables.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.module_utils import _firewall

RULES = [
    {"protocol": "tcp", "ports": ["6790", "20000-20999"]},
    {"protocol": "udp", "ports": ["8472"]},
]
PEERS = ["192.0.2.2", "192.0.2.3"]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "nft", "iptables")),
    reason="needs root, iproute2, nftables and iptables",
)


def packet(port: int = 6790, source: str = "192.0.2.2", protocol: str = "tcp") -> Any:
    return _firewall.Packet(protocol, port, source, "eth0", "192.0.2.1")


@pytest.mark.parametrize(
    ("text", "opened"),
    [
        ("", True),
        ("-P INPUT ACCEPT", True),
        ("-P INPUT DROP", False),
        ("-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", False),
        ("-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 6000:7000 -j ACCEPT", True),
        ("-P INPUT DROP\n-A INPUT -s 192.0.2.0/24 -i eth0 -j ACCEPT", True),
        ("-P INPUT DROP\n-A INPUT ! -s 192.0.2.0/24 -j ACCEPT", False),
        ("-P INPUT DROP\n-A INPUT -i lo -j ACCEPT", False),
        ("-P INPUT DROP\n-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", False),
        ("-P INPUT DROP\n-A INPUT -p udp -m multiport --dports 53,6790 -j ACCEPT", False),
        ("-P INPUT DROP\n-A INPUT -p tcp -m multiport --dports 53,6790 -j ACCEPT", True),
        ("-P INPUT ACCEPT\n-A INPUT -j REJECT --reject-with icmp-port-unreachable", False),
        ("-P INPUT ACCEPT\n-N X\n-A INPUT -j X\n-A X -p tcp -j DROP", False),
        ("-P INPUT DROP\n-N X\n-A INPUT -j X\n-A X -p udp -j ACCEPT\n-A X -j RETURN", False),
        ("-P INPUT ACCEPT\n-N X\n-A INPUT -g X\n-A INPUT -j DROP\n-A X -j RETURN", True),
        # Not understood: neither opens nor closes.
        ("-P INPUT DROP\n-A INPUT -m recent --rcheck -j ACCEPT", False),
        ("-P INPUT ACCEPT\n-A INPUT -m set --match-set bad src -j DROP", True),
    ],
)
def test_iptables(text: str, opened: bool) -> None:
    assert (_firewall.IptablesRules(text).verdict(packet()) is None) is opened


class Space:
    """The namespace with its rules."""

    def __init__(self) -> None:
        self.name = f"col-{secrets.token_hex(3)}"
        self.enter = ["ip", "netns", "exec", self.name]

    def run(self, *words: str, stdin: str | None = None) -> str:
        return subprocess.run(
            [*self.enter, *words], input=stdin, capture_output=True, text=True, check=True
        ).stdout


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    subprocess.run(["ip", "netns", "add", made.name], check=True)
    try:
        made.run("ip", "link", "add", "eth0", "type", "bridge")
        made.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth0")
        yield made
    finally:
        subprocess.run(["ip", "netns", "del", made.name], check=False)


ARGUMENTS: dict[str, Any] = {"rules": RULES, "sources": PEERS, "address": "192.0.2.1"}
CHECK = {"_ansible_check_mode": True}
HEAD = (
    "table inet filter {\n chain input {\n type filter hook input priority filter; policy drop;\n"
)


def spread(text: str) -> str:
    """The same for nft, which wants a line for each rule and each closing brace."""
    return text.replace("; ", ";\n").replace("}}", "\n}\n}\n").replace(" }\n", "\n}\n")


@needs_root
@pytest.mark.parametrize(
    ("rules", "opened"),
    [
        ("", True),
        (HEAD + "}}", False),
        (HEAD.replace("policy drop", "policy accept") + "}}", True),
        (
            HEAD + "iifname lo accept; ct state established,related accept; tcp dport 22 accept }}",
            False,
        ),
        (HEAD + "ip saddr 192.0.2.0/24 accept }}", True),
        (
            HEAD + "ip saddr { 192.0.2.2, 192.0.2.3 } tcp dport { 6790, 20000-20999 } accept }}",
            False,
        ),
        (HEAD + "iifname { eth0, eth1 } meta l4proto { tcp, udp } accept }}", True),
        (HEAD + "ip saddr 192.0.2.2 accept }}", False),
        (HEAD + "tcp dport 6790-20999 accept; udp dport 8472 accept }}", True),
        (HEAD + "tcp dport 6790-20998 accept; udp dport 8472 accept }}", False),
        (
            HEAD
            + "ct state vmap { established : accept, new : jump in }\n}\nchain in { accept; }}",
            True,
        ),
        (
            HEAD + "ct state vmap { established : accept, related : accept, invalid : drop }\n}}",
            False,
        ),
        (HEAD.replace("policy drop", "policy accept") + "ip saddr != 10.0.0.0/8 reject }}", False),
        (
            "table inet f { set ok { type ipv4_addr; elements = { 192.0.2.2, 192.0.2.3 }; }\n"
            "chain i { type filter hook input priority 0; policy drop; ip saddr @ok accept; }}",
            True,
        ),
        # A later base chain drops what an earlier one has accepted.
        (
            HEAD + "accept }\n chain late { type filter hook input priority 10; policy drop; }}",
            False,
        ),
        # A forward or output chain is none of our business.
        (HEAD.replace("hook input", "hook forward") + "}}", True),
    ],
)
def test_nftables(space: Space, run_module: Any, rules: str, opened: bool) -> None:
    space.run("nft", "-f", "-", stdin=spread(rules))
    answer = run_module("slim_firewall", {**ARGUMENTS, **CHECK}, space.enter)
    assert (answer["closed"] == []) is opened, answer
    assert answer["changed"] is not opened


@needs_root
@pytest.mark.parametrize(
    "rules",
    [
        ["nft", "-f", "-", HEAD + "tcp dport 22 accept }}"],
        [
            "iptables-restore",
            "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n",
        ],
    ],
    ids=["nftables", "iptables"],
)
def test_open_again_and_close(space: Space, run_module: Any, rules: list[str]) -> None:
    text = spread(rules[-1]) if rules[0] == "nft" else rules[-1]
    space.run(*rules[:-1], stdin=text)
    before = space.run("nft", "-s", "list", "ruleset")
    checked = run_module("slim_firewall", {**ARGUMENTS, **CHECK}, space.enter)
    assert checked["changed"] is True
    assert any("tcp 6790 from 192.0.2.2" in line for line in checked["closed"])
    assert space.run("nft", "-s", "list", "ruleset") == before, "check mode has changed something"

    first = run_module("slim_firewall", ARGUMENTS, space.enter)
    assert first["changed"] is True, first
    again = run_module("slim_firewall", ARGUMENTS, space.enter)
    assert (again["changed"], again["closed"]) == (False, [])
    # The unit that a role writes must be the same every time.
    assert again["commands"] == first["commands"]
    # Nobody but the other hosts was admitted.
    stranger = run_module(
        "slim_firewall", {**ARGUMENTS, **CHECK, "sources": ["198.51.100.1"]}, space.enter
    )
    assert stranger["closed"]

    fewer = {**ARGUMENTS, "sources": PEERS[:1]}
    assert run_module("slim_firewall", fewer, space.enter)["changed"] is True
    assert PEERS[1] not in space.run("nft", "list", "ruleset")
    assert run_module("slim_firewall", fewer, space.enter)["changed"] is False

    # After a reboot the unit's commands alone must do.
    gone = run_module("slim_firewall", {"state": "absent"}, space.enter)
    assert gone["changed"] is True
    assert space.run("nft", "-s", "list", "ruleset") == before
    assert run_module("slim_firewall", {"state": "absent"}, space.enter)["changed"] is False
    for command in first["commands"]:
        space.run("/bin/sh", "-c", command)
    assert run_module("slim_firewall", ARGUMENTS, space.enter)["changed"] is False


def test_rich_rules_of_firewalld() -> None:
    assert _firewall.firewalld_rules(RULES[1:], PEERS[:1]) == [
        'rule family="ipv4" source address="192.0.2.2" port port="8472" protocol="udp" accept'
    ]
