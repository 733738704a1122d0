# SPDX-License-Identifier: Apache-2.0
"""fallback.json: what is taken, and what is refused with a reason."""

from __future__ import annotations

import ipaddress
import json

import pytest

from slim_fallback.config import ConfigError, parse

GOOD = {
    "version": 1,
    "provider": "vxlan",
    "address": "192.0.2.1",
    "overlay": ["10.44.0.0/16"],
    "peers": ["192.0.2.2"],
    "endpoints": [
        {"name": "c1", "tenant": "default", "vip": "10.44.0.1", "netns": "/x", "attach": True},
        {"name": "c2", "vip": "10.44.0.2", "netns": "/y", "attach": False},
    ],
}


def test_defaults_are_those_of_the_table_of_ports() -> None:
    config = parse(json.dumps(GOOD))
    assert (config.vni, config.port, config.bridge, config.device) == (
        4242,
        8472,
        "br-slim",
        "vx-slim",
    )
    assert config.endpoints[0].interface == "eth0"


def test_only_endpoints_to_attach_are_kept() -> None:
    assert [endpoint.name for endpoint in parse(json.dumps(GOOD)).endpoints] == ["c1"]


def test_an_endpoint_keeps_its_names_from_boot_to_boot() -> None:
    one = parse(json.dumps(GOOD)).endpoints[0]
    two = parse(json.dumps(GOOD)).endpoints[0]
    assert (one.link, one.mac) == (two.link, two.mac)
    assert len(one.link) <= 15
    assert one.mac == "02:51:0a:2c:00:01"


def test_the_network_of_a_vip() -> None:
    config = parse(json.dumps(GOOD))
    assert config.segments[0].network_of(ipaddress.IPv4Address("10.44.9.9")).prefixlen == 16


WAY = {"to": "10.44.0.2/32", "via": "192.0.2.2"}
BLUE = {"name": "blue", "vni": 16777215, "peers": ["192.0.2.3"], "overlay": ["10.44.8.0/24"]}


def test_tenants_have_networks_of_their_own() -> None:
    good = json.loads(json.dumps(GOOD))
    good["endpoints"][0] |= {"tenant": "blue", "vip": "10.44.8.1"}
    good["tenants"] = [BLUE, {"name": "red", "vni": 7, "peers": []}]
    config = parse(json.dumps(good))
    default, blue, red = config.segments
    assert (default.tenant, default.vni, default.bridge) == ("default", 4242, "br-slim")
    assert config.segment_of(config.endpoints[0]) is blue
    assert (blue.bridge, blue.device) == ("br-sl16777215", "vx-sl16777215")
    assert len(blue.bridge) <= 15
    assert [str(network) for network in blue.overlay] == ["10.44.8.0/24"]
    assert [str(peer) for peer in blue.peers] == ["192.0.2.3"]
    assert red.overlay == default.overlay


def test_a_tenant_without_a_network_is_part_of_the_default_one() -> None:
    good = json.loads(json.dumps(GOOD))
    good["endpoints"][0]["tenant"] = "green"
    config = parse(json.dumps(good))
    assert config.segment_of(config.endpoints[0]).tenant == "default"


@pytest.mark.parametrize(
    ("tenants", "word"),
    [
        ([{"name": "blue"}], "vni"),
        ([{"name": "blue", "vni": 0}], "vni 0"),
        ([{"name": "blue", "vni": 1 << 24}], "vni 16777216"),
        ([{"name": "blue", "vni": "7"}], "vni"),
        ([{"vni": 7}], "name"),
        ([{"name": "blue", "vni": 4242}], "vni 4242 is also that of tenant default"),
        ([{"name": "default", "vni": 7}], "tenant default is there twice"),
        ([{"name": "blue", "vni": 7}, {"name": "red", "vni": 7}], "also that of tenant blue"),
        ([{"name": "blue", "vni": 7}, {"name": "blue", "vni": 8}], "blue is there twice"),
        ([{"name": "blue", "vni": 7, "peers": ["x"]}], "damaged"),
        ({"name": "blue"}, "tenants"),
        (["blue"], "damaged"),
    ],
)
def test_tenants_that_are_refused(tenants: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(json.dumps(GOOD | {"tenants": tenants}))


def test_a_vip_outside_its_tenants_network_is_refused() -> None:
    entry = GOOD["endpoints"][0] | {"tenant": "blue"}  # type: ignore[index] # a list
    with pytest.raises(ConfigError, match=r"10\.44\.0\.1 lies outside"):
        parse(json.dumps(GOOD | {"tenants": [BLUE], "endpoints": [entry]}))


def test_no_name_of_ours_can_be_a_tenants() -> None:
    with pytest.raises(ConfigError, match="interface br-sl7"):
        parse(json.dumps(GOOD | {"bridge": "br-sl7", "tenants": [{"name": "blue", "vni": 7}]}))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"version": 2}, "version"),
        ({"provider": "ether"}, "provider"),
        ({"address": "nowhere"}, "damaged"),
        ({"overlay": "10.44.0.0/16"}, "overlay"),
        ({"vni": 0}, "vni"),
        ({"vni": True}, "vni"),
        ({"port": 70000}, "port"),
        ({"bridge": "a-name-that-is-too-long"}, "bridge"),
        ({"mtu": 20}, "mtu"),
        ({"table": 254}, "table 254"),
        ({"table": 0}, "table 0"),
        ({"routes": [{"to": "10.44.0.2/32"}]}, "via"),
        ({"routes": [{"to": "10.45.0.2/32", "via": "192.0.2.2"}]}, "outside the overlay"),
        ({"routes": [WAY, WAY | {"via": "192.0.2.3"}]}, "leads to 192.0.2.3 and to 192.0.2.2"),
        ({"provider": "host-gw", "tenants": [BLUE]}, "one network for all tenants"),
        ({"overlay": ["10.45.0.0/16"]}, "10.44.0.1"),
        ({"endpoints": ["c1"]}, "damaged"),
        ({"endpoints": [{"name": "c1", "vip": "10.44.0.1", "attach": True}]}, "netns"),
    ],
)
def test_what_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(json.dumps(GOOD | change))


def test_pairs_of_routed_providers_have_names_of_their_own() -> None:
    bridged = parse(json.dumps(GOOD)).endpoints[0].link
    for provider in ("host-gw", "bgp"):
        config = parse(json.dumps(GOOD | {"provider": provider, "routes": [WAY]}))
        assert config.endpoints[0].link == bridged.replace("slv", "slr")
        assert [str(way.network) for way in config.ways] == ["10.44.0.2/32"]


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
