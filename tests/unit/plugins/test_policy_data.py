# SPDX-License-Identifier: Apache-2.0
"""The policy as data on the controller: what is wrong with it, and lists made of other lists."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.filter.acl_from_csv import acl_from_csv
from ansible_collections.slim.overlay.plugins.filter.acl_from_iptables import acl_from_iptables
from ansible_collections.slim.overlay.plugins.filter.policy_problems import policy_problems
from ansible_collections.slim.overlay.plugins.filter.policy_summary import policy_summary
from ansible_collections.slim.overlay.plugins.filter.policy_warnings import policy_warnings
from ansible_collections.slim.overlay.plugins.filter.status_rows import FilterModule
from ansible_collections.slim.overlay.plugins.filter.table import table
from ansible_collections.slim.overlay.plugins.plugin_utils import _policy

from slim_router import policy
from slim_router.reader import ConfigError

GOOD: dict[str, Any] = {
    "default": "deny",
    "rules": [
        {"id": "web", "action": "allow", "destinations": ["10.44.1.7"], "ports": [80, "8000-8080"]},
        {"id": "v6", "action": "allow", "sources": ["fd44::/64"], "tenant": "blue"},
    ],
}


class Text(str):
    """Stands for Ansible's own kinds of strings."""


def with_rule(**fields: Any) -> dict[str, Any]:
    return {"default": "deny", "rules": [{"id": "r", "action": "deny", **fields}]}


def refused(value: dict[str, Any]) -> bool:
    """Would the router refuse it? The judgement that ours must agree with."""
    try:
        policy.parse({"version": 1, "revision": 0, **value})
    except ConfigError:
        return True
    return False


def test_a_good_policy_has_no_problems() -> None:
    assert policy_problems(GOOD) == []
    assert policy_problems({**GOOD, "rules": []}) == []
    assert policy_problems({**GOOD, "version": 1, "revision": 7}) == [], "as acl --json prints it"


BAD: list[tuple[Any, str]] = [
    ([], "slim_policy: a list, not a mapping"),
    ({}, "default: missing"),
    ({"default": "deny"}, "rules: missing"),
    ({"default": "drop", "rules": []}, "default: 'drop' is not an action"),
    ({"default": "deny", "rules": {}}, "rules: a object, not a list"),
    ({"default": "deny", "rules": [], "extra": 1}, "unknown key 'extra'"),
    ({"default": "deny", "rules": ["x"]}, "rule 1: a string"),
    (with_rule(action="drop"), "rule 1 (r): action: 'drop' is not an action"),
    (with_rule(action=None), "rule 1 (r): action"),
    (with_rule(id=7), "rule 1: id: 7 is not an id"),
    (with_rule(sources=["10.44.0.1/8"]), "rule 1 (r): sources: 10.44.0.1/8 has bits set"),
    (with_rule(sources=[]), "rule 1 (r): sources: an empty list"),
    (with_rule(destinations=["db"]), "rule 1 (r): destinations: 'db' is not an IPv4"),
    (with_rule(ports=[70000]), "rule 1 (r): ports: 70000 is not from 1 to 65535"),
    (with_rule(ports=["90-80"]), "rule 1 (r): ports: '90-80' ends before"),
    (with_rule(ports=[True]), "rule 1 (r): ports: True is not a port"),
    (with_rule(tenant="a b"), "rule 1 (r): tenant"),
    (with_rule(comment="a\nb"), "rule 1 (r): comment: holds a control"),
    (with_rule(port=80), "rule 1 (r): unknown key 'port'"),
    (with_rule(**{"5": 80}), "rule 1 (r): unknown key '5'"),
    ({"default": "deny", "rules": [{"action": "deny"}]}, "rule 1: id: missing"),
]
"""What is refused, and part of the sentence that says so."""


@pytest.mark.parametrize(("value", "words"), BAD)
def test_a_problem_names_rule_field_cause_and_step(value: Any, words: str) -> None:
    found = policy_problems(value)
    assert any(words in sentence for sentence in found), found
    if isinstance(value, dict):
        assert refused(value)


def test_every_problem_is_told_and_not_the_first_alone() -> None:
    bad = {
        "default": "maybe",
        "rules": [
            {"id": "a", "action": "drop", "sources": ["x"], "ports": [0]},
            *GOOD["rules"],
            {"id": "web", "action": "deny", "ports": [70000]},
        ],
    }
    found = policy_problems(bad, "group_vars")
    assert len(found) == 6, found
    assert found[0].startswith("group_vars: default")
    assert all(": rule 1 (a): " in sentence for sentence in found[1:4])
    assert "rule 4 (web): ports" in found[4]
    assert "rule 4 (web): id: rule 2 has it already" in found[5]


def test_the_number_of_rules_and_of_sentences_is_bounded() -> None:
    many = [{"id": f"r{n}", "action": "deny"} for n in range(policy.RULES_MAX + 1)]
    found = policy_problems({"default": "deny", "rules": many})
    assert len(found) == 1
    assert f"{policy.RULES_MAX} are possible" in found[0]
    wrong = [{"id": f"r{n}", "action": "drop"} for n in range(1000)]
    found = policy_problems({"default": "deny", "rules": wrong})
    assert len(found) == _policy.PROBLEMS_MAX + 1
    assert "correct these first" in found[-1]


def test_types_are_called_by_their_names_whatever_ansible_makes_of_them() -> None:
    value = {Text("default"): Text("deny"), Text("rules"): Text("none")}
    assert policy_problems(value) == [
        "slim_policy: rules: a string, not a list; give a list, [] if there is none"
    ]


def test_the_router_is_loaded_under_a_name_of_its_own() -> None:
    assert _policy.router("policy") is not policy
    assert _policy.router("policy").RULES_MAX == policy.RULES_MAX


def test_shadowed_and_contradictory_rules_are_warnings_of_good_lists_only() -> None:
    rules = [
        {"id": "all", "action": "allow", "sources": ["10.44.0.0/16"]},
        {"id": "part", "action": "allow", "sources": ["10.44.1.0/24"]},
        {"id": "late", "action": "deny", "sources": ["10.44.1.7"]},
    ]
    found = policy_warnings({"default": "deny", "rules": rules}, "ours")
    assert [sentence.partition(":")[0] for sentence in found] == ["ours", "ours"]
    assert "rule 2 (part): never matches, rule 1 (all) covers it and says the same" in found[0]
    assert "rule 3 (late)" in found[1]
    assert "contradicts" in found[1]
    assert policy_warnings({"default": "deny", "rules": [*rules, {"id": 1}]}) == []
    assert policy_warnings("x") == []


# --- iptables -------------------------------------------------------------------------

SAVED = """\
# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [0:0]
-A FORWARD -j DROP
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:34]
:DOCKER-USER - [0:0]
[5:300] -A INPUT -p tcp --dport 22 -j DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s 10.44.1.0/24 -d 10.44.2.7/32 -p tcp -m tcp --dport 5432 -m comment --comment "web to db" -j ACCEPT
[1:60] -A FORWARD -s 10.44.0.0/255.255.0.0 -p tcp -m multiport --dports 80,443,8000:8080,:99 -j ACCEPT
-A FORWARD -p tcp -m tcp --sport 80 -j ACCEPT
-A FORWARD ! -s 10.44.9.0/24 -p tcp -j DROP
-A FORWARD -p udp -m udp --dport 53 -j ACCEPT
-A FORWARD -i eth0 -j DROP
-A FORWARD -j DOCKER-USER
-A FORWARD -m limit --limit 5/min -j LOG
-A FORWARD -s 10.44.3.0/24 -p tcp -m state --state NEW -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j REJECT
-A FORWARD -s 0.0.0.0/0 -d 10.44.4.4 -j REJECT --reject-with icmp-port-unreachable
-A FORWARD -s 10.44.0.0/255.0.255.0 -j DROP
-A FORWARD -p tcp -m tcp --dport 70000 -j DROP
-A FORWARD -m set --match-set bad src -j DROP
COMMIT
"""


def test_a_saved_filter_becomes_a_policy_and_nothing_is_left_out_in_silence() -> None:
    got = acl_from_iptables(SAVED)
    assert got["default"] == "deny"
    assert got["rules"] == [
        {
            "id": "forward-2", "action": "allow", "sources": ["10.44.1.0/24"],
            "destinations": ["10.44.2.7/32"], "ports": ["5432"], "comment": "web to db",
        },
        {
            "id": "forward-3", "action": "allow", "sources": ["10.44.0.0/16"],
            "ports": ["80", "443", "8000-8080", "1-99"],
        },
        {"id": "forward-10", "action": "deny", "sources": ["10.44.3.0/24"]},
        {"id": "forward-11", "action": "deny", "destinations": ["10.44.4.4"]},
    ]  # fmt: skip
    assert policy_problems({"default": got["default"], "rules": got["rules"]}) == []
    left = got["not_imported"]
    lines = [line for line in SAVED.splitlines()[5:] if "-A FORWARD" in line]
    assert len(left) + len(got["rules"]) == len(lines)
    reasons = [(entry["opens"], entry["reason"]) for entry in left]
    for (opens, reason), (wanted, words) in zip(
        reasons,
        [
            (False, "state RELATED,ESTABLISHED"),
            (False, "source ports"),
            (True, "negation"),
            (False, "about udp"),
            (True, "interface eth0"),
            (True, "its target DOCKER-USER"),
            (False, "its target LOG"),
            (True, "mask"),
            (True, "70000"),
            (True, "the match set"),
        ],
        strict=True,
    ):
        assert words in reason
        assert opens is wanted, reason
    assert left[0]["line"] == 11
    assert SAVED.splitlines()[left[0]["line"] - 1] == left[0]["text"]


def test_the_listing_of_iptables_is_read_as_well() -> None:
    text = "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-A FORWARD -d fd44::7/128 -p tcp -j DROP\n"
    got = acl_from_iptables(text, "v6")
    assert (got["default"], got["not_imported"]) == ("allow", [])
    assert got["rules"] == [{"id": "v6-1", "action": "deny", "destinations": ["fd44::7/128"]}]


@pytest.mark.parametrize("text", ["", "hello", "*nat\n:FORWARD DROP [0:0]\n", '-A FORWARD "x'])
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="acl_from_iptables"):
        acl_from_iptables(text)


# --- CSV ------------------------------------------------------------------------------


def test_a_table_becomes_a_policy() -> None:
    text = (
        "id,action,sources,destinations,ports,tenant,comment\n"
        'web,allow,10.44.1.0/24 10.44.2.0/24,any,"80; 443",,front\n'
        ",DROP,,10.44.2.7,,blue,\n"
        "\n"
        "bad,allow,,10.44.2.0/8,,,\n"
        "web,deny,,,,,\n"
        "x,maybe,,,,,\n"
        "y,allow,,,,,,,\n"
    )
    got = acl_from_csv(text, "allow")
    assert got["default"] == "allow"
    assert got["rules"] == [
        {
            "id": "web", "action": "allow", "sources": ["10.44.1.0/24", "10.44.2.0/24"],
            "ports": ["80", "443"], "comment": "front",
        },
        {"id": "line-3", "action": "deny", "destinations": ["10.44.2.7"], "tenant": "blue"},
    ]  # fmt: skip
    assert policy_problems({"default": got["default"], "rules": got["rules"]}) == []
    assert [(entry["line"], entry["opens"]) for entry in got["not_imported"]] == [
        (5, False), (6, True), (7, True), (8, False),
    ]  # fmt: skip
    assert "already that of line 2" in got["not_imported"][1]["reason"]


def test_a_table_with_semicolons() -> None:
    got = acl_from_csv("action;ports\nallow;80\n")
    assert got["rules"] == [{"id": "line-2", "action": "allow", "ports": ["80"]}]


@pytest.mark.parametrize("text", ["", "id,action,port\n", "id,sources\n", "action,action\n"])
def test_a_table_with_other_columns_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="acl_from_csv: the first line"):
        acl_from_csv(text)


# --- results --------------------------------------------------------------------------


def test_the_summary_of_a_push_names_every_host() -> None:
    row = {
        "endpoint": "a1", "direction": "out", "src": "10.44.0.1", "sport": 40000,
        "dst": "10.44.0.2", "dport": 80, "path": "slim", "rule": "no", "hsrc": "192.0.2.1",
        "hsport": 40001, "hdst": "192.0.2.2", "hdport": 20000,
    }  # fmt: skip
    peer = {
        **row, "endpoint": "b1", "direction": "in", "hsrc": "192.0.2.2", "hsport": 20000,
        "hdst": "192.0.2.1", "hdport": 40001,
    }  # fmt: skip
    answers = {
        "n1": {
            "changed": True, "revision": 3, "revoked": [row], "revoked_total": 1, "seconds": 0.0123,
        },
        "n2": {"changed": False, "revision": 3, "revoked": [peer], "revoked_total": 3, "seconds": 0},
        "n3": {"failed": True, "msg": "no router"},
        "n4": {"unreachable": True, "msg": "no route"},
        "n5": {},
        "n6": {"failed": False, "kind": "no-router", "msg": "no router"},
    }  # fmt: skip
    got = policy_summary(answers)
    assert [host["state"] for host in got["hosts"]] == [
        "changed", "ok", "FAILED", "UNREACHABLE", "NOT ASKED", "no router yet",
    ]  # fmt: skip
    assert (got["revoked_total"], got["failed"]) == (3, ["n3", "n4", "n5"]), "two are not named"
    assert got["revoked"] == [
        {
            "hosts": ["n1", "n2"], "src": "10.44.0.1", "sport": 40000, "dst": "10.44.0.2",
            "dport": 80, "path": "slim", "rule": "no",
        }
    ]  # fmt: skip
    assert policy_summary(answers, True)["hosts"][0]["state"] == "would change"
    lines = table(got["hosts"])
    assert lines[0].split() == ["HOST", "STATE", "REVISION", "REVOKED", "MS", "PROBLEM"]
    assert lines[1].split() == ["n1", "changed", "3", "1", "12.3", "-"]


def test_the_table_of_a_fleet() -> None:
    held = {"revision": 4, "default": "deny", "rules": 2, "state": "in-force", "cause": ""}
    answer = {
        "status": {"version": "0.1.0", "policy": {**held, "incomplete": [{"endpoint": "web"}]}},
        "endpoints": [{"state": "up"}, {"state": "waiting"}],
        "peers": [{"state": "up"}],
        "connections": {"slim": 5, "overlay": 1, "incomplete": ["db"]},
    }
    bad: dict[str, Any] = {
        **answer,
        "status": {"version": "0.1.0", "policy": {**held, "state": "unreadable", "cause": "x"}},
    }
    rows = FilterModule().filters()["status_rows"]({"n1": answer, "n2": bad, "n3": {}})
    assert rows[0] == {
        "host": "n1", "state": "up", "problem": "", "version": "0.1.0", "endpoints": "1/2",
        "peers": "1/1", "slim": 5, "overlay": 1, "policy": 4, "default": "deny", "rules": 2,
        "incomplete": ["db", "web"],
    }  # fmt: skip
    assert "unreadable" in rows[1]["problem"]
    assert rows[2]["state"] == "NOT ASKED"
    assert "db, web" in table(rows, ["host", "incomplete"])[1]
    assert table([]) == [""]
