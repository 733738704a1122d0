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
    assert config.network_of(ipaddress.IPv4Address("10.44.9.9")).prefixlen == 16


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
        ({"overlay": ["10.45.0.0/16"]}, "10.44.0.1"),
        ({"endpoints": ["c1"]}, "damaged"),
        ({"endpoints": [{"name": "c1", "vip": "10.44.0.1", "attach": True}]}, "netns"),
    ],
)
def test_what_is_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse(json.dumps(GOOD | change))


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)
