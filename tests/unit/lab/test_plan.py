# SPDX-License-Identifier: Apache-2.0
"""What the lab computes before it makes anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import congestion, inventory, names, process, push, stub
from lab.errors import LabError, Refused
from lab.state import Plan, State


def plan(**options) -> Plan:
    made = Plan(**options)
    made.lay_out()
    return made


def test_first_endpoints_follow_the_nodes_then_in_turns() -> None:
    made = plan(hosts=3, endpoints_per_host=2)
    where = {end.name: end.node for end in made.endpoints}
    assert where == {
        "c1": "node1", "c2": "node2", "c3": "node3",
        "c4": "node1", "c5": "node2", "c6": "node3",
    }  # fmt: skip
    assert made.endpoint("c6").vip == "10.44.0.6"
    assert made.node("node3").address == "198.18.0.3"
    assert made.endpoint("c6").netns == "/run/netns/c6"


def test_further_tenants_have_the_same_vips_under_other_names() -> None:
    made = plan(hosts=2, endpoints_per_host=1, tenants=3)
    assert [(end.name, end.node, end.vip, end.tenant) for end in made.endpoints] == [
        ("c1", "node1", "10.44.0.1", "default"), ("c2", "node2", "10.44.0.2", "default"),
        ("t2-c1", "node1", "10.44.0.1", "t2"), ("t2-c2", "node2", "10.44.0.2", "t2"),
        ("t3-c1", "node1", "10.44.0.1", "t3"), ("t3-c2", "node2", "10.44.0.2", "t3"),
    ]  # fmt: skip
    fleet = inventory.describe(State("x"), made)["slim_hosts"]["vars"]
    assert fleet["slim_tenants"] == [{"name": "t2", "vni": 4243}, {"name": "t3", "vni": 4244}]


@pytest.mark.parametrize(
    "options",
    [
        {"hosts": 0}, {"hosts": 51}, {"endpoints_per_host": 0}, {"tenants": 0}, {"tenants": 10},
        {"hosts": 50, "endpoints_per_host": 6},
    ],
)  # fmt: skip
def test_plans_that_do_not_fit_are_refused(options: dict) -> None:
    with pytest.raises(Refused) as refusal:
        plan(**options)
    assert refusal.value.status == 2


def test_unknown_names_are_named() -> None:
    with pytest.raises(LabError, match="c9.*c1, c2"):
        plan().endpoint("c9")
    with pytest.raises(LabError, match="node9.*node1, node2"):
        plan().node("node9")


def test_lab_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLIMLAB_NAME", raising=False)
    assert State().directory == Path("/run/slimlab")
    monkeypatch.setenv("SLIMLAB_NAME", "mine")
    assert State().directory == Path("/run/slimlab.mine")
    assert State("").directory == Path("/run/slimlab")
    for bad in ("../x", "a b", "A", "x" * 17):
        monkeypatch.setenv("SLIMLAB_NAME", bad)
        with pytest.raises(ValueError, match="not a lab name"):
            State()


def test_state_survives_the_disk(tmp_path: Path) -> None:
    state = State("unit")
    state.directory, state.pins = tmp_path / "s", tmp_path / "s" / "ns"
    state.scratch = tmp_path / "scratch"
    made = plan(hosts=2, rtt_us=500)
    state.create(made)
    assert state.load() == made
    assert (state.directory / "endpoints" / "c2" / "hostip").read_text() == "198.18.0.2\n"
    (state.directory / "lab.json").write_text("{")
    with pytest.raises(LabError, match="slimlab down"):
        state.load()


def test_inventory_holds_the_contract(tmp_path: Path) -> None:
    state = State("unit")
    state.scratch = tmp_path
    data = inventory.describe(state, plan(hosts=2, endpoints_per_host=2))["slim_hosts"]
    node1 = data["hosts"]["node1"]
    assert node1["slim_host_address"] == "198.18.0.1"
    assert [end["name"] for end in node1["slim_endpoints"]] == ["c1", "c3"]
    assert node1["slim_endpoints"][0] == {
        "name": "c1", "vip": "10.44.0.1", "tenant": "default",
        "netns": "/run/netns/c1", "attach": True,
    }  # fmt: skip
    assert data["vars"]["slim_overlay_networks"] == ["10.44.0.0/16"]
    assert data["vars"]["slim_service_manager"] == "keeper"
    shell = Path(node1["ansible_shell_executable"])
    assert os.access(shell, os.X_OK)
    assert 'sh "$@"' in shell.read_text()
    json.dumps(data)


def test_environment_of_ansible_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_STDOUT_CALLBACK", "odd")
    found = inventory.environment(State("unit"), Plan(run="abc"))
    assert "ANSIBLE_STDOUT_CALLBACK" not in found
    assert found[names.RUN_MARK] == "abc"


def test_routes_are_replaced_with_cubic() -> None:
    routes = (
        "default via 198.18.0.254 dev eth0 linkdown \n"
        "198.18.0.0/24 dev eth0 proto kernel scope link src 198.18.0.1 \n"
        "local 127.0.0.1 dev lo table local proto kernel scope host src 127.0.0.1 \n"
        "broadcast 198.18.0.255 dev eth0 table local proto kernel scope link src 198.18.0.1 \n"
        "10.0.0.0/8 dev eth0 congctl cubic \n"
    )
    lines = congestion.replacements(routes)
    assert len(lines) == 3
    assert lines[0] == "route replace default via 198.18.0.254 dev eth0 congctl cubic"
    assert all(line.endswith("congctl cubic") for line in lines)


def test_push_wants_an_absolute_path_that_exists(tmp_path: Path) -> None:
    assert push.check(str(tmp_path)) == tmp_path
    for bad in ("relative", "./x", "", str(tmp_path / "absent")):
        with pytest.raises(Refused):
            push.check(bad)
    assert push.own_to_nodes(Path("/run/x"))
    assert push.own_to_nodes(Path("/opt/slim"))
    assert not push.own_to_nodes(Path("/opt/slimmer"))
    assert not push.own_to_nodes(Path("/tmp/x"))


def test_macs_are_local_and_differ() -> None:
    made = {stub.mac(f"10.44.0.{number}") for number in range(1, 250)}
    assert len(made) == 249
    assert all(int(mac[:2], 16) & 3 == 2 for mac in made)


def test_only_marked_processes_are_members() -> None:
    mark = f"unit{os.getpid()}"
    marked = subprocess.Popen(["sleep", "60"], env={**os.environ, names.RUN_MARK: mark})
    plain = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found: list[int] = []
        while marked.pid not in found and marked.poll() is None:
            found = process.members(set(), mark)
        assert found == [marked.pid]
        assert process.end(set(), mark) == []
        assert marked.wait(5) == -15
        assert plain.poll() is None
        assert process.members(set(), "") == []
    finally:
        for each in (marked, plain):
            each.kill()
            each.wait()


def test_we_and_our_ancestors_are_never_members() -> None:
    here = process.identity(Path("/proc/self/ns/net"))
    assert here is not None
    found = process.members({here})
    assert os.getpid() not in found
    assert os.getppid() not in found
