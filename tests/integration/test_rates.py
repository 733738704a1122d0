# SPDX-License-Identifier: Apache-2.0
"""Rates and classes of service, by role and modules, on live traffic.

node1                                    node2
c1 (limited) ---- over Slim ---------->  c2: sink, peers
   |         ---- over the overlay --->
   +-- c3: sink, inside of the host
eth0: WATCH, on what leaves the host

No lower bound for what is sent: that is the machine's business, and bench.rates'. What is
above the limit is ours.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.client import Lab
from tests.integration.helpers import PEER_PORT, PYTHON, read_until, settle, start_peer
from tests.integration.plays import PLAYBOOKS, changed, play, results
from tests.integration.test_policy import OTHER_PORT, Holder, warm

PORT = 7471
BYTES = 5_000_000
LIMIT = 20_000_000
FRAME = 1514 / 1448
"""Ethernet, IPv4 and TCP with timestamps around a segment; less for larger segments."""
SHORT = 1.05
"""How far above the limit what is counted may be."""

SINK = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    sock, _ = listener.accept()
    count = 0
    while data := sock.recv(1 << 16):
        count += len(data)
    sock.sendall(count.to_bytes(8, "big"))
    sock.close()
"""
POUR = """
import socket, sys, time
size = int(sys.argv[3])
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as sock:
    sock.settimeout(120)
    sock.sendall(bytes(200_000))  # what a bucket lets through at once
    began = time.monotonic()
    sock.sendall(bytes(size))
    sock.shutdown(socket.SHUT_WR)
    count = int.from_bytes(sock.recv(8, socket.MSG_WAITALL), "big")
    assert count == size + 200_000
    print(time.monotonic() - began)
"""

# For each line that it reads: [source port, destination port, TOS, is data, TOS around it or -1]
# of the TCP packets that have left by eth0 since the last one; those in VXLAN have one around
# them. A packet is in the socket's queue before the sender's call returns. Numbers:
# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h, RFC 791, RFC 7348, RFC 9293.
WATCH = """
import json, selectors, socket, sys
IPV4, OUTGOING, STATISTICS, RCVBUFFORCE, VXLAN = 0x0800, 4, 6, 33, 8472
def number(packet, at):
    return int.from_bytes(packet[at : at + 2], "big")
def look(packet, around=-1):
    head = (packet[0] & 15) * 4
    ports = number(packet, head), number(packet, head + 2)
    if packet[9] == socket.IPPROTO_TCP:
        data = number(packet, 2) - head - (packet[head + 12] >> 4) * 4
        seen.add((*ports, packet[1], data > 0, around))
    elif packet[9] == socket.IPPROTO_UDP and ports[1] == VXLAN and around < 0:
        frame = packet[head + 16 :]
        if number(frame, 12) == IPV4:
            look(frame[14:], packet[1])
seen = set()
sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
sock.setsockopt(socket.SOL_SOCKET, RCVBUFFORCE, 1 << 24)
sock.setblocking(False)
sock.bind(("eth0", 3))  # ETH_P_ALL: what leaves is seen by no other
poll = selectors.DefaultSelector()
poll.register(sock, selectors.EVENT_READ)
poll.register(sys.stdin, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    ready = [key.fileobj for key, _ in poll.select()]
    try:
        while True:
            packet, where = sock.recvfrom(256)
            if where[1] == IPV4 and where[2] == OUTGOING:
                look(packet)
    except BlockingIOError:
        pass
    if sys.stdin in ready:
        if not sys.stdin.readline():
            break
        lost = int.from_bytes(sock.getsockopt(263, STATISTICS, 8)[4:], sys.byteorder)
        print(json.dumps({"lost": lost, "seen": sorted(seen)}), flush=True)
        seen.clear()
"""

HELPER = {"python": "{{ slim_router_python | default(omit) }}"}


def tasks(path: Path, node: str, *listed: dict[str, Any]) -> Path:
    """A playbook of these tasks (JSON is YAML)."""
    book = [{"hosts": node, "gather_facts": False, "become": True, "tasks": list(listed)}]
    path.write_text(json.dumps(book))
    return path


@pytest.fixture(scope="module")
def shaped(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab with the role slim_qos, and without it afterwards."""
    if not session_lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    enabled = ("-e", "slim_qos_enabled=true", "--tags", "slim_preflight,slim_qos")
    status, said = play(session_lab, PLAYBOOKS / "site.yml", *enabled)
    assert status == 0, said
    try:
        status, said = play(session_lab, PLAYBOOKS / "site.yml", *enabled)
        assert (status, changed(said)) == (0, 0), said
        yield session_lab
    finally:
        role = {"name": "slim.overlay.slim_qos", "tasks_from": "uninstall"}
        away = tasks(
            tmp_path_factory.mktemp("away") / "away.yml",
            "slim_hosts",
            {"name": "Away", "ansible.builtin.include_role": role},
        )
        status, said = play(session_lab, away)
        assert status == 0, said
        for node in session_lab.nodes:
            left = session_lab.run(node, "find /etc/slim /opt/slim /var/lib/slim -path '*qos*'")
            assert left.stdout == ""


@pytest.fixture
def sinks(shaped: Lab) -> Iterator[Lab]:
    settle(shaped)
    for endpoint in ("c2", "c3"):
        words = [PYTHON, "-c", SINK, shaped.ip(endpoint), str(PORT)]
        sink = shaped.popen(endpoint, words, stdout=subprocess.PIPE, text=True)
        read_until(sink, "ready")
    yield shaped
    shaped.end_processes()


def pour(lab: Lab, to: str, mode: str) -> float:
    """Bits a second, on the wire at the least."""
    words = [PYTHON, "-c", POUR, lab.ip(to), str(PORT), str(BYTES)]
    return 8 * BYTES / float(lab.run("c1", words, mode, timeout=150).stdout)


def test_a_limit_holds_over_every_way_and_a_second_run_changes_nothing(
    sinks: Lab, tmp_path: Path
) -> None:
    limit = {
        "name": "Limit",
        "slim.overlay.slim_rate_limit": {"endpoint": "c1", "egress": str(LIMIT), **HELPER},
    }
    book = tasks(tmp_path / "limit.yml", "node1", limit)
    status, said = play(sinks, book, "--check", "--diff")
    foreseen = results(said, "Limit")["node1"]
    assert (status, foreseen["changed"]) == (0, True), said
    assert str(LIMIT) in foreseen["diff"]["after"]
    status, said = play(sinks, book)
    done = results(said, "Limit")["node1"]
    assert (status, done["changed"], done["limits"]["egress"]) == (0, True, LIMIT), said
    status, said = play(sinks, book)
    assert (status, changed(said)) == (0, 0), said
    try:
        for to, mode in (("c2", "slim"), ("c2", "overlay"), ("c3", "slim")):
            rate = pour(sinks, to, mode)
            assert rate < LIMIT * SHORT, f"to {to} in mode {mode}: {rate / 1e6:.1f} Mbit/s"
    finally:
        lift = {
            "name": "Lift",
            "slim.overlay.slim_rate_limit": {"endpoint": "c1", "state": "absent", **HELPER},
        }
        status, said = play(sinks, tasks(tmp_path / "lift.yml", "node1", lift))
    assert (status, results(said, "Lift")["node1"]["limits"]["egress"]) == (0, 0), said
    assert pour(sinks, "c2", "slim") > LIMIT * SHORT, "nothing limits any more"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"endpoint": "nobody", "egress": "1mbit"}, "nobody"),
        ({"endpoint": "c1", "egress": "fast"}, "fast"),
        ({"endpoint": "c1"}, "egress"),
    ],
)
def test_bad_limits_are_refused_by_name(
    shaped: Lab, tmp_path: Path, arguments: dict[str, str], words: str
) -> None:
    task = {"name": "Limit", "slim.overlay.slim_rate_limit": {**arguments, **HELPER}}
    status, said = play(shaped, tasks(tmp_path / "bad.yml", "node1", task))
    answer = results(said, "Limit")["node1"]
    assert status and answer["failed"]
    assert words in answer["msg"]
    assert answer.get("kind") == ("refused" if len(arguments) > 1 else None)


class Service:
    """Connections of c1 with services of c2, or the reverse, and the packets that leave c1's host."""

    def __init__(self, lab: Lab, client: str, server: str) -> None:
        self.lab, self.client, self.server = lab, client, server
        self.node = lab.node_of("c1")
        for port in (PEER_PORT, OTHER_PORT):
            start_peer(lab, server, "slim", port=port)

    def tos(self, mode: str = "slim") -> dict[tuple[int, int], set[int]]:
        """By port of the service and TOS around (-1: a host connection), the TOS bytes of new
        connections: of every packet where c1 is the client; of its data where it is the server,
        whose kernel answers a handshake before there is a socket to set it on."""
        # Workers obey in order: one that has answered this has the class that was told it before.
        known = {row["cookie"] for row in self._rows()}
        watch = self.lab.popen(
            self.node, [PYTHON, "-c", WATCH],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        read_until(watch, "ready\n")
        holder = Holder(self.lab, self.client, self.lab.ip(self.server), mode)
        for port in (PEER_PORT, OTHER_PORT):
            if mode == "slim":
                warm(holder, port)
            else:
                holder.open(port, 1)
        assert set(holder.look().values()) == {"ok"}
        rows = [row for row in self._rows() if row["cookie"] not in known and row["path"] == mode]
        assert watch.stdin is not None
        watch.stdin.write("\n")
        watch.stdin.flush()
        said = json.loads(read_until(watch, "}\n", 30))
        assert said["lost"] == 0
        ends = {}
        for row in rows:
            ours, theirs = ("hsport", "hdport") if mode == "slim" else ("sport", "dport")
            if mode == "overlay" and row["direction"] == "in":
                ours, theirs = theirs, ours
            ends[row[ours], row[theirs]] = row["dport"]
        found: dict[tuple[int, int], set[int]] = {}
        for ours, theirs, tos, is_data, around in said["seen"]:
            if (ours, theirs) in ends and (is_data or self.client == "c1"):
                found.setdefault((ends[ours, theirs], around), set()).add(tos)
        holder.tell("close")
        return found

    def _rows(self) -> list[dict[str, Any]]:
        rows = self.lab.slimctl(self.node, "connections")["connections"]
        return [row for row in rows if row["endpoint"] == "c1"]


@pytest.fixture
def services(shaped: Lab) -> Iterator[list[Service]]:
    settle(shaped)
    yield [Service(shaped, "c1", "c2"), Service(shaped, "c2", "c1")]
    shaped.end_processes()


def test_a_class_of_service_is_on_every_packet_and_gone_when_it_is_taken_back(
    shaped: Lab, services: list[Service], tmp_path: Path
) -> None:
    default, special = 46, 10
    task = {
        "name": "Class",
        "slim.overlay.slim_qos": {
            "endpoint": "c1", "priority": 6, "dscp": default,
            "ports": [{"ports": [OTHER_PORT], "priority": 1, "dscp": special}], **HELPER,
        },
    }  # fmt: skip
    book = tasks(tmp_path / "class.yml", "node1", task)
    status, said = play(shaped, book)
    assert (status, results(said, "Class")["node1"]["changed"]) == (0, True), said
    status, said = play(shaped, book)
    assert (status, changed(said)) == (0, 0), said
    # A code point is the upper six bits of the byte (RFC 2474, 3).
    wanted = {(PEER_PORT, -1): {default << 2}, (OTHER_PORT, -1): {special << 2}}
    plain = {(PEER_PORT, -1): {0}, (OTHER_PORT, -1): {0}}
    # What takes the overlay is the container's own, and what is around it is VXLAN's.
    overlay = {(PEER_PORT, 0): {0}, (OTHER_PORT, 0): {0}}
    assert [service.tos() for service in services] == [wanted, wanted]
    assert services[0].tos("overlay") == overlay
    absent = {"endpoint": "c1", "state": "absent", **HELPER}
    away = {"name": "Away", "slim.overlay.slim_qos": absent}
    status, said = play(shaped, tasks(tmp_path / "away.yml", "node1", away))
    assert (status, results(said, "Away")["node1"]["changed"]) == (0, True), said
    assert [service.tos() for service in services] == [plain, plain]
