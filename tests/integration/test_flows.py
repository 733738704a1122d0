# SPDX-License-Identifier: Apache-2.0
"""The flow log of both hosts tells the same story of the same connections.

node1: flows.jsonl                   node2: flows.jsonl
c1 client ---- host path ----------- c2 echo server with the shim     open, close twice
c1 client ---- overlay ------------- c2 server without the shim       fallback, close
c1 client --x  (policy)                                               refuse, revoke

Bounds of a second for a connect: on a busy machine, too, what can take the host path does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    NODES,
    PATIENCE,
    as_deployed,
    configure,
    read_until,
    settle,
)

PATH = "/run/slim/flows.jsonl"
PORT, BARE = 7310, 7311
SIZE = 100_000

ECHO = """
import socket, sys, threading
def serve(sock):
    with sock:
        while data := sock.recv(65536):
            sock.sendall(data)
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

# Connects, sends and reads back so many bytes; waits for a line before it closes.
CLIENT = """
import socket, sys
size = int(sys.argv[3])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    sock.sendall(bytes(size))
    left = size
    while left:
        left -= len(sock.recv(left))
    print(f"done {sock.getsockname()[1]} ", flush=True)
    if len(sys.argv) > 4:
        sock.settimeout(60)
        try:
            sock.recv(1)
        except OSError:
            print("end", flush=True)
"""


class Log:
    """The flow log of one node."""

    def __init__(self, lab: Lab, node: str) -> None:
        self.lab = lab
        self.node = node

    def lines(self, event: str, **wanted: object) -> list[dict[str, Any]]:
        text = self.lab.run(self.node, ["cat", PATH]).stdout
        found = [json.loads(line) for line in text.splitlines()]
        assert all(line["v"] == 1 and line["host"] == self.node for line in found)
        return [
            line
            for line in found
            if line["event"] == event and all(line[key] == value for key, value in wanted.items())
        ]

    def one(self, event: str, **wanted: object) -> dict[str, Any]:
        found = wait_for(
            lambda: self.lines(event, **wanted), 60, f"{event} {wanted} in the log of {self.node}"
        )
        assert len(found) == 1, found
        return found[0]


@pytest.fixture(scope="module", autouse=True)
def _patient(session_lab: Lab) -> Iterator[None]:
    if not session_lab.deployed:
        yield
        return
    with as_deployed(session_lab):
        for node in NODES:
            configure(session_lab, node, bounds=PATIENCE)
        settle(session_lab)
        yield


@pytest.fixture
def logs(slim_lab: Lab) -> Iterator[dict[str, Log]]:
    """The logs of the nodes, switched on without a restart."""
    for node in slim_lab.nodes:
        slim_lab.run(node, ["rm", "-f", PATH])
        configure(slim_lab, node, flow_log={"path": PATH, "max_bytes": 1 << 20, "files": 2})
    yield {node: Log(slim_lab, node) for node in slim_lab.nodes}
    for node in slim_lab.nodes:
        configure(slim_lab, node, flow_log=None)
        slim_lab.run(node, ["rm", "-f", PATH])


@pytest.fixture
def echo(slim_lab: Lab) -> None:
    """Echo servers in c2, one with and one without the shim."""
    for port, mode in ((PORT, "slim"), (BARE, "overlay")):
        server = slim_lab.popen(
            "c2", [sys.executable, "-c", ECHO, slim_lab.ip("c2"), str(port)], mode,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        read_until(server, "ready")


def client(lab: Lab, port: int, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLIENT, lab.ip("c2"), str(port), str(SIZE), *more]
    return lab.popen("c1", words, stdout=subprocess.PIPE, text=True)


def connect(lab: Lab, port: int) -> int:
    """A whole connection; the client's port."""
    process = client(lab, port)
    said = read_until(process, "\n").split()
    assert process.wait(20) == 0
    return int(said[1])


@pytest.mark.usefixtures("echo")
def test_a_connection_is_told_of_by_both_hosts(slim_lab: Lab, logs: dict[str, Log]) -> None:
    here, there = logs["node1"], logs["node2"]
    for _unused in ("cold", "warm"):
        sport = connect(slim_lab, PORT)
        opened = here.one("open", sport=sport)
        accepted = there.one("open", sport=sport)
        assert (opened["direction"], accepted["direction"]) == ("out", "in")
        assert (opened["endpoint"], accepted["endpoint"]) == ("c1", "c2")
        names = ("src", "sport", "dst", "dport", "hsrc", "hsport", "hdst", "hdport")
        same = {name: opened[name] for name in names}
        assert same == {name: accepted[name] for name in names}
        assert (same["src"], same["dst"]) == (slim_lab.ip("c1"), slim_lab.ip("c2"))
        assert (same["hsrc"], same["hdst"]) == (slim_lab.hostip("c1"), slim_lab.hostip("c2"))
        for log, before in ((here, opened), (there, accepted)):
            closed = log.one("close", id=before["id"])
            assert {name: closed[name] for name in names} == same
            figures = closed["figures"]
            # the hello and the COMMIT before the application's bytes; SYN and FIN
            assert SIZE <= figures["bytes_sent"] <= SIZE + 300
            assert SIZE <= figures["bytes_received"] <= SIZE + 300
            assert figures["rtt_us"] > 0
            assert before["time"] <= closed["time"]


@pytest.mark.usefixtures("echo")
def test_the_overlay_is_told_of_with_the_reason(slim_lab: Lab, logs: dict[str, Log]) -> None:
    sport = connect(slim_lab, BARE)
    fallen = logs["node1"].one("fallback", dport=BARE)
    assert (fallen["why"], fallen["path"]) == ("peer-not-listening", "overlay")
    assert fallen["hsrc"] is None
    closed = logs["node1"].one("close", id=fallen["id"])
    assert closed["sport"] == sport, "the kernel has told the port"
    assert SIZE <= closed["figures"]["bytes_sent"] <= SIZE + 2


@pytest.mark.usefixtures("echo")
def test_the_policy_is_told_of_with_its_rule(slim_lab: Lab, logs: dict[str, Log]) -> None:
    here, there = logs["node1"], logs["node2"]
    process = client(slim_lab, PORT, "stay")
    sport = int(read_until(process, "\n").split()[1])
    rules = {
        "default": "allow",
        "rules": [
            {"id": "allow-other", "action": "allow", "ports": [1]},
            {"id": "no-echo", "action": "deny", "destinations": [slim_lab.ip("c2")],
             "ports": [PORT]},
        ],
    }  # fmt: skip
    empty = {"default": "allow", "rules": []}
    try:
        for node in slim_lab.nodes:
            put(slim_lab, node, rules)
        read_until(process, "end")
        # Node1 was told first: its abort is what node2 sees.
        revoked = here.one("revoke", sport=sport)
        assert (revoked["rule"], revoked["by"]) == ("no-echo", "policy")
        assert (revoked["hsrc"], revoked["hdst"]) == (slim_lab.hostip("c1"), slim_lab.hostip("c2"))
        for log in (here, there):
            opened = log.one("open", sport=sport)
            assert log.one("close", id=opened["id"])["figures"]["bytes_sent"] >= SIZE
        assert here.one("open", sport=sport)["id"] == revoked["id"]
        failed = client(slim_lab, PORT)
        assert failed.wait(20) != 0
        refused = here.one("refuse", dport=PORT)
        assert (refused["rule"], refused["direction"]) == ("no-echo", "out")
    finally:
        for node in slim_lab.nodes:
            put(slim_lab, node, empty)


def put(lab: Lab, node: str, rules: dict[str, Any]) -> None:
    words = ["/opt/slim/router/current/slimctl", "acl-set", "-", "--json"]
    lab.run(node, words, stdin=json.dumps(rules))


@pytest.mark.usefixtures("echo")
def test_a_log_that_cannot_be_written_costs_no_connection(slim_lab: Lab) -> None:
    configure(slim_lab, "node1", flow_log={"path": "/nowhere/flows.jsonl"})
    try:
        for _unused in range(3):
            connect(slim_lab, PORT)
        report = wait_for(
            lambda: (r := slim_lab.slimctl("node1", "status")["flow_log"])["dropped"] >= 7 and r,
            15, "its first line, three beginnings and three ends are counted as lost",
        )  # fmt: skip
        assert "No such file" in report["cause"]
        assert slim_lab.slimctl("node1", "connections")["incomplete"] == []
    finally:
        configure(slim_lab, "node1", flow_log=None)


@pytest.mark.usefixtures("echo")
def test_closes_are_told_across_the_end_of_a_worker(slim_lab: Lab, logs: dict[str, Log]) -> None:
    """The supervisor remembers what was open: a worker's end loses no close."""
    process = client(slim_lab, PORT, "stay")
    sport = int(read_until(process, "\n").split()[1])
    opened = logs["node1"].one("open", sport=sport)
    (before,) = [ep for ep in slim_lab.slimctl("node1", "endpoints")["endpoints"]
                 if ep["name"] == "c1"]  # fmt: skip
    slim_lab.run("node1", ["kill", "-KILL", str(before["pid"])])
    wait_for(
        lambda: any(
            ep["name"] == "c1" and ep["state"] == "up" and ep["pid"] != before["pid"]
            for ep in slim_lab.slimctl("node1", "endpoints")["endpoints"]
        ),
        15, "another worker serves c1",
    )  # fmt: skip
    process.kill()
    assert logs["node1"].one("close", id=opened["id"])["figures"]["bytes_received"] >= SIZE
