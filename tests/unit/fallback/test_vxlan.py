# SPDX-License-Identifier: Apache-2.0
"""Provider vxlan on the two hosts of conftest.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.unit.fallback.stand import DEADLINE_S, Host, carries, ip


def test_builds_once_and_carries(hosts: list[Host]) -> None:
    for host in hosts:
        planned = host.helper("check")["changes"]
        assert planned
        assert "br-slim" not in host.links(), "check has changed something"
        assert host.helper("apply")["changed"] is True
        assert host.helper("apply") == {"changed": False, "changes": [], "skipped": []}
        assert host.helper("check")["changed"] is False
    assert carries(hosts[0], hosts[1])
    link = json.loads(ip("-n", hosts[0].endpoint, "-j", "link", "show", "eth0"))[0]
    assert link["mtu"] == 1450


def test_remove_takes_only_what_is_ours(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.links()
    host.helper("apply")
    ip("-n", host.name, "link", "add", "br-other", "type", "bridge")
    assert host.helper("remove")["changed"] is True
    assert host.links() == before | {"br-other"}
    assert not host.record.exists()
    assert host.helper("remove")["changed"] is False


def test_a_lost_record_is_made_good_by_the_mark_on_the_links(hosts: list[Host]) -> None:
    host = hosts[0]
    host.helper("apply")
    host.record.unlink()
    assert host.helper("apply")["changed"] is False
    assert json.loads(host.record.read_text())["bridge"] == "br-slim"


def test_a_stranger_of_our_name_is_left_alone(hosts: list[Host]) -> None:
    host = hosts[0]
    ip("-n", host.name, "link", "add", "br-slim", "type", "bridge")
    assert "br-slim" in host.helper("apply", status=1)["problem"]
    host.helper("remove")
    assert "br-slim" in host.links()


def test_an_interface_that_the_endpoint_has_is_left_alone(hosts: list[Host]) -> None:
    host = hosts[0]
    ip("-n", host.endpoint, "link", "add", "eth0", "type", "bridge")
    assert "attach: false" in host.helper("apply", status=1)["problem"]


def test_a_missing_namespace_is_skipped_and_named(hosts: list[Host]) -> None:
    host = hosts[0]
    ip("netns", "del", host.endpoint)
    answer = host.helper("apply")
    assert [entry["endpoint"] for entry in answer["skipped"]] == [host.endpoint]
    ip("netns", "add", host.endpoint)
    assert host.helper("apply")["skipped"] == []
    # The pair died with the namespace only if nobody else held it; both ways must end well.
    ip("netns", "del", host.endpoint)
    ip("netns", "add", host.endpoint)
    deadline = time.monotonic() + DEADLINE_S
    while host.helper("apply")["changed"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "10.44.0.1" in ip("-n", host.endpoint, "addr", "show", "eth0")


def test_hosts_join_and_leave(hosts: list[Host]) -> None:
    host = hosts[0]
    host.helper("apply")
    host.config["peers"] = ["192.0.2.2", "192.0.2.3"]
    assert host.helper("apply")["changes"] == ["flood to 192.0.2.3"]
    host.config["peers"] = ["192.0.2.3"]
    assert host.helper("apply")["changes"] == ["flood no more to 192.0.2.2"]
    host.config["endpoints"] = []
    assert len(host.helper("apply")["changes"]) == 1
    assert not any(name.startswith("slv") for name in host.links())


def test_a_new_host_address_moves_the_tunnel(hosts: list[Host]) -> None:
    host = hosts[0]
    host.helper("apply")
    ip("-n", host.name, "addr", "add", "192.0.2.9/24", "dev", "un0")
    host.config["address"] = "192.0.2.9"
    assert host.helper("apply")["changed"] is True
    assert host.helper("apply")["changed"] is False
    assert "local 192.0.2.9" in ip("-n", host.name, "-d", "link", "show", "vx-slim")


def test_a_host_address_that_is_not_there_is_refused(hosts: list[Host]) -> None:
    host = hosts[0]
    host.config["address"] = "192.0.2.77"
    assert "192.0.2.77" in host.helper("apply", status=1)["problem"]


def test_an_existing_overlay_is_not_touched(hosts: list[Host]) -> None:
    host = hosts[0]
    before = host.links()
    host.config["provider"] = "existing"
    assert host.helper("apply")["changed"] is False
    assert host.links() == before


def test_two_at_once_build_one_overlay(hosts: list[Host]) -> None:
    """The playbook and the host's own units may meet."""
    host = hosts[0]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(host.helper, ["apply"] * 4))
    assert [answer["changed"] for answer in answers].count(True) == 1
    assert not host.helper("check")["changed"]


def test_a_namespace_that_appears_meanwhile_is_attached(hosts: list[Host]) -> None:
    """systemd.path(5) does not look while the helper runs, so the helper looks again."""
    host = hosts[0]
    late = f"{host.endpoint}-late"
    path = Path("/run/netns") / late
    host.config["endpoints"].insert(
        0, {"name": late, "vip": "10.44.0.9", "netns": str(path), "attach": True}
    )
    # As in the middle of `ip netns add`: the file is there, the namespace is not.
    path.touch()
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(host.helper, "apply")
            # It is the second endpoint's turn: that of the first one is over.
            deadline = time.monotonic() + DEADLINE_S
            while "eth0" not in ip("-n", host.endpoint, "-br", "link"):
                assert time.monotonic() < deadline
                time.sleep(0.005)
            path.unlink()
            ip("netns", "add", late)
            assert running.result()["skipped"] == []
        assert "10.44.0.9/16" in ip("-n", late, "-br", "address")
    finally:
        subprocess.run(["ip", "netns", "del", late], check=False, capture_output=True)
        path.unlink(missing_ok=True)


@pytest.fixture
def tenants(hosts: list[Host]) -> Iterator[list[Host]]:
    """Both hosts with a second endpoint each, of tenant blue, which has the first one's vip."""
    more = [f"{host.name}2" for host in hosts]
    try:
        for host, name, other in zip(hosts, more, reversed(hosts), strict=True):
            ip("netns", "add", name)
            own = host.config["endpoints"][0]
            host.config["endpoints"].append(
                own | {"name": name, "netns": f"/run/netns/{name}", "tenant": "blue"}
            )
            host.config["tenants"] = [
                {"name": "blue", "vni": 77, "peers": [other.config["address"]]}
            ]
        yield hosts
    finally:
        for name in more:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


ANSWER = """
import socket, sys
s = socket.create_server((sys.argv[1], 9))
s.settimeout(20)
print('up', flush=True)
while True:
    c, _ = s.accept()
    c.sendall(sys.argv[2].encode())
    c.close()
"""
QUESTION = """
import socket, sys
print(socket.create_connection((sys.argv[1], 9), 10).recv(99).decode())
"""


def test_tenants_share_a_vip_and_never_meet(tenants: list[Host]) -> None:
    one, two = tenants
    for host in tenants:
        host.helper("apply")
        assert host.helper("apply") == {"changed": False, "changes": [], "skipped": []}
        assert {"br-slim", "vx-slim", "br-sl77", "vx-sl77"} <= host.links()
    vip = two.config["endpoints"][0]["vip"]
    servers = []
    space = ["ip", "netns", "exec"]
    try:
        for number in ("1", "2"):
            server = subprocess.Popen(
                [*space, f"{two.name}{number}", sys.executable, "-c", ANSWER, vip, number],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            servers.append(server)
            assert server.stdout is not None
            assert server.stdout.readline() == "up\n"
        for number in ("1", "2", "2", "1"):
            done = subprocess.run(
                [*space, f"{one.name}{number}", sys.executable, "-c", QUESTION, vip],
                check=True, capture_output=True, text=True, timeout=30,
            )  # fmt: skip
            assert done.stdout == f"{number}\n"
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def test_a_tenants_network_goes_when_it_is_not_wanted_and_at_the_end(tenants: list[Host]) -> None:
    host = tenants[0]
    before = host.links()
    host.helper("apply")
    record = json.loads(host.record.read_text())
    assert record["others"] == ["br-sl77", "vx-sl77"]
    tenants_wanted, endpoints = host.config["tenants"], list(host.config["endpoints"])
    host.config["tenants"], host.config["endpoints"] = [], endpoints[:1]
    assert len(host.helper("check")["changes"]) == 3
    assert len(host.helper("apply")["changes"]) == 3
    assert not {"br-sl77", "vx-sl77"} & host.links()
    assert {"br-slim", "vx-slim"} <= host.links()
    assert json.loads(host.record.read_text())["others"] == []
    host.config["tenants"], host.config["endpoints"] = tenants_wanted, endpoints
    host.helper("apply")
    host.helper("remove")
    assert host.links() == before


def test_an_endpoint_moves_to_another_tenant(tenants: list[Host]) -> None:
    host = tenants[0]
    host.helper("apply")
    host.config["endpoints"] = [
        entry | {"tenant": "blue" if entry.get("tenant") != "blue" else "default"}
        for entry in host.config["endpoints"]
    ]
    assert host.helper("check")["changed"]
    host.helper("apply")
    assert not host.helper("apply")["changed"]
    masters = {
        link["ifname"]: link.get("master")
        for link in json.loads(ip("-n", host.name, "-j", "link"))
        if link["ifname"].startswith("slv")
    }
    assert sorted(masters.values()) == ["br-sl77", "br-slim"]


def test_another_vni_makes_another_network(tenants: list[Host]) -> None:
    host = tenants[0]
    host.helper("apply")
    host.config["tenants"][0]["vni"] = 78
    host.helper("apply")
    assert {"br-sl78", "vx-sl78"} <= host.links()
    assert not {"br-sl77", "vx-sl77"} & host.links()
    assert not host.helper("apply")["changed"]
    assert "id 78" in ip("-n", host.name, "-d", "link", "show", "vx-sl78")
