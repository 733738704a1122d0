# SPDX-License-Identifier: Apache-2.0
"""Rates and classes of service, by role and modules, on live traffic.

node1                                    node2
c1 (limited) ---- over Slim ---------->  c2: sink
   |         ---- over the overlay --->
   +-- c3: sink, inside of the host

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
from tests.integration.helpers import PYTHON, read_until, settle
from tests.integration.plays import PLAYBOOKS, changed, play, results

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


def test_a_class_of_service(shaped: Lab, tmp_path: Path) -> None:
    task = {
        "name": "Class",
        "slim.overlay.slim_qos": {"endpoint": "c1", "priority": 6, "dscp": 46, **HELPER},
    }
    book = tasks(tmp_path / "class.yml", "node1", task)
    status, said = play(shaped, book)
    assert (status, results(said, "Class")["node1"]["changed"]) == (0, True), said
    status, said = play(shaped, book)
    assert (status, changed(said)) == (0, 0), said
