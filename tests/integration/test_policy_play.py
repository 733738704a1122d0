# SPDX-License-Identifier: Apache-2.0
"""playbooks/acl.yml and status.yml on live connections.

node1  c1 --- connections to ports 7301, 7302 ---> c2  node2
       c3 (the same host as c1) -- to 7301, 7302 ->

What check mode foresees is what the run cuts; what is allowed lives on; the second run
changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import read_until
from tests.integration.plays import PLAYBOOKS, changed, play, results

DENIED, ALLOWED = 7301, 7302
COUNT = 5
KEYS = ("src", "sport", "dst", "dport", "path", "rule")

SERVER = f"""
import socket, threading
def echo(sock):
    while data := sock.recv(64):
        sock.sendall(data)
def serve(port):
    listener = socket.create_server(("0.0.0.0", port))
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=serve, args=({DENIED},), daemon=True).start()
serve({ALLOWED})
"""

# Says how many of its connections live, at the start and for each line that it reads.
CLIENT = f"""
import socket, sys
def talk(sock):
    try:
        sock.sendall(b"x")
        return sock.recv(1) == b"x"
    except OSError:
        return False
socks = [(port, socket.create_connection((sys.argv[1], port), 10))
         for port in ({DENIED}, {ALLOWED}) for _ in range({COUNT})]
while True:
    alive = [port for port, sock in socks if talk(sock)]
    print("alive", alive.count({DENIED}), alive.count({ALLOWED}), flush=True)
    if not sys.stdin.readline():
        break
"""


class Plays:
    """The playbooks on the lab."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.file = directory / "policy.json"

    def play(self, name: str, *words: str) -> tuple[int, dict[str, Any]]:
        """Run one of the collection's."""
        return play(self.lab, PLAYBOOKS / f"{name}.yml", *words)

    def push(self, policy: dict[str, Any], *words: str) -> tuple[int, dict[str, Any]]:
        """Run acl.yml with this list."""
        self.file.write_text(json.dumps(policy))
        return self.play("acl", "-e", f"slim_policy_file={self.file}", *words)


def cut(said: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The connections of the fleet that a push of the policy cut, or would."""
    (answer,) = results(said, "Sum up").values()
    rows = answer["ansible_facts"]["slim_acl_summary"]["revoked"]
    return sorted(tuple(row[key] for key in KEYS) for row in rows)


@pytest.fixture
def plays(slim_lab: Lab, tmp_path: Path) -> Iterator[Plays]:
    made = Plays(slim_lab, tmp_path)
    yield made
    status, _unused = made.push({"default": "allow", "rules": []})
    assert status == 0, "the lab has no policy any more"


def alive(client: subprocess.Popen[str]) -> str:
    """Ask a client; "alive DENIED ALLOWED"."""
    assert client.stdin is not None
    client.stdin.write("\n")
    client.stdin.flush()
    return read_until(client, "\n", 20).strip()


def test_what_is_foreseen_is_cut_and_the_second_run_changes_nothing(plays: Plays) -> None:
    lab = plays.lab
    lab.popen("c2", [sys.executable, "-c", SERVER])
    wait_for(lambda: all(lab.listens("c2", port) for port in (DENIED, ALLOWED)), what="c2 listens")
    clients = [
        lab.popen(
            name, [sys.executable, "-c", CLIENT, lab.ip("c2")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        for name in ("c1", "c3")
    ]  # fmt: skip
    for client in clients:
        assert read_until(client, "\n", 30).strip() == f"alive {COUNT} {COUNT}"
    deny = {"id": "no", "action": "deny", "destinations": [lab.ip("c2")], "ports": [DENIED]}
    policy = {"default": "allow", "rules": [deny]}

    status, said = plays.push(policy, "--check", "--diff")
    foreseen = cut(said)
    assert (status, len(foreseen)) == (0, 2 * COUNT)
    assert {row[3:] for row in foreseen} == {(DENIED, "slim", "no")}
    assert [alive(client) for client in clients] == [f"alive {COUNT} {COUNT}"] * 2

    # A guard below that: nothing is done on any host.
    status, said = plays.push(policy, "-e", f"slim_acl_max_revoked={COUNT - 1}")
    assert status != 0
    refused = results(said, "Foresee what every host would cut")
    assert all("would be revoked" in answer["msg"] for answer in refused.values())
    assert [alive(client) for client in clients] == [f"alive {COUNT} {COUNT}"] * 2

    status, said = plays.push(policy, "-e", "slim_acl_max_revoked=")
    assert status == 0
    assert changed(said) == len(lab.nodes)
    assert cut(said) == foreseen
    assert [alive(client) for client in clients] == [f"alive 0 {COUNT}"] * 2

    status, said = plays.push(policy)
    assert (status, changed(said), cut(said)) == (0, 0, [])

    status, said = plays.play("status")
    (answer,) = results(said, "Sum up").values()
    rows = answer["ansible_facts"]["slim_status"]
    assert [row["host"] for row in rows] == lab.nodes
    assert all(row["endpoints"] == "2/2" and row["rules"] == 1 for row in rows)
    # Each of the two that live on, of c1 and of c3, is known at both ends.
    assert sum(row["slim"] for row in rows) >= 2 * 2 * COUNT
    assert [row["incomplete"] for row in rows] == [[], []]


def test_a_wrong_list_is_refused_before_any_host_is_asked(plays: Plays) -> None:
    bad = {"id": "a", "action": "deny", "ports": [70000], "sources": ["10.44.0.1/8"]}
    status, said = plays.push({"default": "drop", "rules": [bad]})
    assert status != 0
    (answer,) = results(said, "Refuse a policy that no router would take").values()
    for words in ("default: 'drop'", "rule 1 (a): sources", "rule 1 (a): ports: 70000"):
        assert any(words in sentence for sentence in answer["msg"])
    assert not [one for one in said["plays"] if one["play"]["name"] == "Put the policy in force"]
