# SPDX-License-Identifier: Apache-2.0
"""Containers that come and go: the role slim_cni, and the plugin on namespaces of the test's.

node1                         node2
c1   web (attached)           c2   web (attached, after it moved)
  \\___ br-slim ___ VXLAN ___ br-slim ___/
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.client import SLIMCTL, Lab, wait_for
from tests.integration.helpers import gone, read_until, starved
from tests.integration.plays import changed
from tests.integration.runtime import BIN, Container, attached, deploy, traces

VIP = "10.44.128.7"
PORT = 7340
GATE_CHURNS, LONG_CHURNS = 10, 200
FOUND_S = 2.0
"""Where a container has moved to is known to new connections after this time, on workers that
have a CPU."""

# Greets, and stays.
SERVER = """
import socket, sys, threading
def serve(sock):
    with sock:
        sock.sendall(sys.argv[3].encode() + b"\\n")
        sock.recv(1)
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

# Says who answered and after how many seconds, those without a CPU left out; then how the
# connection ended. Where nobody answers, it asks again.
CLIENT = """
import socket, sys, time
def now():
    with open("/proc/self/schedstat") as file:
        return time.monotonic() - int(file.read().split()[1]) / 1e9
began, end = now(), time.monotonic() + 30
while True:
    try:
        sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)
        word = sock.makefile().readline().strip()
        print(f"met {word} after {now() - began:.2f}", flush=True)
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.02)
sock.settimeout(60)
try:
    print("end!" if sock.recv(1) == b"" else "data!", flush=True)
except TimeoutError:
    print("hangs!", flush=True)
except ConnectionError:
    print("reset!", flush=True)
"""


@pytest.fixture
def start(cni: Lab) -> Iterator[Any]:
    """Starts containers; those that are left at the end go, and the router notices."""
    made: list[Container] = []

    def begin(node: str, name: str, vip: str = VIP) -> Container:
        made.append(Container(cni, node, name, vip))
        return made[-1].start()

    yield begin
    cni.end_processes()
    for container in made:
        container.stop()
    for node in cni.nodes:
        wait_for(lambda node=node: not attached(cni, node), 20, f"{node} has nothing attached")


def serve(container: Container, word: str) -> subprocess.Popen[str]:
    server = container.popen(sys.executable, "-c", SERVER, container.vip, str(PORT), word)
    read_until(server, "ready")
    return server


def client(lab: Lab, endpoint: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLIENT, VIP, str(PORT)]
    return lab.popen(endpoint, words, stdout=subprocess.PIPE, text=True)


def end_of(process: subprocess.Popen[str]) -> str:
    """How the connection of a client that has met its server ended."""
    return read_until(process, "!", 60).split()[-1].rstrip("!")


def paths(lab: Lab, node: str, name: str) -> list[str]:
    rows = lab.slimctl(node, "connections", "--endpoint", name)["connections"]
    return [row["path"] for row in rows]


def test_a_container_is_served_as_long_as_it_lives(cni: Lab, start: Any) -> None:
    web = start("node1", "web")
    assert web.cni("ADD")["ips"][0]["address"] == f"{VIP}/16"
    assert attached(cni, "node1")["web"]["state"] == "up"
    serve(web, "one")
    first = client(cni, "c2")
    read_until(first, "met one")
    wait_for(lambda: paths(cni, "node1", "web") == ["slim"], 15, "it is on the host path")
    assert web.cni("ADD")["ips"][0]["address"] == f"{VIP}/16", "said twice"
    assert web.cni("CHECK") is None
    assert first.poll() is None
    for _unused in range(2):
        assert web.cni("DEL") is None
    assert attached(cni, "node1") == {}
    # The program lives on: its connection was ended, not forgotten.
    assert end_of(first) == "reset"
    assert web.cni("CHECK", check=False)["code"] == 3


def test_gc_ends_what_the_runtime_does_not_know(cni: Lab, start: Any) -> None:
    kept, lost = start("node1", "kept", "10.44.128.8"), start("node1", "lost", "10.44.128.9")
    for each in (kept, lost):
        each.cni("ADD")
    valid = [{"containerID": "kept", "ifname": "eth0"}]
    for _unused in range(2):
        kept.cni("GC", **{"cni.dev/valid-attachments": valid})
        assert list(attached(cni, "node1")) == ["kept"]
    assert kept.cni("CHECK") is None
    assert kept.cni("VERSION")["supportedVersions"][-1] == "1.1.0"
    assert kept.cni("STATUS") is None


def test_a_container_that_moves_keeps_its_vip(cni: Lab, start: Any) -> None:
    """Its old host never hears of its end: the link just went down."""
    old = start("node1", "web")
    old.cni("ADD")
    serve(old, "old")
    before = {place: client(cni, place) for place in ("c1", "c2")}
    for process in before.values():
        read_until(process, "met old")
    for place, node in (("c1", "node1"), ("c2", "node2")):
        wait_for(
            lambda place=place, node=node: paths(cni, node, place) == ["slim"], 15, "the host path"
        )
    cni.run("node1", ["ip", "link", "set", f"p-{old.name}", "down"])
    new = start("node2", "web2")
    serve(new, "new")
    new.cni("ADD")
    waited = starved(cni, "c1", "c2")
    after = {place: client(cni, place) for place in ("c1", "c2")}
    met = [read_until(process, "\n", 40).split() for process in after.values()]
    assert {words[1] for words in met} == {"new"}
    took = [float(words[3]) for words in met]
    waited = starved(cni, "c1", "c2") - waited
    for process in before.values():
        assert end_of(process) == "reset"
    wait_for(lambda: not attached(cni, "node1"), 10, "node1 has given it up")
    assert all(process.poll() is None for process in after.values()), "what is new lives"
    assert max(took) < FOUND_S + waited, f"found after {took} s, {waited:.2f} without a CPU"


def test_a_container_that_leaves_a_dead_host_is_followed(cni: Lab, start: Any) -> None:
    """Nobody on the old host ends anything: its router is dead, its sockets live."""
    old = start("node1", "web")
    old.cni("ADD")
    serve(old, "old")
    before = client(cni, "c2")
    read_until(before, "met old")
    wait_for(lambda: paths(cni, "node2", "c2") == ["slim"], 15, "the host path")
    with gone(cni, "node1"):
        cni.run("node1", ["ip", "link", "set", f"p-{old.name}", "down"])
        new = start("node2", "web2")
        serve(new, "new")
        new.cni("ADD")
        assert end_of(before) == "reset"
        after = client(cni, "c2")
        read_until(after, "met new", 40)
    wait_for(lambda: not attached(cni, "node1"), 30, "node1 has given it up")
    assert after.poll() is None


def test_what_was_missed_is_found(cni: Lab, start: Any) -> None:
    web, other = start("node1", "web"), start("node1", "other", "10.44.128.8")
    web.cni("ADD")
    with gone(cni, "node1"):
        # Without a router a container starts all the same, and ends all the same.
        other.cni("ADD")
        web.stop()
    wait_for(lambda: list(attached(cni, "node1")) == ["other"], 15, "one came, one went")
    assert attached(cni, "node1")["other"]["vip"] == "10.44.128.8"
    other.stop()
    wait_for(lambda: not attached(cni, "node1"), 15, "nothing is left")


def test_a_container_that_cannot_be_served_is_refused(cni: Lab, start: Any) -> None:
    stray = start("node1", "stray", "10.44.200.1")
    said = stray.cni("ADD", check=False)
    assert said["code"] == 100
    assert "none of 10.44.200.1 lies in a pool" in said["msg"]
    assert attached(cni, "node1") == {}
    stray.cni("DEL")


CHURN = """
import json, os, subprocess, sys
plugin, times, netns, config = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
for number in range(times):
    for command in ("ADD", "DEL"):
        env = {**os.environ, "CNI_COMMAND": command, "CNI_CONTAINERID": f"churn{number}",
               "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
        done = subprocess.run([plugin], input=config, env=env, text=True, capture_output=True)
        assert done.returncode == 0, (number, command, done.stdout, done.stderr)
print("done")
"""


@pytest.mark.parametrize(
    "times", [GATE_CHURNS, pytest.param(LONG_CHURNS, marks=pytest.mark.long)]
)  # fmt: skip
def test_churns_leave_nothing(cni: Lab, start: Any, times: int) -> None:
    web = start("node1", "churn")

    def left() -> tuple[int, int, int, int]:
        status = cni.slimctl("node1", "status")
        pid = cni.router_pid("node1")
        fds = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        files = cni.run("node1", "ls /run/slim/attached /run/slim/rows | wc -l").stdout
        claims = cni.slimctl("node2", "status")["trunks"][0]["endpoints"]
        assert status["attached"]["count"] == 0
        return sum(status["endpoints"].values()), claims, int(files), fds

    web.cni("ADD")  # once, so that what is made once is there
    web.cni("DEL")
    before = left()
    words = [sys.executable, "-c", CHURN, f"{BIN}/slim", str(times), web.netns]
    done = cni.run("node1", [*words, json.dumps(web.config())], timeout=200)
    assert done.stdout == "done\n"
    wait_for(lambda: left()[:3] == before[:3], 10, f"as before: {before}")
    assert left()[3] <= before[3] + 3, "descriptors"
    assert cni.run("node1", [SLIMCTL, "endpoints"]).returncode == 0


@pytest.mark.long
def test_the_role_says_what_it_would_do_and_goes_without_a_trace(cni: Lab, tmp_path: Path) -> None:
    assert changed(deploy(cni, tmp_path, False, "--diff")) == 0
    assert changed(deploy(cni, tmp_path, True, "--check")) > 0
    assert traces(cni)
    assert changed(deploy(cni, tmp_path, True)) > 0
    try:
        assert traces(cni) == []
        assert changed(deploy(cni, tmp_path, True)) == 0
        assert changed(deploy(cni, tmp_path, False, "--check", "--diff")) > 0
        assert traces(cni) == []
    finally:
        assert changed(deploy(cni, tmp_path, False)) > 0
