# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on the host network ends in an overlay connection, within its bound.

node1                                     node2
c1: dial.py --- connections --->          c2: peer on PEER_PORT
host: a few ports only                    host: nft drops what comes for its data ports
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from lab.client import Lab
from tests.integration.helpers import (
    PEER_PORT,
    PYTHON,
    SOURCES,
    counters,
    read_until,
    settle,
    start_peer,
)
from tests.integration.test_policy import Holder, warm

DATA_PORTS = "20000-20999"
SHUT = f"""
    table inet shut {{
        chain in {{
            type filter hook input priority 0
            tcp dport {DATA_PORTS} drop
        }}
    }}
"""
RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
# A blocking connect waits a second for the host path (WARM_BOUND_US, files/shim/connect.c);
# for one that is not, the kernel gives up after a second SYN, at three (TCP_SYNCNT).
BOUND_MS = {"blocking": 1000, "polled": 3000}
SLACK_MS = 1500  # the overlay's own connect may meet a lost SYN, which costs a second


@pytest.fixture
def holder(slim_lab: Lab) -> Iterator[Holder]:
    """A client with a lease, and with a connection on the host path that has to live."""
    settle(slim_lab)
    start_peer(slim_lab, "c2", "slim")
    holder = Holder(slim_lab, "c1", slim_lab.ip("c2"))
    warm(holder, PEER_PORT)
    yield holder
    # What was there before goes on, and new ones take the host path again.
    assert set(holder.look().values()) == {"ok"}
    warm(holder, PEER_PORT)


def dial(lab: Lab, count: int, way: str) -> dict[str, int]:
    process = lab.popen(
        "c1",
        [PYTHON, SOURCES / "dial.py", lab.ip("c2"), str(PEER_PORT), str(count), way],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = read_until(process, "slowest-ms", 60)
    return {name: int(number) for name, number in re.findall(r"([a-z-]+)=(\d+)", said)}


@pytest.mark.parametrize("way", BOUND_MS)
def test_data_ports_that_answer_nothing(slim_lab: Lab, holder: Holder, way: str) -> None:
    before = counters(slim_lab, "c1")
    slim_lab.run("node2", ["nft", "-f", "-"], stdin=SHUT)
    try:
        first = dial(slim_lab, 1, way)  # under the lease
        then = dial(slim_lab, 3, way)  # that failed, and ended the lease
    finally:
        slim_lab.run("node2", ["nft", "delete", "table", "inet", "shut"])
    new = counters(slim_lab, "c1") - before
    assert new["connect_warm"] == new["connect_warm_failed"] == 1, new
    assert (first["slim"], first["overlay"]) == (0, 1)
    assert (then["slim"], then["overlay"]) == (0, 3)
    assert first["slowest-ms"] < BOUND_MS[way] + SLACK_MS, first
    # Cold ones do not wait for a host that is silent: the overlay is there already.
    assert then["slowest-ms"] < SLACK_MS, then


@pytest.mark.parametrize("way", BOUND_MS)
def test_no_host_ports_left(slim_lab: Lab, holder: Holder, way: str) -> None:
    before = counters(slim_lab, "c1")
    was = slim_lab.run("node1", ["cat", RANGE]).stdout
    slim_lab.run("node1", f"echo 61000 61003 > {RANGE}")
    try:
        sums = dial(slim_lab, 12, way)
    finally:
        slim_lab.run("node1", f"echo {was.strip()} > {RANGE}")
    new = counters(slim_lab, "c1") - before
    assert sums["slim"] <= 4, sums
    assert sums["slim"] + sums["overlay"] == 12, sums
    assert new["connect_overlay_host_connection_failed"] > 0, new
    assert sums["slowest-ms"] < SLACK_MS, sums
