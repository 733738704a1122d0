# SPDX-License-Identifier: Apache-2.0
"""An accept queue of 4096: the kernel's own semantics, nothing lost silently.

node1                              node2
c1: flood, 4096 at once    --->    c2: idserver that accepts nothing until told
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess

import pytest

from lab.client import Lab
from tests.integration.helpers import PYTHON, Words, build, read_until

Process = subprocess.Popen[str]

#: One port per test: the children of a killed prefork server may outlive it by a moment.
PORTS = itertools.count(7300)
COUNT = 4000  # below the backlog, so that every handshake can be done


def start(lab: Lab, mode: str, port: int, count: int, how: str) -> tuple[Process, Process]:
    server = lab.popen(
        "c2",
        [build() / "idserver", lab.ip("c2"), str(port), "4", "block", "4096", "hold"],
        mode,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(server, "ready")
    client = lab.popen(
        "c1",
        [build() / "flood", lab.ip("c2"), str(port), str(count), str(count), how],
        mode,
        stdout=subprocess.PIPE,
        text=True,
    )
    return server, client


def sums_of(client: Process) -> dict[str, int]:
    said = read_until(client, "done ", 90)
    client.wait(10)
    return {k: int(v) for k, v in re.findall(r"([a-z-]+)=(\d+)", said)}


@pytest.mark.parametrize("mode", ["overlay", "slim"])
def test_four_thousand_wait_and_all_are_served(lab: Lab, mode: str) -> None:
    if mode == "slim" and not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    server, client = start(lab, mode, next(PORTS), COUNT, "wait")
    read_until(client, f"connected {COUNT}", 60)
    os.kill(server.pid, signal.SIGUSR1)
    sums = sums_of(client)
    assert sums["ok"] == COUNT, sums
    assert sums["wrong"] == sums["reset"] == sums["eof"] == 0, sums


@pytest.mark.parametrize("mode", ["overlay", "slim"])
def test_dying_application_resets_what_was_queued(lab: Lab, mode: str) -> None:
    if mode == "slim" and not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    port = next(PORTS)
    server, client = start(lab, mode, port, 1000, "open")
    read_until(client, "connected 1000", 60)
    server.kill()
    server.wait()
    sums = sums_of(client)
    assert sums["reset"] == 1000, sums
    # The port is free at once for the next generation.
    again, client = start(lab, mode, port, 100, "wait")
    read_until(client, "connected 100", 30)
    os.kill(again.pid, signal.SIGUSR1)
    assert sums_of(client)["ok"] == 100


@pytest.mark.parametrize("mode", ["overlay", "slim"])
def test_few_descriptors_slow_the_server_but_lose_nothing(lab: Lab, mode: str) -> None:
    """A server limited to 40 descriptors meets 500 clients at once."""
    if mode == "slim" and not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    server = (
        "import asyncio, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "async def one(r, w):\n"
        "    w.write(await r.readexactly(8)); await w.drain(); await asyncio.sleep(0.01)\n"
        "    w.close()\n"
        "async def main():\n"
        "    s = await asyncio.start_server(one, sys.argv[1], int(sys.argv[2]), backlog=1024)\n"
        "    print('ready', flush=True)\n"
        "    await s.serve_forever()\n"
        "import logging; logging.disable()\n"
        "asyncio.run(main())\n"
    )
    port = next(PORTS)
    process = lab.popen(
        "c2",
        [PYTHON, "-c", server, lab.ip("c2"), str(port)],
        mode,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    read_until(process, "ready")
    words: Words = [build() / "flood", lab.ip("c2"), str(port), "500", "500"]
    done = lab.run("c1", words, mode, check=False, timeout=120)
    assert " ok=500 wrong=0 reset=0 eof=0 " in done.stdout, done.stdout + done.stderr
