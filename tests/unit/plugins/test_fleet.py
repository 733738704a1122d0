# SPDX-License-Identifier: Apache-2.0
"""The inventory: every way in which it can be wrong is refused with thing, cause, next step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.module_utils import _fleet

SETTINGS: dict[str, Any] = {
    "overlay_networks": ["10.44.0.0/16"],
    "fallback_provider": "vxlan",
    "secure_mode": "none",
    "service_manager": "systemd",
    "host_firewall": "checked",
    "socket_paths": ["/run/slim/shim/router.sock"],
}


def endpoint(name: str, vip: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "vip": vip, "netns": f"/run/netns/{name}", "attach": True, **more}


def hostvars() -> dict[str, Any]:
    return {
        "node1": {
            "slim_host_address": "192.0.2.1",
            "slim_endpoints": [endpoint("web", "10.44.0.1")],
        },
        "node2": {
            "ansible_facts": {"slim_host": {"default_address": "192.0.2.2"}},
            "slim_endpoints": [endpoint("db", "10.44.0.2")],
        },
    }


def problems(variables: dict[str, Any], complete: bool = True, **settings: Any) -> list[str]:
    fleet = _fleet.build(variables, list(variables))
    found = _fleet.problems(fleet, {**SETTINGS, **settings}, complete)
    return [_fleet.sentence(entry) for entry in found]


def test_a_good_inventory_is_accepted() -> None:
    assert problems(hostvars()) == []


def test_addresses_come_from_the_variable_or_from_facts() -> None:
    hosts = _fleet.build(hostvars(), ["node1", "node2"])["hosts"]
    assert (hosts["node1"]["address"], hosts["node2"]["address"]) == ("192.0.2.1", "192.0.2.2")


def test_ansible_own_facts_count_as_well() -> None:
    variables = {"n": {"ansible_facts": {"default_ipv4": {"address": "192.0.2.3"}}}}
    assert _fleet.build(variables, ["n"])["hosts"]["n"]["address"] == "192.0.2.3"


@pytest.mark.parametrize(
    ("node", "change", "words"),
    [
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.1")]}, "already held by node1/web"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.45.0.1")]}, "outside the overlay"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.0")]}, "network or broadcast"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.255.255")]}, "network or broadcast"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.2/16")]}, "not an IPv4 address"),
        ("node2", {"slim_endpoints": [endpoint("web", "10.44.0.2")]}, "taken by node1/web"),
        (
            "node2",
            {"slim_endpoints": [endpoint("db", "10.44.0.1", tenant="other")]},
            "already held by node1/web",
        ),
        ("node2", {"slim_endpoints": [endpoint("", "10.44.0.2")]}, "no name"),
        ("node2", {"slim_endpoints": [endpoint("a b", "10.44.0.2")]}, "white space"),
        ("node2", {"slim_endpoints": [endpoint("db", "")]}, "no vip"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.2", netns="")]}, "no netns"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.2", netns="x")]}, "absolute path"),
        ("node2", {"slim_endpoints": [endpoint("db", "10.44.0.2", attach="yes")]}, "boolean"),
        ("node2", {"slim_endpoints": ["db"]}, "not an endpoint"),
        ("node2", {"slim_endpoints": "db"}, "not an endpoint"),
        (
            "node2",
            {"slim_endpoints": [endpoint("a", "10.44.0.2"), endpoint("b", "10.44.0.3")]},
            None,
        ),
        (
            "node2",
            {
                "slim_endpoints": [
                    endpoint("a", "10.44.0.2", netns="/x"),
                    endpoint("b", "10.44.0.3", netns="/x"),
                ]
            },
            "already that of node2/a",
        ),
        ("node2", {"slim_host_address": ""}, "no address"),
        ("node2", {"slim_host_address": "somewhere"}, "not an IPv4 address"),
        ("node2", {"slim_host_address": "127.0.0.1"}, "cannot be reached"),
        ("node2", {"slim_host_address": "192.0.2.1"}, "already that of host node1"),
        ("node2", {"slim_host_address": "10.44.7.7"}, "contains the host address"),
        ("node2", {"slim_trunk_port": 0}, "not a TCP port"),
        ("node2", {"slim_trunk_port": 20001}, "inside slim_data_ports"),
        ("node2", {"slim_data_ports": [2, 1]}, "not a range"),
        ("node2", {"slim_data_ports": "20000-20999"}, "not a range"),
        (
            "node2",
            {
                "slim_data_ports": [20000, 20000],
                "slim_endpoints": [endpoint("a", "10.44.0.2"), endpoint("b", "10.44.0.3")],
            },
            "1 ports for 2 endpoints",
        ),
    ],
)
def test_what_a_host_can_have_wrong(node: str, change: dict[str, Any], words: str | None) -> None:
    variables = copy.deepcopy(hostvars())
    variables[node].update(change)
    found = problems(variables)
    if words is None:
        assert found == []
        return
    assert any(words in line for line in found), found
    for line in found:
        # thing: cause; next step
        assert line.index(":") < line.index(";")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fallback_provider": "weave"}, "slim_fallback_provider weave"),
        ({"secure_mode": "full"}, "slim_secure_mode full"),
        ({"service_manager": "runit"}, "slim_service_manager runit"),
        ({"host_firewall": "open"}, "slim_host_firewall open"),
        ({"socket_paths": ["/" + "x" * 107]}, "108 bytes"),
        ({"overlay_networks": []}, "not a list"),
        ({"overlay_networks": "10.44.0.0/16"}, "not a list"),
        ({"overlay_networks": ["10.44.0.1/16"]}, "not an IPv4 network"),
        ({"overlay_networks": ["10.44.0.0/16", "10.44.8.0/24"]}, "overlaps 10.44.0.0/16"),
        ({"overlay_networks": ["10.44.0.0/16", "192.0.2.0/24"]}, "contains the host address"),
    ],
)
def test_what_the_settings_can_have_wrong(change: dict[str, Any], words: str) -> None:
    found = problems(hostvars(), **change)
    assert any(words in line for line in found), found


def test_a_socket_path_of_107_bytes_is_good() -> None:
    assert problems(hostvars(), socket_paths=["/" + "x" * 106]) == []


def test_an_empty_group_is_refused() -> None:
    assert any("slim_hosts" in line for line in problems({}))


def test_a_missing_address_waits_for_the_facts() -> None:
    variables = hostvars()
    del variables["node2"]["ansible_facts"]
    assert problems(variables, complete=False) == []
    assert any("host node2: it has no address" in line for line in problems(variables))


def test_map_has_the_format_of_the_architecture() -> None:
    fleet = _fleet.build(hostvars(), ["node2", "node1"])
    assert _fleet.fleet_map(fleet) == {
        "version": 1,
        "revision": 1,
        "hosts": {
            "node1": {"address": "192.0.2.1", "trunk_port": 6790},
            "node2": {"address": "192.0.2.2", "trunk_port": 6790},
        },
        "endpoints": [
            {
                "name": "web",
                "tenant": "default",
                "vip": "10.44.0.1",
                "host": "node1",
                "netns": "/run/netns/web",
            },
            {
                "name": "db",
                "tenant": "default",
                "vip": "10.44.0.2",
                "host": "node2",
                "netns": "/run/netns/db",
            },
        ],
    }


def test_a_map_keeps_its_revision_until_its_content_changes() -> None:
    fleet = _fleet.build(hostvars(), ["node1", "node2"])
    first = _fleet.fleet_map(fleet)
    here = {"revision": 7, "digest": _fleet.digest(first)}
    assert _fleet.fleet_map(fleet, here, [{"revision": 9, "digest": "x"}])["revision"] == 7
    variables = hostvars()
    variables["node2"]["slim_endpoints"] = []
    other = _fleet.build(variables, ["node1", "node2"])
    assert _fleet.fleet_map(other, here, [{"revision": 9}, {}])["revision"] == 10
    assert _fleet.fleet_map(other, {}, [])["revision"] == 1
