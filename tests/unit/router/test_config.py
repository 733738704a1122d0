# SPDX-License-Identifier: Apache-2.0
"""router.json and map.json: what is right is read, what is wrong is named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_router import cli, config
from slim_router.reader import ConfigError

ROUTER: dict[str, Any] = {
    "version": 1,
    "host": "node1",
    "address": "192.0.2.1",
    "trunk_port": 6790,
    "data_ports": [20000, 20001],
    "overlay": ["10.44.0.0/16"],
    "secure": "none",
    "metrics": "127.0.0.1:9478",
    "tls": {"ca": "/t/ca.pem", "cert": "/t/host.pem", "key": "/t/host.key"},
    "bounds": {
        "swap_us": 2000,
        "blocking_swap_us": 10000,
        "reply_us": 10000,
        "lease_s": 30,
    },
}
MAP: dict[str, Any] = {
    "version": 1,
    "revision": 3,
    "hosts": {
        "node1": {"address": "192.0.2.1", "trunk_port": 6790},
        "node2": {"address": "192.0.2.2", "trunk_port": 6790},
    },
    "endpoints": [
        {
            "name": "c1",
            "tenant": "default",
            "vip": "10.44.0.1",
            "host": "node1",
            "netns": "/run/netns/c1",
        },
        {"name": "c2", "tenant": "default", "vip": "10.44.0.2", "host": "node2", "netns": None},
    ],
}
E1 = MAP["endpoints"][0]


def _write(directory: Path, router: object = None, fleet: object = None) -> tuple[Path, Path]:
    router = ROUTER if router is None else router
    fleet = MAP if fleet is None else fleet
    one, two = directory / "router.json", directory / "map.json"
    one.write_text(json.dumps(router))
    two.write_text(json.dumps(fleet))
    return one, two


def test_the_documented_files_are_read(tmp_path):
    router, fleet = config.load(*_write(tmp_path))
    assert router.data_ports == (20000, 20001)
    assert router.metrics == ("127.0.0.1", 9478)
    assert router.bounds.for_worker() == {**ROUTER["bounds"], "filters_s": 0}
    assert fleet.endpoints["default", "10.44.0.1"].netns == "/run/netns/c1"
    assert [spec.name for spec in fleet.of_host("node2")] == ["c2"]


def test_what_is_optional_has_the_documented_default(tmp_path):
    least = {k: ROUTER[k] for k in ("version", "host", "address", "overlay", "tls")}
    router, _unused = config.load(*_write(tmp_path, {**least}))
    assert (router.trunk_port, router.data_ports) == (6790, (20000, 20999))
    assert router.metrics == ("127.0.0.1", 9478)
    assert router.secure == "none"


def test_mapped_and_long_addresses_become_one_form(tmp_path):
    fleet = copy.deepcopy(MAP)
    fleet["endpoints"][1]["vip"] = "::ffff:10.44.0.2"
    _unused, read = config.load(*_write(tmp_path, fleet=fleet))
    assert ("default", "10.44.0.2") in read.endpoints


def _router(**changes):
    return {**ROUTER, **changes}


def _without(value, key):
    return {k: v for k, v in value.items() if k != key}


def _fleet(*endpoints, **changes):
    return {**MAP, "endpoints": [*MAP["endpoints"], *endpoints], **changes}


BAD_ROUTER = [
    ([], "list"),
    (_router(version=2), "version: 2"),
    (_router(version=True), "version"),
    (_without(ROUTER, "version"), "version: missing"),
    (_router(flat="yes"), "flat: .yes. is not true or false"),
    (_router(colour="red"), "unknown key 'colour'"),
    (_without(ROUTER, "host"), "host: missing"),
    (_router(host=""), "host"),
    (_router(host="no de"), "space"),
    (_router(host="n" * 300), "longer than 253"),
    (_without(ROUTER, "address"), "address: missing"),
    (_router(address="192.0.2"), "not an IPv4 or IPv6 address"),
    (_router(address="192.0.2.1/24"), "without prefix"),
    (_router(address=3), "not an IPv4"),
    (_router(address="0.0.0.0"), "not the address of one host"),
    (_router(address="fe80::1%eth0"), "not an IPv4"),
    (_router(trunk_port=0), "trunk_port"),
    (_router(trunk_port=True), "trunk_port"),
    (_router(trunk_port=70000), "from 1 to 65535"),
    (_router(data_ports=[20999, 20000]), "20999 is greater than 20000"),
    (_router(data_ports=[20000]), r"not \[first, last\]"),
    (_router(data_ports=[0, 5]), "data_ports"),
    (_router(data_ports="20000-20999"), "data_ports"),
    (_router(data_ports=[6000, 7000]), "holds trunk_port 6790"),
    (_router(overlay=[]), "overlay"),
    (_router(overlay=["10.44.0.1/16"]), "host bits"),
    (_router(overlay=["0.0.0.0/0"]), "every address"),
    (_router(overlay=[5]), "not a prefix"),
    (_router(secure="yes"), "choose one of none, bpf, kmod"),
    (_router(metrics="9478"), "ADDRESS:PORT"),
    (_router(metrics="127.0.0.1:0"), "ADDRESS:PORT"),
    (_router(tls={"ca": "/a", "cert": "/b"}), "key: missing"),
    (_router(tls={"ca": "a", "cert": "/b", "key": "/c"}), "relative path"),
    (_router(tls={**ROUTER["tls"], "pin": 1}), "unknown key 'pin'"),
    (_router(flow_log=True), "boolean"),
    (_router(flow_log={}), "path"),
    (_router(flow_log={"path": "flows"}), "relative"),
    (_router(flow_log={"path": "/x", "max_bytes": 65535}), "max_bytes"),
    (_router(flow_log={"path": "/x", "files": 0}), "files"),
    (_router(flow_log={"path": "/x", "file": 1}), "unknown key 'file'"),
    (_router(bounds={"swap_us": -1}), "swap_us"),
    (_router(bounds={"swap_ms": 2}), "unknown key 'swap_ms'"),
    (_router(bounds={"lease_s": "30"}), "lease_s"),
    (_router(bounds={"lease_s": 30, "filters_s": 59}), "filters_s"),
    (_router(bounds={"lease_s": float("nan")}), "lease_s"),
    (_router(bounds=[]), "list"),
]
BAD_MAP = [
    ("x", "string"),
    (_fleet(version=0), "version: 0"),
    (_fleet(extra=1), "unknown key 'extra'"),
    (_without(MAP, "revision"), "revision: missing"),
    (_fleet(revision=-1), "revision"),
    (_fleet(hosts={}), "without hosts"),
    (_fleet(hosts={**MAP["hosts"], "node3": {}}), "host node3: address: missing"),
    (_fleet(hosts={**MAP["hosts"], "node3": {"address": None}}), "host node3: address"),
    (_fleet(hosts={**MAP["hosts"], "node3": MAP["hosts"]["node1"]}), "also that of host node1"),
    (_fleet(hosts={**MAP["hosts"], "a b": {"address": "192.0.2.9"}}), "space"),
    (_fleet({**E1, "name": "c3"}), "already held by node1/c1; remove it there"),
    (_fleet({**E1, "vip": "10.44.0.9"}), "two endpoints of this name"),
    (_fleet({**E1, "vip": "10.44.0.9", "name": "c9"}), "netns /run/netns/c1 already belongs"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0.3", "host": "nodeX"}), "nodeX is not among"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0"}), "vip"),
    (_fleet({**E1, "name": "c3", "vip": "192.0.2.2"}), "is the address of host node2"),
    (_fleet({**E1, "name": "c3", "vip": "10.45.0.1", "netns": "/x"}), "outside the overlay"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0.3", "netns": "run"}), "relative path"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0.3", "netns": None}), "netns: missing"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0.3", "tenant": "t" * 256}), "tenant"),
    (_fleet({**E1, "name": "c3", "vip": "10.44.0.3", "mac": "x"}), "unknown key 'mac'"),
    (
        _fleet(
            {**E1, "name": "c3", "vip": "10.44.0.3", "netns": "/3"},
            {**E1, "name": "c4", "vip": "10.44.0.4", "netns": "/4"},
        ),
        "2 ports for 3 endpoints",
    ),
    (_fleet(hosts={"node2": MAP["hosts"]["node2"]}, endpoints=[]), "host node1"),
    (
        _fleet(hosts={**MAP["hosts"], "node1": {"address": "192.0.2.7"}}),
        "router.json says 192.0.2.1",
    ),
]


@pytest.mark.parametrize(("router", "words"), BAD_ROUTER)
def test_bad_router_json_is_named(tmp_path, router, words):
    with pytest.raises(ConfigError, match=words):
        config.load(*_write(tmp_path, router=router))


@pytest.mark.parametrize(("fleet", "words"), BAD_MAP)
def test_bad_map_json_is_named(tmp_path, fleet, words):
    with pytest.raises(ConfigError, match=words):
        config.load(*_write(tmp_path, fleet=fleet))


def test_one_vip_for_two_tenants_needs_a_provider_that_separates_them(tmp_path):
    fleet = _fleet({**E1, "name": "c3", "tenant": "blue", "netns": "/3"})
    config.load(*_write(tmp_path, fleet=fleet))
    files = _write(tmp_path, fleet=fleet, router={**ROUTER, "flat": True})
    with pytest.raises(ConfigError, match="does not separate tenants; choose another vip"):
        config.load(*files)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"{", "not valid JSON"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b'{"version": 1, "version": 1}', "'version' appears twice"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 5_000, "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, raw, words):
    files = _write(tmp_path)
    files[0].write_bytes(raw)
    with pytest.raises(ConfigError, match=words):
        config.load(*files)


def test_a_missing_file_names_the_role(tmp_path):
    with pytest.raises(ConfigError, match="No such file.*slim_router role"):
        config.load(tmp_path / "none.json", tmp_path / "none.json")


def test_a_socket_path_of_108_bytes_is_too_long():
    config.check_socket_path(Path("/" + "x" * 106))
    with pytest.raises(ConfigError, match="108 bytes, 107 are possible"):
        config.check_socket_path(Path("/" + "x" * 107))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@settings(max_examples=150)
@given(st.sampled_from(sorted(ROUTER)), _JSON)
def test_any_value_anywhere_is_accepted_or_a_config_error(key, value):
    try:
        config.parse_router({**ROUTER, key: value})
    except ConfigError as error:
        assert "router.json" in str(error)


@settings(max_examples=150)
@given(st.sampled_from([*sorted(E1), "hosts", "endpoints", "revision"]), _JSON)
def test_any_value_in_the_map_is_accepted_or_a_config_error(key, value):
    fleet = {**MAP, key: value} if key in MAP else {**MAP, "endpoints": [{**E1, key: value}]}
    try:
        config.parse_map(fleet)
    except ConfigError as error:
        assert "map.json" in str(error)


def test_validate_says_valid_or_exits_with_config(tmp_path, capsys):
    router, fleet = _write(tmp_path)
    options = ["validate", "--config", str(router), "--map", str(fleet)]
    assert cli.main(options) == cli.Exit.OK
    assert "valid: host node1, map revision 3, 2 hosts, 2 endpoints" in capsys.readouterr().out
    assert cli.main([*options, "--runtime-dir", "/" + "x" * 120]) == cli.Exit.CONFIG
    assert "107 are possible" in capsys.readouterr().err
    assert cli.main([*options, "--tls"]) == cli.Exit.CONFIG
    assert "ca /t/ca.pem" in capsys.readouterr().err
    _write(tmp_path, fleet=_fleet({**E1, "name": "c3"}))
    assert cli.main(options) == cli.Exit.CONFIG
    assert "already held by" in capsys.readouterr().err


def test_a_map_of_a_large_fleet_is_read_in_seconds(tmp_path):
    import time

    hosts = {
        f"h{i}": {"address": f"192.0.{i // 250}.{i % 250 + 1}", "trunk_port": 6790}
        for i in range(200)
    }
    endpoints = [
        {
            "name": f"e{j}",
            "tenant": "t",
            "vip": f"10.{44 + i // 250}.{i % 250}.{j}",
            "host": f"h{i}",
            "netns": f"/n/{j}",
        }
        for i in range(200)
        for j in range(100)
    ]
    began = time.process_time()
    config.parse_map({"version": 1, "revision": 1, "hosts": hosts, "endpoints": endpoints})
    assert time.process_time() - began < 5
