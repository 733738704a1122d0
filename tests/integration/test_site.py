# SPDX-License-Identifier: Apache-2.0
"""The playbooks on two bare hosts: refuse, check, deploy, repeat, uninstall.

          switch
         /      \\
      node1    node2
       c1        c2

The tests of this file build on each other's state and run in their order.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import inventory, names
from lab.client import SLIMLAB, Lab

pytestmark = pytest.mark.timeout(600)

NAME = "site"
#: Seconds that one run of a playbook may take on a slow, shared machine.
LIMIT = 420


class Site:
    """Two bare hosts and the playbooks."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(NAME)
        self.directory = directory
        self.inventory = json.loads(self.lab.state.inventory.read_text())

    def play(
        self, name: str, *words: str, hosts: dict[str, Any] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a playbook, on a changed inventory if `hosts` gives one."""
        path = self.lab.state.inventory
        if hosts is not None:
            path = self.directory / "inventory.json"
            path.write_text(json.dumps(hosts))
        environment = inventory.environment(self.lab.state, self.lab.plan)
        environment["ANSIBLE_INVENTORY"] = str(path)
        return subprocess.run(
            [
                str(Path(sys.executable).with_name("ansible-playbook")),
                str(names.CHECKOUT / "playbooks" / f"{name}.yml"),
                *words,
            ],
            capture_output=True,
            text=True,
            env=environment,
            cwd=names.CHECKOUT,
            timeout=LIMIT,
            check=False,
        )

    def traces(self) -> list[str]:
        """What of the product is on the nodes: files, links, processes."""
        found = []
        for node in self.lab.nodes:
            script = (
                "find /etc/slim /var/lib/slim /opt/slim /run/slim -mindepth 1 2>/dev/null;"
                "ip -o link show | grep -E 'slim|v-' ; true"
            )
            lines = self.lab.run(node, script).stdout.splitlines()
            found += [f"{node}: {line}" for line in lines]
        for endpoint in self.lab.endpoints:
            lines = self.lab.run(endpoint, ["ip", "-o", "link"], mode="overlay").stdout.splitlines()
            found += [f"{endpoint}: {line}" for line in lines if ": lo:" not in line]
        return found


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    """The numbers of PLAY RECAP, by host."""
    found = {}
    for line in done.stdout.splitlines():
        if re.match(r"\S+\s+: ok=", line):
            host, _colon, rest = line.partition(":")
            pairs = dict(pair.split("=") for pair in rest.split())
            found[host.strip()] = {key: int(value) for key, value in pairs.items()}
    return found


def assert_good(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, int]]:
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    numbers = recap(done)
    assert {"node1", "node2"} <= set(numbers), done.stdout[-2000:]
    return numbers


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    environment = {**os.environ, "SLIMLAB_NAME": NAME}
    done = subprocess.run(
        [str(SLIMLAB), "up", "--bare"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    yield Site(tmp_path_factory.mktemp("site"))
    subprocess.run([str(SLIMLAB), "down"], env=environment, timeout=120, check=True)


def change(*path: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the inventory: the value at `path` below slim_hosts becomes `to`."""

    def apply(data: dict[str, Any]) -> None:
        place: Any = data["slim_hosts"]
        for step in path[:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to

    return apply


BAD = {
    "overlapping vips": (
        change("hosts", "node2", "slim_endpoints", 0, "vip", to="10.44.0.1"),
        ["endpoint c2", "vip 10.44.0.1", "node1/c1", "choose another"],
    ),
    "vip outside the overlay": (
        change("hosts", "node2", "slim_endpoints", 0, "vip", to="10.99.0.1"),
        ["endpoint c2", "10.99.0.1", "10.44.0.0/16"],
    ),
    "host without an address": (
        change("hosts", "node2", "slim_host_address", to=None),
        ["host node2", "no address", "slim_host_address"],
    ),
    "unknown provider": (
        change("vars", "slim_fallback_provider", to="carrier-pigeon"),
        ["carrier-pigeon", "vxlan"],
    ),
    "socket path too long": (
        change("vars", "slim_run_dir", to="/run/" + "x" * 100),
        ["socket path", "107", "shorter"],
    ),
    "unknown secure mode": (
        change("vars", "slim_secure_mode", to="paranoid"),
        ["slim_secure_mode paranoid", "kmod"],
    ),
}


def assert_refused(site: Site, done: subprocess.CompletedProcess[str], words: list[str]) -> None:
    assert done.returncode != 0, done.stdout
    said = " ".join(done.stdout.split())
    for word in words:
        assert word in said, f"{word!r} is not in: {done.stdout[-3000:]}"
    assert "PLAY [Deploy]" not in done.stdout
    assert all(host["changed"] == 0 for host in recap(done).values())
    assert site.traces() == []


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_change(site: Site, case: str) -> None:
    mutate, words = BAD[case]
    hosts = copy.deepcopy(site.inventory)
    mutate(hosts)
    assert_refused(site, site.play("site", hosts=hosts), words)


def test_closed_firewall_is_refused_before_any_change(site: Site) -> None:
    rules = (
        "table inet shut { chain input { type filter hook input priority 0; policy drop; "
        "iif lo accept; ct state established accept; }; }"
    )
    site.lab.run("node2", ["nft", "-f", "-"], stdin=rules)
    try:
        assert_refused(site, site.play("site"), ["node2", "6790"])
    finally:
        site.lab.run("node2", ["nft", "delete", "table", "inet", "shut"])


def test_old_kernel_is_refused_before_any_change(site: Site) -> None:
    """node2's interpreter, and whatever it starts, is told that its kernel is a 2.6."""
    python = site.directory / "python-on-2.6"
    python.write_text(f'#!/bin/sh\nexec setarch --uname-2.6 {sys.executable} "$@"\n')
    python.chmod(0o755)
    hosts = copy.deepcopy(site.inventory)
    change("hosts", "node2", "ansible_python_interpreter", to=str(python))(hosts)
    done = site.play("site", hosts=hosts)
    words = ["node2 is refused", "its kernel 2.6.", "older than 5.14", "boot a newer kernel"]
    assert_refused(site, done, words)


def test_check_on_clean_hosts_changes_nothing(site: Site) -> None:
    numbers = assert_good(site.play("site", "--check", "--diff"))
    assert all(host["changed"] > 0 for host in numbers.values()), "it says what it would do"
    assert site.traces() == []


def test_deploy_works(site: Site) -> None:
    assert_good(site.play("site"))
    for node in site.lab.nodes:
        assert site.lab.router_pid(node)
        assert site.lab.keeper(node, "status")["pid"] == site.lab.router_pid(node)
        modes = site.lab.run(
            node, ["stat", "-c", "%a", "/etc/slim/router.json", "/etc/slim/map.json"]
        )
        assert modes.stdout.split() == ["600", "600"]


def test_second_run_changes_nothing(site: Site) -> None:
    before = {node: site.lab.router_pid(node) for node in site.lab.nodes}
    done = site.play("site")
    assert all(host["changed"] == 0 for host in assert_good(done).values()), done.stdout[-6000:]
    assert {node: site.lab.router_pid(node) for node in site.lab.nodes} == before


def test_check_on_deployed_hosts_finds_nothing_to_do(site: Site) -> None:
    done = site.play("site", "--check", "--diff")
    assert all(host["changed"] == 0 for host in assert_good(done).values()), done.stdout[-6000:]


def test_a_changed_map_reaches_the_running_routers(site: Site) -> None:
    def fleet() -> list[int]:
        found = [site.lab.slimctl(node, "status") for node in site.lab.nodes]
        return [status["fleet_endpoints"] for status in found]

    before = {node: site.lab.router_pid(node) for node in site.lab.nodes}
    hosts = copy.deepcopy(site.inventory)
    hosts["slim_hosts"]["hosts"]["node2"]["slim_endpoints"].append(
        {"name": "later", "vip": "10.44.99.99", "netns": "/run/netns/later"}
    )
    assert_good(site.play("site", hosts=hosts))
    assert fleet() == [3, 3]
    assert_good(site.play("site"))
    assert fleet() == [2, 2]
    assert {node: site.lab.router_pid(node) for node in site.lab.nodes} == before


def test_verify_works_and_notices_a_dead_router(site: Site) -> None:
    assert_good(site.play("verify"))
    site.lab.keeper("node2", "hold")
    try:
        site.lab.kill_router("node2")
        done = site.play("verify")
        assert done.returncode != 0
        assert "node2" in done.stdout
    finally:
        site.lab.keeper("node2", "resume")
        site.lab.wait_router("node2")


def test_uninstall_wants_consent(site: Site) -> None:
    before = site.traces()
    done = site.play("uninstall")
    assert done.returncode != 0
    assert "slim_uninstall_confirm=true" in " ".join(done.stdout.split())
    assert site.traces() == before


def test_uninstall_leaves_nothing(site: Site) -> None:
    # What comes into being with use goes as well.
    assert_good(
        site.play("acl", "-e", json.dumps({"slim_policy": {"default": "deny", "rules": []}}))
    )
    assert any("policy.json" in line for line in site.traces())
    assert_good(site.play("uninstall", "-e", "slim_uninstall_confirm=true"))
    assert site.traces() == []
    # In a namespace of ours only: nobody else's router is counted.
    for node in site.lab.nodes:
        assert site.lab.run(node, ["ss", "-Hltnx"]).stdout.count("slim") == 0
    again = assert_good(site.play("uninstall", "-e", "slim_uninstall_confirm=true"))
    assert all(host["changed"] == 0 for host in again.values())
