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


# --- tenants --------------------------------------------------------------------------

BLUE = {"name": "blue", "vni": 5001}
RED = {"name": "red", "vni": 5002, "cidr": "10.44.8.0/24"}


def tenants(**more: Any) -> dict[str, Any]:
    """node1/web and node2/db of the default tenant; both vips again of tenant blue."""
    variables = hostvars()
    variables["node1"]["slim_endpoints"].append(endpoint("b-web", "10.44.0.1", tenant="blue"))
    variables["node2"]["slim_endpoints"].append(
        endpoint("b-db", "10.44.0.2", tenant="blue", **more)
    )
    return variables


def test_tenants_with_networks_of_their_own_may_use_the_same_vips() -> None:
    assert problems(tenants(), tenants=[BLUE]) == []


@pytest.mark.parametrize("settings", [{}, {"tenants": []}])
def test_without_networks_of_their_own_a_vip_is_there_once(settings: dict[str, Any]) -> None:
    found = problems(tenants(), **settings)
    assert sum("already held by" in line for line in found) == 2, found


def test_within_a_tenant_a_vip_is_there_once() -> None:
    variables = tenants()
    variables["node1"]["slim_endpoints"].append(endpoint("twice", "10.44.0.2", tenant="blue"))
    found = problems(variables, tenants=[BLUE])
    assert len(found) == 1
    assert "vip 10.44.0.2 is already held by node1/twice" in found[0]


def test_a_flat_provider_has_no_tenants() -> None:
    found = problems(tenants(), tenants=[BLUE], fallback_provider="existing")
    assert any("slim_tenants: provider existing has one network" in line for line in found)
    assert sum("already held by" in line for line in found) == 2


def test_a_tenant_that_is_not_listed_is_no_part_of_anybodys_network() -> None:
    variables = tenants()
    variables["node1"]["slim_endpoints"].append(endpoint("g", "10.44.0.9", tenant="bleu"))
    (line,) = problems(variables, tenants=[BLUE])
    assert "endpoint g: tenant bleu is not in slim_tenants" in line


def test_a_host_has_each_name_once() -> None:
    variables = tenants()
    variables["node1"]["slim_endpoints"].append(endpoint("web", "10.44.0.9", tenant="blue",
                                                         netns="/run/netns/x"))  # fmt: skip
    (line,) = problems(variables, tenants=[BLUE])
    assert "host node1 has another endpoint of this name, of tenant default" in line


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("blue", "not a list"),
        (["blue"], "has no name"),
        ([{"vni": 1}], "has no name"),
        ([{"name": "blue"}], "vni None"),
        ([{"name": "blue", "vni": 0}], "vni 0 is not"),
        ([{"name": "blue", "vni": 16777216}], "vni 16777216 is not"),
        ([{"name": "blue", "vni": True}], "vni True is not"),
        ([{"name": "blue", "vni": "7"}], "vni '7' is not"),
        ([BLUE, BLUE], "listed twice"),
        ([BLUE, {"name": "red", "vni": 5001}], "vni 5001 is already that of tenant blue"),
        ([{"name": "blue", "vni": 4242}], "vni 4242 is already that of tenant default"),
        ([BLUE, {"name": "default", "vni": 9}], "without being listed"),
        ([{**BLUE, "vlan": 3}], "unknown key vlan"),
        ([{**BLUE, "cidr": "10.44.0.1/24"}], "not an IPv4 network"),
        ([{**BLUE, "cidr": "10.45.0.0/24"}], "outside the overlay"),
    ],
)
def test_tenants_that_are_refused(listed: Any, words: str) -> None:
    found = problems(tenants(), tenants=listed)
    assert any(words in line for line in found), found
    for line in found:
        assert line.index(":") < line.index(";")


def test_the_largest_vni_is_one() -> None:
    assert problems(tenants(), tenants=[{"name": "blue", "vni": 16777215}]) == []


def test_vips_lie_inside_their_tenants_network() -> None:
    variables = hostvars()
    variables["node1"]["slim_endpoints"] += [
        endpoint("in", "10.44.8.1", tenant="red"), endpoint("out", "10.44.9.1", tenant="red"),
        endpoint("edge", "10.44.8.255", tenant="red"),
    ]  # fmt: skip
    found = problems(variables, tenants=[RED])
    assert len(found) == 2
    assert "endpoint out: vip 10.44.9.1 lies outside the overlay 10.44.8.0/24" in found[0]
    assert "endpoint edge: vip 10.44.8.255 is the network or broadcast address" in found[1]


def test_a_host_is_part_of_the_networks_of_the_tenants_that_it_has() -> None:
    variables = tenants()
    variables["node3"] = {
        "slim_host_address": "192.0.2.3",
        "slim_endpoints": [endpoint("r", "10.44.8.1", tenant="red")],
    }
    fleet = _fleet.build(variables, list(variables))
    assert _fleet.segments(fleet, [RED, BLUE], "node1") == [
        {"name": "blue", "vni": 5001, "overlay": [], "peers": ["192.0.2.2"]}
    ]
    assert _fleet.segments(fleet, [RED, BLUE], "node3") == [
        {"name": "red", "vni": 5002, "overlay": ["10.44.8.0/24"], "peers": []}
    ]
    assert _fleet.segments(fleet, [], "node1") == []


# --- pools ------------------------------------------------------------------------------


def pooled(node1: Any, node2: Any) -> dict[str, Any]:
    variables = hostvars()
    variables["node1"]["slim_pools"] = node1
    variables["node2"]["slim_pools"] = node2
    return variables


SHARED = {"prefix": "10.44.128.0/24"}


def test_hosts_that_name_the_same_pool_share_it() -> None:
    own = {"prefix": "10.44.129.0/24", "tenant": "default"}
    fleet = _fleet.build(pooled([SHARED], [SHARED, own]), ["node1", "node2"])
    made = _fleet.fleet_map(fleet)
    assert made["pools"] == [
        {"tenant": "default", "prefix": "10.44.128.0/24", "hosts": ["node1", "node2"]},
        {"tenant": "default", "prefix": "10.44.129.0/24", "hosts": ["node2"]},
    ]
    assert _fleet.problems(fleet, SETTINGS) == []


def test_a_map_without_pools_is_what_it_was_and_one_with_them_is_another() -> None:
    before = _fleet.fleet_map(_fleet.build(hostvars(), ["node1", "node2"]))
    assert "pools" not in before
    installed = {"revision": 7, "digest": _fleet.digest(before)}
    fleet = _fleet.build(pooled([SHARED], []), ["node1", "node2"])
    assert _fleet.fleet_map(fleet, installed)["revision"] == 8


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ("everything", "is not a pool"),
        ([{"prefix": "10.44.128.0/24", "color": "red"}], "is not a pool"),
        ([{"prefix": "10.44.128.1/24"}], "is not an IPv4 network"),
        ([{"tenant": "default"}], "is not an IPv4 network"),
        ([{"prefix": "10.45.0.0/24"}], "lies outside the overlay"),
        ([{"prefix": "10.44.0.0/15"}], "lies outside the overlay"),
        ([SHARED, {"prefix": "10.44.128.128/25"}], "overlaps the pool 10.44.128.0/24"),
    ],
)
def test_wrong_pools_are_refused(listed: Any, words: str) -> None:
    assert any(words in text for text in problems(pooled(listed, []))), words


def test_a_pool_has_so_many_hosts_and_tenants_that_are_listed() -> None:
    names = [f"node{number}" for number in range(65)]
    variables = {name: {"slim_pools": [SHARED]} for name in names}
    assert any("64 are possible" in text for text in problems(variables, complete=False))
    own = [{**SHARED, "tenant": "blue"}]
    listed = [{"name": "red", "vni": 5001}]
    assert any("not in slim_tenants" in text for text in problems(pooled(own, []), tenants=listed))
    listed = [{"name": "blue", "vni": 5001}]
    assert problems(pooled(own, []), tenants=listed) == []
    fleet = _fleet.build(pooled(own, own), ["node1", "node2"])
    (segment,) = _fleet.segments(fleet, listed, "node1")
    assert segment["peers"] == ["192.0.2.2"], "its network is there before its containers"


def test_a_host_routes_to_prefixes_and_to_the_vips_outside_of_them() -> None:
    variables = hostvars()
    variables["node2"]["slim_host_prefixes"] = ["10.44.2.0/24"]
    variables["node2"]["slim_endpoints"] = [
        endpoint("b", "10.44.0.2"),
        endpoint("b2", "10.44.2.9"),
    ]
    variables["node1"]["slim_endpoints"] = [endpoint("a", "10.44.0.1")]
    fleet = _fleet.build(variables, ["node1", "node2"])
    there = fleet["hosts"]["node2"]["address"]
    assert _fleet.routes(fleet, "node1") == {
        "own": ["10.44.0.1/32"],
        "others": [{"to": "10.44.0.2/32", "via": there}, {"to": "10.44.2.0/24", "via": there}],
    }
    assert _fleet.routes(fleet, "node2")["own"] == ["10.44.0.2/32", "10.44.2.0/24"]


def fleet_of(*names: str) -> dict[str, Any]:
    hosts = {name: {"address": f"192.0.2.{number}"} for number, name in enumerate(names, 1)}
    return {"hosts": hosts, "endpoints": []}


def names_of(found: list[dict[str, Any]]) -> list[str]:
    return [entry["name"] + ("*" if entry["client"] else "") for entry in found]


def test_without_reflectors_every_host_talks_to_every_other() -> None:
    fleet = fleet_of("n1", "n2", "n3")
    assert names_of(_fleet.neighbours(fleet, "n2", [])) == ["n1", "n3"]


def test_reflectors_talk_to_all_and_the_others_to_them() -> None:
    fleet = fleet_of("n1", "n2", "n3", "n4")
    chosen = ["n1", "n2"]
    assert names_of(_fleet.neighbours(fleet, "n1", chosen)) == ["n2", "n3*", "n4*"]
    assert names_of(_fleet.neighbours(fleet, "n4", chosen)) == ["n1", "n2"]
    assert names_of(_fleet.neighbours(fleet, "n4", ["192.0.2.254"])) == ["192.0.2.254"]


BGP = {"asn": 64512, "hold": 9, "port": 179, "password": "", "reflectors": []}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"asn": 0}, "slim_fallback_bgp_asn 0"),
        ({"asn": 65535}, "slim_fallback_bgp_asn 65535"),
        ({"hold": 2}, "slim_fallback_bgp_hold 2"),
        ({"port": 0}, "slim_fallback_bgp_port 0"),
        ({"password": 'a"b'}, "slim_fallback_bgp_password"),
        ({"password": "x" * 81}, "slim_fallback_bgp_password"),
        ({"reflectors": "node1"}, "is not a list"),
        ({"reflectors": ["nobody"]}, "neither a host of the fleet"),
    ],
)
def test_what_bgp_can_have_wrong(change: dict[str, Any], words: str) -> None:
    settings = {"fallback_provider": "bgp", "bgp": {**BGP, **change}}
    found = problems(hostvars(), **settings)
    assert any(words in line for line in found), found
    assert not any("xxx" in line or 'a"b' in line for line in found), "the password is told"
    assert problems(hostvars(), fallback_provider="bgp", bgp=BGP) == []


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ("10.44.2.0/24", None, "not a list"),
        (["10.44.2.1/24"], None, "not an IPv4 network"),
        (["10.45.0.0/24"], None, "lies outside the overlay"),
        (["10.44.8.0/23"], ["10.44.9.0/24"], "overlaps 10.44.8.0/23 of host node1"),
        (None, ["10.44.0.0/24"], "lies in the prefix 10.44.0.0/24 of host node2"),
    ],
)
def test_prefixes_that_are_refused(one: object, two: object, words: str) -> None:
    variables = hostvars()
    for node, prefixes in (("node1", one), ("node2", two)):
        if prefixes is not None:
            variables[node]["slim_host_prefixes"] = prefixes
    found = problems(variables)
    assert any(words in line for line in found), found
