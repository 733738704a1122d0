# SPDX-License-Identifier: Apache-2.0
"""Each connection reaches the client that made it, however the server accepts.

node1                          node2
c1: flood, 16 at a time  --->  c2: idserver, four pre-forked acceptors
c3: the same                   (c3 -> c1: within one host)
"""

from __future__ import annotations

import re
import subprocess

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import Words, build, read_until

PORT = 7100


def flood(
    lab: Lab, source: str, target: str, count: int, mode: str = "slim", port: int = PORT
) -> dict[str, int]:
    done = lab.run(
        source,
        [build() / "flood", lab.ip(target), str(port), str(count), "16"],
        mode,
        check=False,
        timeout=150,
    )
    said = done.stdout + done.stderr
    assert "done " in done.stdout, said
    return {k: int(v) for k, v in re.findall(r"([a-z-]+)=(\d+)", done.stdout)}


def server(lab: Lab, endpoint: str, way: str, mode: str = "slim") -> None:
    # The children of the last test's server may outlive it by a moment.
    wait_for(lambda: not lab.listens(endpoint, PORT), what="the port is free")
    process = lab.popen(
        endpoint,
        [build() / "idserver", lab.ip(endpoint), str(PORT), "4", way],
        mode,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(process, "ready")


@pytest.mark.parametrize("way", ["block", "poll", "epoll", "exclusive"])
def test_oracle(lab: Lab, way: str) -> None:
    server(lab, "c2", way, "overlay")
    sums = flood(lab, "c1", "c2", 2500, "overlay")
    assert (sums["ok"], sums["wrong"], sums["path-slim"]) == (2500, 0, 0), sums


@pytest.mark.parametrize("way", ["block", "poll", "epoll", "exclusive"])
@pytest.mark.parametrize(("source", "target"), [("c1", "c2"), ("c3", "c1")])
def test_four_acceptors_never_mix_clients_up(
    slim_lab: Lab, source: str, target: str, way: str
) -> None:
    """Ten thousand across hosts with blocking acceptors; fewer in the other ways."""
    count = 10_000 if (way, source) == ("block", "c1") else 2500
    server(slim_lab, target, way)
    sums = flood(slim_lab, source, target, count)
    assert sums["wrong"] == 0, sums
    assert sums["ok"] == count, sums
    assert sums["path-slim"] >= count * 0.9, sums


def test_clients_with_and_without_shim_share_a_prefork_server(slim_lab: Lab) -> None:
    server(slim_lab, "c2", "epoll")
    words: Words = [build() / "flood", slim_lab.ip("c2"), str(PORT), "2000", "8"]
    flooders = [
        slim_lab.popen(source, words, mode, stdout=subprocess.PIPE, text=True)
        for source, mode in (("c1", "slim"), ("c1", "overlay"), ("c3", "slim"), ("c4", "slim"))
    ]
    for process in flooders:
        said, _unused = process.communicate(timeout=120)
        assert " ok=2000 wrong=0 " in said, said
