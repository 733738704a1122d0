# SPDX-License-Identifier: Apache-2.0
"""Peers without the shim: nobody hangs, no byte is lost or strays.

node1                     node2
c1 with or without  <-->  c2 with or without the shim; 1 MB each way, whoever
                          connects and whoever speaks first
"""

from __future__ import annotations

import subprocess

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    PEER_PORT,
    PYTHON,
    Words,
    build,
    run_program,
    start_peer,
)

MODES = [("slim", "overlay"), ("overlay", "slim"), ("slim", "slim")]


@pytest.mark.parametrize(("here", "there"), MODES)
@pytest.mark.parametrize("target", ["c2", "c3"])
def test_a_megabyte_each_way_whoever_speaks_first(
    slim_lab: Lab, here: str, there: str, target: str
) -> None:
    start_peer(slim_lab, target, there)
    words: Words = [
        build() / "test_speaks_first",
        slim_lab.ip(target),
        str(PEER_PORT),
    ]
    outcome = run_program(slim_lab, "c1", here, words)
    assert outcome.status == 0, f"\n{outcome.said}"
    assert (outcome.slim > 0) == (here == there == "slim"), outcome.said


def test_client_without_shim_does_not_hold_up_a_server(slim_lab: Lab) -> None:
    """A bare client that connects and says nothing; others are served meanwhile."""
    server = (
        "import socket,sys,threading\n"
        "s=socket.create_server((sys.argv[1], 7200))\n"
        "def go(c):\n"
        "  with c:\n"
        "    while d:=c.recv(99): c.sendall(d)\n"
        "while True: threading.Thread(target=go, args=(s.accept()[0],)).start()\n"
    )
    silent = (
        "import socket,sys,time; s=[socket.create_connection((sys.argv[1], 7200), 8)"
        " for _ in range(20)]; print('up', flush=True); time.sleep(60)"
    )
    talker = (
        "import socket,sys; s=socket.create_connection((sys.argv[1], 7200), 8);"
        "s.sendall(b'hello'); s.settimeout(8); print(s.recv(5).decode())"
    )
    ip = slim_lab.ip("c2")
    slim_lab.popen("c2", [PYTHON, "-c", server, ip])
    wait_for(lambda: slim_lab.listens("c2", 7200), what="the server listens")
    for mode in ("overlay", "slim"):
        quiet = slim_lab.popen(
            "c1", [PYTHON, "-c", silent, ip], mode, stdout=subprocess.PIPE, text=True
        )
        assert quiet.stdout is not None
        assert quiet.stdout.readline() == "up\n"
        for other in ("slim", "overlay"):
            done = slim_lab.run("c3", [PYTHON, "-c", talker, ip], other, timeout=20)
            assert done.stdout == "hello\n"


def test_server_without_shim_under_a_port_that_had_one(slim_lab: Lab) -> None:
    """The shim's server goes, a bare one takes its port: warm clients must find it."""
    words: Words = [build() / "test_connect_blocking", slim_lab.ip("c2"), str(PEER_PORT)]

    def paths() -> tuple[int, int]:
        outcome = run_program(slim_lab, "c1", "slim", words)
        assert outcome.status == 0, f"\n{outcome.said}"
        return outcome.slim, outcome.overlay

    for there in ("slim", "overlay", "slim"):
        peer = start_peer(slim_lab, "c2", there)
        if there == "overlay":
            assert paths()[0] == 0
        else:  # that nobody of ours listens there may be remembered for a moment
            wait_for(lambda: paths()[0] > 0, 5, "the new server is met on the host path")
        peer.kill()
        peer.wait()
