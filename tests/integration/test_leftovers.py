# SPDX-License-Identifier: Apache-2.0
"""A connection is one connection, and a program has one greeting for all of its own.

node1                                     node2
c1: holder.py, dial.py --- connections    c2: cold.py serve on fresh ports, peer on PEER_PORT
    ---->
"""

from __future__ import annotations

import functools
import re
import subprocess

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    PEER_PORT,
    PYTHON,
    SOURCES,
    Words,
    counters,
    read_until,
    settle,
    start_peer,
)
from tests.integration.test_policy import Holder, warm

FIRST, COUNT = 10800, 20
CONNECTS = 50


def overlay_sockets(lab: Lab, endpoint: str, ports: range) -> list[str]:
    """The overlay's TCP sockets between c1 and a service on one of these ports, in the
    endpoint's own namespace: what lives or still says good-bye."""
    kind = "dport" if endpoint == "c1" else "sport"
    words = ["ss", "-Htan", "state", "connected", "exclude", "time-wait"]
    words.append(f"( {kind} >= :{ports.start} and {kind} < :{ports.stop} )")
    said: str = lab.run(endpoint, words, "overlay").stdout
    return said.splitlines()


def in_use(lab: Lab, endpoint: str, ports: range, count: int) -> bool:
    return len(overlay_sockets(lab, endpoint, ports)) == count


def test_no_overlay_connection_is_left_behind_a_host_connection(slim_lab: Lab) -> None:
    """Every cold connect makes one over the overlay, and so does the proof of admission."""
    settle(slim_lab)
    ports = range(FIRST, FIRST + COUNT)
    server = slim_lab.popen(
        "c2",
        [PYTHON, SOURCES / "cold.py", "serve", slim_lab.ip("c2"), str(FIRST), str(COUNT)],
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(server, "ready", 20)
    holder = Holder(slim_lab, "c1", slim_lab.ip("c2"))
    for port in ports:
        holder.open(port, 1)
        holder.wait()
        holder.open(port, 2)
    paths = list(holder.wait().values())
    assert len(paths) == 3 * COUNT
    kept = paths.count("overlay")  # a busy machine's late ones
    assert paths.count("slim") == 3 * COUNT - kept >= COUNT, paths
    for endpoint in ("c1", "c2"):
        wait_for(
            functools.partial(in_use, slim_lab, endpoint, ports, kept),
            what=f"{endpoint} has no more overlay connections than the {kept} in use",
        )
    assert set(holder.look().values()) == {"ok"}


def test_one_greeting_for_all_connects_of_a_program(slim_lab: Lab) -> None:
    settle(slim_lab)
    start_peer(slim_lab, "c2", "slim")
    holder = Holder(slim_lab, "c1", slim_lab.ip("c2"))
    warm(holder, PEER_PORT)
    before = counters(slim_lab, "c1")
    words: Words = [PYTHON, SOURCES / "dial.py", slim_lab.ip("c2"), str(PEER_PORT)]
    said = slim_lab.run("c1", [*words, str(CONNECTS), "blocking"]).stdout
    new = counters(slim_lab, "c1") - before
    sums = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", said)}
    assert sums["slim"] + sums["overlay"] == CONNECTS, said
    # One comes by the socket's path, one by JOIN: what is asked on it is seen to end with it.
    # A connect that has waited in vain gives its connection to the worker up.
    assert 1 <= new["shim_greetings"] <= 2 * (1 + new["connect_overlay_no_router"]), new
