# SPDX-License-Identifier: Apache-2.0
"""Established connections, listeners and new connects do not depend on the router.

node1                          node2
c1: streams.py, 20 live  --->  c2: peer (echo, acceptors)
router: kill -9                router: kill -9
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    NODES,
    PEER_PORT,
    PYTHON,
    SOURCES,
    Words,
    build,
    counters,
    gone,
    kill,
    read_until,
    run_program,
    settle,
    start_peer,
)

COUNT = 20
FLOOD, WIDTH = 6000, 4
# A thread that spins wants a CPU for a second of each second; those that sleep, hardly ever.
SPIN_US = 300_000
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 8)"


def connects(lab: Lab, program: str = "test_connect_blocking", mode: str = "slim") -> int:
    """Run a program that connects in every way; how many took the host path."""
    words: Words = [build() / program, lab.ip("c2"), str(PEER_PORT)]
    outcome = run_program(lab, "c1", mode, words)
    assert outcome.status == 0, f"\n{outcome.said}"
    return outcome.slim


@pytest.fixture
def streams(slim_lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """Live, loaded connections from c1 to c2 on the host path; judged at the end."""
    settle(slim_lab)
    start_peer(slim_lab, "c2", "slim")
    connects(slim_lab)
    process = slim_lab.popen(
        "c1",
        [PYTHON, SOURCES / "streams.py", slim_lab.ip("c2"), str(PEER_PORT), str(COUNT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    up = read_until(process, "up ", 20)
    slim = re.search(r"slim=(\d+)", up)
    assert slim and int(slim[1]) >= COUNT * 3 // 4, f"hardly any on the host path: {up}"
    yield process
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    said = process.stdout.read()
    assert process.wait(30) == 0, said
    assert f"done ok={COUNT} lost=0 wrong=0" in said, said


@pytest.mark.parametrize("nodes", [("node1",), ("node2",), NODES], ids="-".join)
def test_killed_under_load_and_restarted(
    slim_lab: Lab, streams: subprocess.Popen[str], nodes: tuple[str, ...]
) -> None:
    for node in nodes:
        kill(slim_lab, node)
    connects(slim_lab)  # at once, while it is away or coming back
    settle(slim_lab)
    connects(slim_lab, "test_accept_calls")
    wait_for(lambda: connects(slim_lab) > 0, 40, "new connections take the host path again")


@pytest.mark.parametrize("nodes", [("node1",), ("node2",), NODES], ids="-".join)
def test_killed_and_gone_for_good(
    slim_lab: Lab, streams: subprocess.Popen[str], nodes: tuple[str, ...]
) -> None:
    with gone(slim_lab, *nodes):
        for program in (
            "test_connect_blocking",
            "test_connect_nonblock_epoll",
            "test_accept_calls",
            "test_accept_epoll",
            "test_connect_refused",
        ):
            connects(slim_lab, program)
        # Bare clients still reach the listeners that were made with the router alive.
        connects(slim_lab, mode="overlay")
    settle(slim_lab)
    wait_for(lambda: connects(slim_lab) > 0, 40, "new connections take the host path again")


@pytest.mark.parametrize("way", ["block", "poll", "epoll", "exclusive"])
def test_acceptors_asleep_when_the_router_dies(slim_lab: Lab, way: str) -> None:
    """A server that sits in accept or epoll_wait is woken by the overlay's connections."""
    settle(slim_lab)
    wait_for(lambda: not slim_lab.listens("c2", 7150), what="the port is free")
    server = slim_lab.popen(
        "c2",
        [build() / "idserver", slim_lab.ip("c2"), "7150", "4", way],
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(server, "ready")
    words: Words = [build() / "flood", slim_lab.ip("c2"), "7150", "200", "8"]
    assert " ok=200 wrong=0 " in slim_lab.run("c1", words).stdout
    with gone(slim_lab, "node2"):
        for mode in ("slim", "overlay"):
            assert " ok=200 wrong=0 " in slim_lab.run("c1", words, mode, check=False).stdout
    settle(slim_lab)
    assert " ok=200 wrong=0 " in slim_lab.run("c1", words).stdout


def test_a_server_sleeps_when_its_router_is_dead(slim_lab: Lab) -> None:
    """In accept, epoll_wait, poll and select: nobody spins on a channel that has ended."""
    settle(slim_lab)
    ip = slim_lab.ip("c2")
    server = slim_lab.popen(
        "c2",
        [PYTHON, SOURCES / "idle.py", ip, "7160"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(server, "ready")
    assert server.stdin is not None

    def busy_us() -> int:
        assert server.stdin is not None
        server.stdin.write("\n")
        server.stdin.flush()
        return int(read_until(server, "\n").partition("=")[2])

    with gone(slim_lab, "node2"):
        assert busy_us() < SPIN_US, "after its death"
        for port in range(7160, 7164):  # each is woken, and finds a router that is dead
            slim_lab.run("c1", [PYTHON, "-c", KNOCK, ip, str(port)], "overlay")
        assert busy_us() < SPIN_US, "after a connection that came all the same"
    settle(slim_lab)
    assert busy_us() < SPIN_US, "with a router that is back"


def test_what_is_ready_to_be_accepted_outlives_the_router(slim_lab: Lab) -> None:
    """Its clients have been told that they are connected: a server that is slow gets them."""
    settle(slim_lab)
    count = 50
    server = slim_lab.popen(
        "c2",
        [build() / "idserver", slim_lab.ip("c2"), "7152", "1", "block", "256", "hold"],
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(read_until(server, "\n").split()[1])
    before = counters(slim_lab, "c2")
    flood = slim_lab.popen(
        "c1",
        [build() / "flood", slim_lab.ip("c2"), "7152", str(count), str(count), "wait"],
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(flood, f"connected {count}", 30)

    def delivered() -> bool:
        new = counters(slim_lab, "c2") - before
        return sum(new[f"accepted_{how}"] for how in ("warm", "cold", "overlay")) == count

    wait_for(delivered, 20, "all wait in the server's channel")
    with gone(slim_lab, "node2"):
        os.kill(pid, signal.SIGUSR1)
        said = read_until(flood, "lost-slim", 30)
    assert f"done ok={count} wrong=0 " in said, said


@pytest.mark.parametrize("node", NODES)
def test_connects_while_the_router_is_killed_again_and_again(slim_lab: Lab, node: str) -> None:
    """A connect meanwhile succeeds, and what has been accepted is served.

    The client's router takes nothing with it: its connections are with the program, or not
    made yet. The server's takes what lies between the kernel and the application: a host
    connection whose hello it has not read, an overlay one that it holds to learn whether it
    is a probe. Its client has been told by the kernel that it is connected, and is reset. So
    a kill may cost a client those that are open at that moment, WIDTH at most, and no more.
    """
    settle(slim_lab)
    port = str(7153 + NODES.index(node))
    server = slim_lab.popen(
        "c2",
        [build() / "idserver", slim_lab.ip("c2"), port, "4", "block"],
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(server, "ready")
    flood = slim_lab.popen(
        "c1",
        [build() / "flood", slim_lab.ip("c2"), port, str(FLOOD), str(WIDTH)],
        stdout=subprocess.PIPE,
        text=True,
    )
    kills = 0
    while kills < 4:
        slim_lab.wait_router(node, 60)
        if flood.poll() is not None:
            break
        slim_lab.kill_router(node)
        kills += 1
    said, _unused = flood.communicate(timeout=120)
    settle(slim_lab)
    assert kills >= 2, "the flood was over before the router had died twice"
    sums = {k: int(v) for k, v in re.findall(r"([a-z-]+)=(\d+)", said)}
    print(node, kills, said)
    assert sums["wrong"] == sums["other"] == sums["refused"] == 0, said
    lost = sums["reset"] + sums["eof"]
    assert lost <= (WIDTH * kills if node == "node2" else 0), said
    assert sums["ok"] + lost == FLOOD, said
