# SPDX-License-Identifier: Apache-2.0
"""The lab's virtual machines, as far as they can be tried without one."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import cli, inventory, names
from lab.errors import LabError, Refused
from lab.state import Plan, State
from lab.vm import deployed, fleet, guest, image, layout, machine, remote, ssh, switch


def options(*words: str) -> argparse.Namespace:
    return cli._parser().parse_args(["up", *words])


@pytest.mark.parametrize(
    ("words", "names_it"),
    [
        (("--secure", "bpf"), "--kind vm"),
        (("--secure", "kmod"), "--kind vm"),
        (("--kernel", "6.12"), "--kernel"),
        (("--append", "quiet"), "--append"),
        (("--kind", "vm", "--hosts", "49"), "--hosts 49"),
        (("--kind", "vm", "--no-deploy"), "--no-deploy"),
        (("--kind", "vm", "--kernel", "5.4"), "5.4"),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], names_it: str) -> None:
    with pytest.raises(Refused, match=names_it) as refusal:
        cli._plan(options(*words))
    assert refusal.value.status == 2


def test_plans_name_their_kernel() -> None:
    assert cli._plan(options()).kernel == ""
    assert cli._plan(options("--kind", "vm")).kernel == layout.DEFAULT_KERNEL
    plan = cli._plan(options("--kind", "vm", "--kernel", "6.12", "--append", "slub_debug=FZPU"))
    assert (plan.kind, plan.kernel, plan.append) == ("vm", "6.12", "slub_debug=FZPU")
    assert cli._plan(options("--kind", "vm", "--secure", "bpf")).secure == "bpf"


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State("unit")
    made.directory, made.scratch = tmp_path / "s", tmp_path / "scratch"
    made.pins = made.directory / "ns"
    return made


def test_inventory_is_a_fleets(state: State, tmp_path: Path) -> None:
    plan = Plan(kind="vm", kernel="6.1", secure="kmod")
    plan.lay_out()
    state.create(plan)
    place = guest.directory(state)
    for number, node in enumerate(plan.nodes):
        (place / node.name).mkdir(parents=True)
        (place / node.name / "port").write_text(f"{2201 + number}\n")
    (place / "image").write_text(f"{tmp_path}\n")
    data = inventory.describe(state, plan)["slim_hosts"]
    assert data["hosts"]["node2"]["ansible_host"] == "127.0.0.1"
    assert data["hosts"]["node2"]["ansible_port"] == 2202
    assert data["hosts"]["node2"]["slim_host_address"] == "198.18.0.2"
    assert data["hosts"]["node2"]["slim_endpoints"][0]["netns"] == "/run/netns/c2"
    assert data["vars"]["slim_secure_mode"] == "kmod"
    for word in ("ansible_connection", "slim_service_manager", "slim_router_python"):
        assert word not in data["vars"], "as on any fleet"
    json.dumps(data)


def test_slots_are_those_that_the_guest_knows() -> None:
    links = layout.SOURCES / "rootfs" / "etc" / "systemd" / "network"
    for name, slot in (("mgmt0", layout.SLOT_MANAGEMENT), ("lan0", layout.SLOT_CABLE)):
        assert f"0000:00:{slot:02x}.0\n" in (links / f"10-{name}.link").read_text()


def test_recipe_is_the_images_name() -> None:
    assert image.recipe() == image.recipe()
    assert len(image.recipe()) == 12


def test_deployed_nodes_are_those_of_the_same_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(names, "CHECKOUT", tmp_path)
    monkeypatch.setattr(layout, "CACHE", tmp_path / ".cache")
    (tmp_path / "roles" / "r").mkdir(parents=True)
    (tmp_path / "roles" / "r" / "main.yml").write_text("one")
    plan, disk = Plan(kind="vm", kernel="6.1"), tmp_path / "disk"
    first = deployed._directory(plan, disk)
    assert deployed.find(plan, disk) is None
    first.mkdir(parents=True)
    assert deployed.find(plan, disk) == first
    (tmp_path / "roles" / "r" / "build").mkdir()
    (tmp_path / "roles" / "r" / "build" / "made").touch()
    assert deployed.find(plan, disk) == first
    assert deployed.find(Plan(kind="vm", kernel="6.12"), disk) is None
    assert deployed.find(Plan(kind="vm", kernel="6.1", append="quiet"), disk) is None
    (tmp_path / "roles" / "r" / "main.yml").write_text("two")
    assert deployed.find(plan, disk) is None


def test_way_in_is_on_the_loopback_only() -> None:
    words = machine.management(2222)
    assert "restrict=on" in words
    assert "hostfwd=tcp:127.0.0.1:2222-:22" in words
    section = ssh.Host(Path("/run/x/ssh_config"), "node1").section(
        2222, Path("/k"), Path("/kh"), "alias"
    )
    assert "StrictHostKeyChecking yes" in section
    assert "HostName 127.0.0.1" in section


def test_a_recycled_pid_is_nobody(tmp_path: Path) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        known = machine.Machine(tmp_path)
        started = machine._started(bystander.pid)
        assert started
        known.pidfile.write_text(f"{bystander.pid} {int(started) - 1}\n")
        assert known.pid() is None
        known.end()
        assert bystander.poll() is None
        assert not known.pidfile.exists()
        known.pidfile.write_text(f"{bystander.pid} {started}\n")
        assert known.pid() == bystander.pid
        known.end()
        assert bystander.wait(5) == -signal.SIGTERM
    finally:
        bystander.kill()
        bystander.wait()


def test_a_machine_that_does_not_start_says_why(tmp_path: Path) -> None:
    failing = machine.Machine(tmp_path)
    failing.start(["sh", "-c", "echo no such disk >&2; exit 1"], "unit")
    with pytest.raises(LabError, match="no such disk"):
        failing.await_monitor(10)


def test_memory_bounds_the_machines() -> None:
    fleet.check(1)
    with pytest.raises(Refused, match="memory for"):
        fleet.check(100_000)


# The switch: node1, node2 and node3 on it.


def frame(to: int, sender: int, text: bytes = b"") -> bytes:
    return bytes([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, sender, 8, 0]) + text


class Cables:
    def __init__(self, directory: Path, delay_us: int) -> None:
        self.directory = directory
        self.nodes = ["node1", "node2", "node3"]
        self.ends: dict[str, socket.socket] = {}
        for node in self.nodes:
            end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            end.bind(str(directory / f"{node}.cable"))
            end.settimeout(5)
            self.ends[node] = end
        words = [sys.executable, "-m", "lab.vm.switch", str(directory), str(delay_us), *self.nodes]
        self.process = subprocess.Popen(
            words, env={**os.environ, "PYTHONPATH": str(names.CHECKOUT / "tools")}
        )
        deadline = time.monotonic() + 10
        while not (directory / "node3.port").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def send(self, node: str, data: bytes) -> None:
        self.ends[node].sendto(data, str(self.directory / f"{node}.port"))

    def got(self, node: str) -> bytes:
        return self.ends[node].recv(65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for end in self.ends.values():
            end.close()


@pytest.fixture(params=[0, 30_000])
def cables(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    # A short directory: a socket's path has to fit into 107 bytes.
    made = Cables(tmp_path_factory.mktemp("sw"), request.param)
    made.delay_s = request.param / 1e6  # type: ignore[attr-defined]
    yield made
    made.close()


def test_switch_learns_and_delays(cables: Cables) -> None:
    unknown = frame(9, 1, b"to nobody known")
    started = time.monotonic()
    cables.send("node1", unknown)
    assert cables.got("node2") == unknown
    assert time.monotonic() - started >= cables.delay_s  # type: ignore[attr-defined]
    assert cables.got("node3") == unknown
    known = frame(1, 2, b"to node1")
    cables.send("node2", known)
    assert cables.got("node1") == known
    everybody = bytes([255] * 6) + frame(0, 3)[6:]
    cables.send("node3", everybody)
    # Nothing but the broadcast has come: the frame for node1 went there alone.
    assert cables.got("node1") == everybody
    assert cables.got("node2") == everybody
    cables.send("node1", b"short")
    cables.send("node1", frame(2, 1, b"last"))
    assert cables.got("node2") == frame(2, 1, b"last")
    cables.send("node1", frame(3, 1, b"last"))
    assert cables.got("node3") == frame(3, 1, b"last"), "node3 has not seen its own broadcast"


def test_switch_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch, "QUEUE", 3)
    made = switch.Switch(tmp_path, 1.0, ["a", "b"])
    for _frame in range(9):
        made.take("a", frame(1, 2), 0.0)
    assert len(made.waiting) == 3
    for port in made.ports.values():
        port.close()


# The agent, which runs on this machine as well as on a node.


class Agent:
    def __init__(self, directory: Path) -> None:
        self.program = directory / "agent"
        self.state = directory / "state"
        subprocess.run(
            [
                *("gcc", "-Wall", "-Wextra", "-Werror", f'-DSTATE="{self.state}"'),
                *("-o", str(self.program), str(layout.SOURCES / "agent.c")),
            ],
            check=True,
        )

    def start(self, *command: str, name: str = "abc1") -> subprocess.Popen[str]:
        # As sshd starts it: whoever runs the tests in the background ignores SIGINT.
        return subprocess.Popen(
            ["env", "--default-signal", str(self.program), "run", name, "/", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *words], capture_output=True, text=True, timeout=20, check=False
        )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    return Agent(tmp_path_factory.mktemp("agent"))


def test_agent_passes_input_output_and_status(agent: Agent) -> None:
    process = agent.start("sh", "-c", "cat; exit 42")
    assert process.communicate("words", timeout=10)[0] == "words"
    assert process.returncode == 42
    assert agent.ask("status", "abc1").returncode == 1, "an exit status says it all"
    assert not list(agent.state.iterdir())
    assert agent.start("/nonexistent/program").wait(10) == 127


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_agent_passes_signals(agent: Agent, number: signal.Signals) -> None:
    process = agent.start("sleep", "60", name="abc2")
    # At once: the command may not even have started.
    assert agent.ask("kill", "abc2", str(int(number))).returncode == 0
    process.wait(10)
    assert agent.ask("status", "abc2").stdout == f"signal {int(number)}\n"
    assert not list(agent.state.iterdir())


def test_agent_tells_statuses_that_ssh_cannot(agent: Agent) -> None:
    assert agent.start("sh", "-c", "exit 255").wait(10) == 255
    assert agent.ask("status", "abc1").stdout == "exit 255\n"


def test_agent_ends_what_nobody_listens_to(agent: Agent, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    process = agent.start("sh", "-c", f"echo $$ >{note}.new; mv {note}.new {note}; sleep 60")
    deadline = time.monotonic() + 10
    while not note.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(10) == 129
    assert not Path(f"/proc/{note.read_text().strip()}").exists()


@pytest.mark.parametrize("name", ["", "../x", "a" * 33, "A"])
def test_agent_wants_an_identifier(agent: Agent, name: str) -> None:
    done = agent.ask("status", name)
    assert done.returncode == 125
    assert "no identifier" in done.stderr


def test_secure_labs_drop_what_secure_mode_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLIM_X", "1")
    monkeypatch.setenv("SECRET", "2")
    monkeypatch.setenv("LD_PRELOAD", "/a.so")
    words = remote.words_inside("c1", "libslim.so", True, ["id"])
    assert words[:4] == ["ip", "netns", "exec", "c1"]
    assert "--bounding-set=-net_admin,-net_raw,-sys_admin" in words
    assert "LD_PRELOAD=/opt/slim/shim/current/libslim.so:/a.so" in words
    assert "SLIM_X=1" in words
    assert words[-1] == "id"
    assert "SECRET=2" not in words
    assert "setpriv" not in remote.words_inside("-", "-", True, ["id"])
    assert "setpriv" not in remote.words_inside("c1", "-", False, ["id"])
