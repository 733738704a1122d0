# SPDX-License-Identifier: Apache-2.0
"""Connections over the overlay that nobody asked the worker about.

program (a process in the endpoint's namespace, VIP) ---- overlay ---- peer (the test, PEER)
        no shim                                  worker: sock_diag of the namespace
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from slim_router import wire
from slim_router.overlay import Overlay
from slim_router.sockdiag import Sock
from tests.unit.worker.stand import (
    OURS,
    PATIENCE,
    PEER,
    STRANGER,
    THEIRS,
    VIP,
    Stand,
    alive,
    inside,
    is_reset,
)
from tests.unit.worker.test_gate import DENY_IN, DENY_OUT, put

LOW_PORT = 7001
"""Below every range of ephemeral ports."""

PROGRAM = """
import json, socket, sys
kept = []
def dial(ours, theirs, port):
    sock = socket.create_connection((theirs, port), 10, (ours, 0))
    sock.settimeout(10)
    kept.append(sock)
    return sock.getsockname()[1]
def serve(ours, port):
    kept.append(socket.create_server((ours, port)))
    return kept[-1].getsockname()[1]
def accept():
    sock, _peer = kept[-1].accept()
    sock.settimeout(10)
    kept.append(sock)
    return sock.getpeername()[1]
def close(index):
    kept[index].close()
def end():
    try:
        return repr(kept[-1].recv(1))
    except OSError as error:
        return type(error).__name__
for line in sys.stdin:
    name, *words = json.loads(line)
    print(json.dumps(globals()[name](*words)), flush=True)
"""


class Program:
    """Does one thing after the other: see PROGRAM."""

    def __init__(self, netns: str) -> None:
        self.process = subprocess.Popen(
            ["nsenter", f"--net={netns}", sys.executable, "-I", "-S", "-c", PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, *words: object) -> Any:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())


@pytest.fixture
def program(stand: Stand) -> Iterator[Program]:
    made = Program(stand.netns)
    yield made
    made.process.communicate(timeout=PATIENCE)


@pytest.fixture
def server(stand: Stand) -> Iterator[socket.socket]:
    """A peer's service."""
    with inside(stand.netns), socket.create_server((PEER, 0)) as sock:
        sock.settimeout(PATIENCE)
        yield sock


def connections(stand: Stand) -> list[dict[str, Any]]:
    """What the worker answers who asks for its connections."""
    stand.sup.send(op="dump", id=7, connections=True)
    message = stand.sup.get("dumped", id=7)
    assert message["last"]
    rows: list[dict[str, Any]] = message["connections"]
    return rows


def names(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["direction"], row["src"], row["sport"], row["dst"], row["dport"])


def test_a_connect_of_a_program_without_the_shim_is_listed_and_judged(
    stand: Stand, program: Program, server: socket.socket
) -> None:
    port = server.getsockname()[1]
    sport = program("dial", VIP, PEER, port)
    accepted, _unused = server.accept()
    (row,) = connections(stand)
    assert names(row) == ("out", VIP, sport, PEER, port)
    assert (row["path"], row["why"], row["state"]) == ("overlay", "no-router", "established")
    assert put(stand, {**DENY_OUT, "ports": [port + 1]}) == []
    assert alive(accepted), "another port is nobody's business"
    (revoked,) = put(stand, {**DENY_OUT, "ports": [port]})
    assert (names(revoked), revoked["rule"]) == (names(row), 0)
    assert program("end") == "ConnectionAbortedError"
    assert is_reset(accepted)
    assert connections(stand) == []


@pytest.mark.parametrize("listens", [True, False], ids=["listening", "closed"])
def test_what_such_a_program_accepted_is_judged_by_its_port(
    stand: Stand, program: Program, listens: bool
) -> None:
    # A port of a listener that is gone is told by its being no ephemeral one.
    port = program("serve", VIP, 0 if listens else LOW_PORT)
    peer = stand.peer.overlay(port)
    sport = program("accept")
    if not listens:
        program("close", 0)
    (row,) = connections(stand)
    assert names(row) == ("in", PEER, sport, VIP, port)
    # (as an outgoing one to the peer's port it would be forbidden)
    assert put(stand, {**DENY_OUT, "ports": [sport]}) == []
    assert alive(peer)
    (revoked,) = put(stand, {**DENY_IN, "ports": [port]})
    assert names(revoked) == names(row)
    assert program("end") == "ConnectionAbortedError"
    assert is_reset(peer)


def test_an_operator_can_name_one(stand: Stand, program: Program, server: socket.socket) -> None:
    for _unused in range(2):
        program("dial", VIP, PEER, server.getsockname()[1])
    accepted = [server.accept()[0] for _unused in range(2)]
    by_sport = {row["sport"]: row["cookie"] for row in connections(stand)}
    sports = [sock.getpeername()[1] for sock in accepted]
    stand.sup.send(op="revoke", id=3, cookies=[by_sport[sports[0]]])
    said = stand.sup.get("revoked", id=3)
    assert [row["sport"] for row in said["revoked"]] == sports[:1]
    assert is_reset(accepted[0])
    assert alive(accepted[1])


def test_what_comes_when_the_list_is_there_is_found_on_the_word_of_a_shim(
    stand: Stand, program: Program, server: socket.socket
) -> None:
    port = server.getsockname()[1]
    assert put(stand, {**DENY_OUT, "ports": [port]}) == []
    program("dial", VIP, PEER, port)
    accepted, _unused = server.accept()
    # "One connection was made without you": not which.
    stand.shim().tell(wire.CANCEL, count=1)
    assert is_reset(accepted)
    assert program("end") == "ConnectionAbortedError"


def test_what_is_not_of_the_overlay_is_not_listed(stand: Stand, program: Program) -> None:
    with inside(stand.netns):
        servers = [socket.create_server((address, 0)) for address in ("127.0.0.1", VIP, STRANGER)]
    for source, server in zip(("127.0.0.1", VIP, VIP), servers, strict=True):
        address, port = server.getsockname()
        program("dial", source, address, port)
    assert connections(stand) == []
    assert put(stand, default="deny") == []
    for server in servers:
        server.accept()[0].close()
        server.close()


def test_a_false_name_hides_nothing(stand: Stand, program: Program, server: socket.socket) -> None:
    """A shim calls a forbidden connection one to where it may go."""
    port = server.getsockname()[1]
    program("dial", VIP, PEER, port)
    accepted, _unused = server.accept()
    (row,) = connections(stand)
    stand.sup.auto["locate"] = lambda m: {
        "op": "located", "vip": m["vip"], "found": False, "reason": wire.R_NO_TRUNK,
    }  # fmt: skip
    shim = stand.shim()
    record, _unused = shim.connect(port + 1, cookie=row["cookie"])
    while record.kind == wire.COLD:
        stand.sup.sync()
        record, _unused = shim.connect(port + 1, cookie=row["cookie"])
    assert row["cookie"] in stand.settled.table.rows
    assert [names(each) for each in connections(stand)] == [names(row)]
    (revoked,) = put(stand, {**DENY_OUT, "ports": [port]})
    assert names(revoked) == names(row)
    assert is_reset(accepted)


@pytest.mark.parametrize(
    ("sport", "dport", "listening", "outgoing"),
    [
        (40000, 80, set(), True),
        (80, 40000, set(), False),
        (80, 40000, {80}, False),
        (40000, 50000, {40000}, False),
        (40000, 50000, set(), True),
        (1000, 80, set(), True),
    ],
)
def test_who_began_is_told_by_the_ports(
    stand: Stand, sport: int, dport: int, listening: set[int], outgoing: bool
) -> None:
    sock = Sock(1, OURS, sport, THEIRS, dport, 1, 0, 0, 1, 0)
    row = Overlay(stand.worker, (32768, 60999))._made_up(sock, listening)
    ours, theirs = (OURS, sport), (THEIRS, dport)
    assert row[3:7] == ((*ours, *theirs) if outgoing else (*theirs, *ours))
    assert row.outgoing is outgoing
