# SPDX-License-Identifier: Apache-2.0
"""The supervisor with the worker that is shipped.

shim played by the test, in namespace a1 --> node1: supervisor -- a1 (real)
                                                        || trunk
                                             node2: supervisor -- b1 (real)
In the test of captured hellos b1, and puppet on node1, are the test's own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from slim_router import slimctl, wire
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

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


def captured(got: dict[str, Any], src: str, dst: str) -> bytes:
    """The hello that the worker of *src*, having been sent *got*, puts on the wire."""
    mac = wire.keyed_mac(bytes.fromhex(got["key"]))
    nonce = time.time_ns() // 1000
    addresses = wire.pack_addr(src), wire.pack_addr(dst)
    return wire.hello(mac, wire.K_PREPARE, got["key_id"], nonce, *addresses, 40000, 80)


async def play(got: dict[str, Any], hello: bytes) -> bytes:
    """What comes back for *hello* on a new host connection; nothing if it is reset."""
    reader, writer = await asyncio.open_connection(got["address"], got["port"])
    writer.write(hello)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def test_a_captured_hello_is_good_once_whatever_becomes_of_the_worker(pair):
    """Peers on the same host and on another are given keys; the test writes their hellos."""

    async def body():
        async with Puppets(pair.directory) as puppets:
            one, two = pair.router("node1", "worker_or_puppet"), pair.router("node2")
            try:
                await one.start()
                await two.start()
                ep = one.registry.endpoints["default", "10.44.0.1"]
                local, remote = await puppets.worker("puppet"), await puppets.worker("b1")
                for peer, vip in ((local, "10.44.0.3"), (remote, "10.44.0.2")):
                    peer.send(op="locate", vip="10.44.0.1")
                    got = await peer.get("located", found=True)
                    pid = ep.child.pid
                    hello = captured(got, vip, "10.44.0.1")
                    status = (await play(got, hello))[5:6]
                    assert status == bytes((wire.R_NOT_LISTENING,)), "it is understood"
                    assert await play(got, hello) == b"", "but only once"
                    os.kill(pid, signal.SIGKILL)
                    await until(lambda pid=pid: ep.up and ep.child.pid != pid, "the successor")
                    assert await play(got, hello) == b"", "not by the successor either"
                    assert await play(got, captured(got, vip, "10.44.0.1")) == b"", "the old key"
                    # The peer has been told to forget, and then the new key.
                    assert (await peer.get("unlocate"))["vips"] == ["10.44.0.1"]
                    new = await peer.get("located", found=True)
                    assert (new["key_id"], new["port"]) == (got["key_id"], got["port"])
                    assert new["key"] != got["key"]
                    hello = captured(new, vip, "10.44.0.1")
                    assert (await play(new, hello))[5:6] == bytes((wire.R_NOT_LISTENING,))
                    paths = pair.paths("node1")
                    said = await asyncio.to_thread(slimctl.ask, paths.admin_socket, "endpoints")
                    counters = said["endpoints"][0]["counters"]
                    assert counters["hello_bad_mac"] == 2, counters
            finally:
                await one.stop()
                await two.stop()

    pair.endpoint("puppet", "10.44.0.3", "node1", pair.netns())
    pair.write()
    run(body())
