# SPDX-License-Identifier: Apache-2.0
"""The supervisor with the worker that is shipped.

shim played by the test, in namespace a1 --> node1: supervisor -- a1 (real)
                                                        || trunk
                                             node2: supervisor -- b1 (real)
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from pathlib import Path

from slim_router import slimctl, wire
from tests.unit.router.fleet import run, until

REAL = "slim_router.worker"
SHIM = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(5)
sock.connect(sys.argv[1])
sock.send(bytes.fromhex(sys.argv[2]))
print(sock.recv(4096).hex())
"""


def test_both_workers_serve_and_a_shim_is_welcomed(pair):
    async def body():
        one, two = pair.router("node1", REAL), pair.router("node2", REAL)
        try:
            await one.start()
            await two.start()
            ep = one.registry.endpoints["default", "10.44.0.1"]
            await until(lambda: one.trunks.get("node2"), "trunk")
            await until(lambda: one.trunks.get("node2").claims, "announcement")
            assert ep.up, ep.detail
            paths = pair.paths("node1")
            hello = wire.message(wire.HELLO, 1, value=1)
            done = await asyncio.to_thread(
                subprocess.run,
                ["nsenter", f"--net={ep.spec.netns}", "/usr/bin/python3", "-I", "-c", SHIM,
                 str(paths.shim_socket), hello.hex()],
                capture_output=True, text=True, timeout=15, check=True,
            )  # fmt: skip
            record = wire.MSG.unpack_from(bytes.fromhex(done.stdout.strip()))
            assert (record[2], record[3]) == (wire.WELCOME, 1)
            assert wire.unpack_addr(record[6]) == "10.44.0.1"
            got = await asyncio.to_thread(slimctl.ask, paths.admin_socket, "connections")
            assert got == {"connections": [], "incomplete": [], "truncated": False}
            got = await asyncio.to_thread(slimctl.ask, paths.admin_socket, "endpoints")
            assert got["endpoints"][0]["state"] == "up"
        finally:
            await one.stop()
            await two.stop()

    run(body())


def test_a_killed_worker_is_replaced_on_its_port_and_idle_memory_is_bounded(pair):
    async def body():
        one = pair.router("node1", REAL)
        try:
            await one.start()
            ep = one.registry.endpoints["default", "10.44.0.1"]
            pid, port = ep.child.pid, ep.port
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
            assert private <= 4096, f"{private} kB"
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ep.up and ep.child and ep.child.pid != pid, "the successor")
            assert ep.port == port
        finally:
            await one.stop()

    run(body())
