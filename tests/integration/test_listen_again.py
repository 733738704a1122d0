# SPDX-License-Identifier: Apache-2.0
"""A listener that listens again before its worker has seen that it was shut down.

node1                      node2
c1: relisten.py   <------  c2: one connection, over the overlay
router: c1's worker, stopped meanwhile
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess

from lab.client import Lab
from tests.integration.helpers import PYTHON, SOURCES, read_until, settle

DIAL = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=15) as sock:
    sock.settimeout(15)
    print(sock.recv(5).decode())
"""


def port_of(said: str) -> int:
    found = re.search(r"port (\d+)", said)
    assert found, said
    return int(found[1])


def test_a_slow_worker_takes_nothing_for_a_channel_that_has_ended(slim_lab: Lab) -> None:
    settle(slim_lab)
    program = slim_lab.popen(
        "c1",
        [PYTHON, SOURCES / "relisten.py", slim_lab.ip("c1")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None and program.stdout is not None
    read_until(program, "\n")
    rows = slim_lab.slimctl("node1", "endpoints")["endpoints"]
    (worker,) = [row["pid"] for row in rows if row["name"] == "c1"]
    os.kill(worker, signal.SIGSTOP)
    try:
        program.stdin.write("\n")
        program.stdin.flush()
        # It may listen again at once; then somebody is there before the worker runs.
        early = bool(select.select([program.stdout], [], [], 0.4)[0])
        if early:
            dialled = dial(slim_lab, port_of(read_until(program, "\n")))
            # ("hello" comes when the worker runs: until then the kernel holds the connection)
            select.select([], [], [], 0.3)
    finally:
        os.kill(worker, signal.SIGCONT)
    if not early:
        dialled = dial(slim_lab, port_of(read_until(program, "\n")))
    said, _unused = dialled.communicate(timeout=30)
    assert said.strip() == "hello"
    assert program.wait(20) == 0


def dial(lab: Lab, port: int) -> subprocess.Popen[str]:
    return lab.popen(
        "c2",
        [PYTHON, "-c", DIAL, lab.ip("c1"), str(port)],
        "overlay",
        stdout=subprocess.PIPE,
        text=True,
    )
