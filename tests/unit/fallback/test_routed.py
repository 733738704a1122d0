# SPDX-License-Identifier: Apache-2.0
"""Providers host-gw and bgp on the two hosts of conftest.py, without a routing daemon.

Routes that BIRD would make are made by hand, under its protocol number.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.unit.fallback.stand import Host, carries, ip

TABLE = 4244


@pytest.fixture(autouse=True)
def loopback(hosts: list[Host]) -> None:
    """Whoever makes an endpoint's namespace brings its loopback up; else we do, and it stays."""
    for host in hosts:
        ip("-n", host.endpoint, "link", "set", "lo", "up")


def routed(host: Host, provider: str, other: Host) -> None:
    """Set a host to a routed provider, with a route to the other host's vip."""
    host.config["provider"] = provider
    vip = other.config["endpoints"][0]["vip"]
    if provider == "host-gw":
        host.config["routes"] = [{"to": f"{vip}/32", "via": other.config["address"]}]


def bird(host: Host, other: Host) -> None:
    """The route that BIRD would have made."""
    vip, address = other.config["endpoints"][0]["vip"], other.config["address"]
    ip(
        *("-n", host.name, "route", "replace", f"{vip}/32", "via", address),
        *("table", str(TABLE), "proto", "bird"),
    )


def set_up(hosts: list[Host], provider: str) -> None:
    for host, other in zip(hosts, reversed(hosts), strict=True):
        routed(host, provider, other)
        host.helper("apply")
        if provider == "bgp":
            bird(host, other)


def snapshot(host: Host) -> dict[str, Any]:
    """All that a provider could leave on a host and in its endpoint."""
    found: dict[str, Any] = {}
    for space in (host.name, host.endpoint):
        for words in (
            "link",
            "-4 address",
            "-4 route show table all",
            "-4 rule",
            "-4 neigh show nud permanent",
        ):
            text = ip("-n", space, *words.split())
            # Ages and queues of what was there before change by themselves.
            found[f"{space}: {words}"] = sorted(
                line.split(" state ")[0].split(" qlen ")[0] for line in text.splitlines()
            )
    forwarding = ["ip", "netns", "exec", host.name, "cat", "/proc/sys/net/ipv4/conf/un0/forwarding"]
    found["forwarding"] = subprocess.run(forwarding, check=True, capture_output=True).stdout
    return found


@pytest.mark.parametrize("provider", ["host-gw", "bgp"])
def test_builds_once_and_carries(hosts: list[Host], provider: str) -> None:
    for host, other in zip(hosts, reversed(hosts), strict=True):
        routed(host, provider, other)
        before = snapshot(host)
        assert host.helper("check")["changed"] is True
        assert snapshot(host) == before, "check has changed something"
        assert host.helper("status")["complete"] is False
        assert host.helper("apply")["changed"] is True
        assert host.helper("apply") == {"changed": False, "changes": [], "skipped": []}
        if provider == "bgp":
            bird(host, other)
        assert host.helper("check")["changed"] is False, "what BIRD has made is BIRD's"
        assert host.helper("status")["complete"] is True
    assert carries(hosts[0], hosts[1])
    assert carries(hosts[1], hosts[0])
    link = json.loads(ip("-n", hosts[0].endpoint, "-j", "link", "show", "eth0"))[0]
    assert link["mtu"] == 1500


@pytest.mark.parametrize("provider", ["host-gw", "bgp"])
def test_remove_leaves_what_was_there(hosts: list[Host], provider: str) -> None:
    host = hosts[0]
    ip("-n", host.name, "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
    before = snapshot(host)
    set_up(hosts, provider)
    assert snapshot(host) != before
    assert host.helper("remove")["changed"] is True
    assert snapshot(host) == before
    assert not host.record.exists()
    assert host.helper("remove")["changed"] is False


@pytest.mark.parametrize("one", ["vxlan", "host-gw", "bgp", "existing"])
@pytest.mark.parametrize("two", ["vxlan", "host-gw", "bgp", "existing"])
def test_a_change_of_provider_leaves_nothing(hosts: list[Host], one: str, two: str) -> None:
    """What two builds after one is what it builds on a bare host."""
    if one == two:
        pytest.skip("no change")
    host = hosts[0]
    routes = [{"to": "10.44.0.2/32", "via": "192.0.2.2"}]
    bare = snapshot(host)
    built = {}
    for provider in (two, one, two):
        host.config |= {"provider": provider, "routes": routes if provider == "host-gw" else []}
        if provider != "existing":
            assert host.helper("check")["changed"]
        host.helper("apply")
        assert not host.helper("check")["changed"]
        if provider == "bgp":
            bird(host, hosts[1])
        names = sorted(name for name in host.links() if not name.startswith("un"))
        routing = snapshot(host)[f"{host.name}: -4 route show table all"]
        kept = [line for line in routing if "slr" not in line and "local" not in line]
        assert built.setdefault(provider, (names, kept)) == (names, kept)
    host.helper("remove")
    assert snapshot(host) == bare


def test_hosts_join_move_and_leave(hosts: list[Host]) -> None:
    host = hosts[0]
    set_up(hosts, "host-gw")
    first = host.config["routes"][0]
    host.config["routes"] = [first, {"to": "10.44.3.0/24", "via": "192.0.2.3"}]
    assert host.helper("apply")["changes"] == ["add route 10.44.3.0/24 via 192.0.2.3"]
    host.config["routes"] = [first, {"to": "10.44.3.0/24", "via": "192.0.2.4"}]
    assert host.helper("apply")["changes"] == ["replace route 10.44.3.0/24 via 192.0.2.4"]
    host.config["routes"] = [first]
    assert host.helper("apply")["changes"] == ["remove route 10.44.3.0/24 via 192.0.2.4"]
    assert carries(*hosts)


def test_what_somebody_took_away_comes_back(hosts: list[Host]) -> None:
    """As after a reboot, which leaves the endpoints' namespaces to others and the rest to us."""
    host = hosts[0]
    set_up(hosts, "host-gw")
    pair = next(name for name in host.links() if name.startswith("slr"))
    ip("-n", host.name, "link", "del", pair)
    ip("-n", host.name, "route", "del", "10.44.0.2/32")
    assert host.helper("status")["complete"] is False
    host.helper("apply")
    assert host.helper("status")["complete"] is True
    assert carries(*hosts)


def test_a_vip_that_nobody_has_is_unreachable_at_once(hosts: list[Host]) -> None:
    """And no packet to it gets out by the default route."""
    host = hosts[0]
    set_up(hosts, "host-gw")
    ip("-n", host.name, "route", "add", "default", "via", "192.0.2.2")
    done = subprocess.run(
        ["ip", "-n", host.name, "route", "get", "10.44.9.9"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "unreachable" in done.stdout + done.stderr or "No route to host" in done.stderr


def test_a_next_hop_behind_a_router_is_refused_before_any_change(hosts: list[Host]) -> None:
    host = hosts[0]
    routed(host, "host-gw", hosts[1])
    ip("-n", host.name, "route", "add", "198.51.100.0/24", "via", "192.0.2.2")
    host.config["routes"].append({"to": "10.44.0.3/32", "via": "198.51.100.3"})
    before = snapshot(host)
    problem = host.helper("apply", status=1)["problem"]
    assert "198.51.100.3 is not on a link of this host but behind 192.0.2.2" in problem
    assert snapshot(host) == before


def test_a_host_without_a_way_is_refused_before_any_change(hosts: list[Host]) -> None:
    host = hosts[0]
    routed(host, "host-gw", hosts[1])
    host.config["routes"][0]["via"] = "198.51.100.3"
    before = snapshot(host)
    assert "198.51.100.3: there is no route" in host.helper("apply", status=1)["problem"]
    assert snapshot(host) == before


def test_a_route_of_the_sites_is_left_alone(hosts: list[Host]) -> None:
    host = hosts[0]
    routed(host, "host-gw", hosts[1])
    ip("-n", host.name, "route", "add", "10.44.0.2/32", "via", "192.0.2.2")
    before = snapshot(host)
    assert "was not made by slim_fallback" in host.helper("apply", status=1)["problem"]
    host.helper("remove")
    assert snapshot(host) == before


def test_a_table_of_the_sites_is_left_alone(hosts: list[Host]) -> None:
    host = hosts[0]
    routed(host, "bgp", hosts[1])
    bird(host, hosts[1])
    before = snapshot(host)
    assert "slim_fallback_bgp_table" in host.helper("apply", status=1)["problem"]
    assert snapshot(host) == before


def test_a_lost_record_is_made_good_by_the_rule(hosts: list[Host]) -> None:
    host = hosts[0]
    set_up(hosts, "bgp")
    host.record.unlink()
    assert host.helper("apply")["changed"] is False
    assert json.loads(host.record.read_text())["table"] == TABLE


def test_forwarding_that_was_on_stays_on(hosts: list[Host]) -> None:
    host = hosts[0]
    shell = ["ip", "netns", "exec", host.name, "sh", "-c"]
    setting = "/proc/sys/net/ipv4/conf/un0/forwarding"
    subprocess.run([*shell, f"echo 1 > {setting}"], check=True)
    set_up(hosts, "host-gw")
    host.helper("remove")
    done = subprocess.run([*shell, f"cat {setting}"], check=True, capture_output=True, text=True)
    assert done.stdout == "1\n"
