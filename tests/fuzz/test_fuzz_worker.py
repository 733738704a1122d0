# SPDX-License-Identifier: Apache-2.0
"""A live worker under hostile records and descriptors from shims, strangers on its data
port, and nonsense in hellos. It must serve on, and keep nothing.

    this test (supervisor, shims, strangers)  ----  slim_router.worker, one process
    both in a network namespace of the test's own
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slim_router import wire, worker
from tests.fuzz.fuzzing import generator, mutate, runs

VIP = "10.44.0.1"
CONFIG = {
    "op": "config", "name": "c1", "tenant": "default", "vip": VIP, "host": "node1",
    "address": "127.0.0.1", "overlay": ["10.44.0.0/16"], "secure": "none",
    "bounds": {"swap_us": 2000, "blocking_swap_us": 10000, "reply_us": 10000, "lease_s": 30},
}  # fmt: skip
CLONE_NEWNET = 0x40000000
KINDS = range(22)


def _send_fds(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


class Live:
    """A worker process, and the test as its supervisor."""

    def __init__(self, link: socket.socket, process, port: int) -> None:
        self.link = link
        self.process = process
        self.port = port

    def shim(self, greet: bool = True) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        _send_fds(self.link, json.dumps({"op": "shim"}).encode(), [theirs.fileno()])
        theirs.close()
        ours.settimeout(10)
        if greet:
            ours.send(wire.message(wire.HELLO, 1, value=1))
            got = ours.recv(8192)
            assert wire.MSG.unpack_from(got)[2] == wire.WELCOME
        return ours

    def drain(self) -> None:
        """Read what the worker tells its supervisor; answer nothing."""
        self.link.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.link.recv(65536):
                pass
        self.link.setblocking(True)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def serves(self) -> None:
        assert self.process.is_alive(), f"the worker ended with {self.process.exitcode}"
        self.shim().close()


def _run(link: socket.socket, other: socket.socket) -> None:
    other.close()  # fork gave us the supervisor's end as well
    worker.main(link)


@pytest.fixture
def live() -> Iterator[Live]:
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    libc = ctypes.CDLL(None, use_errno=True)
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        os.system("ip link set lo up; ip addr add 10.44.0.1/16 dev lo")
        here = os.open("/proc/self/ns/net", os.O_RDONLY)
        data = socket.create_server(("127.0.0.1", 0), backlog=512)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = multiprocessing.get_context("fork").Process(target=_run, args=(theirs, ours))
        process.start()
        theirs.close()
        port = data.getsockname()[1]
        config = {**CONFIG, "data_port": port}
        _send_fds(ours, json.dumps(config).encode(), [data.fileno(), here])
        ours.settimeout(10)
        assert json.loads(ours.recv(65536))["op"] == "ready"
        data.close()
        os.close(here)
        made = Live(ours, process, port)
        yield made
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            pytest.fail("the worker did not end with its supervisor")
        assert process.exitcode == 0
    finally:
        libc.setns(back, CLONE_NEWNET)
        os.close(back)


def _descriptors(rng: random.Random) -> tuple[list[int], list[Any]]:
    """Descriptors of every kind, and what to close afterwards."""
    keep: list[Any] = []
    pool: list[int] = []

    def sock(*kind: int) -> socket.socket:
        made = socket.socket(*kind)
        keep.append(made)
        pool.append(made.fileno())
        return made

    sock(socket.AF_INET, socket.SOCK_STREAM)
    sock(socket.AF_INET, socket.SOCK_DGRAM)
    sock(socket.AF_INET6, socket.SOCK_STREAM)
    sock(socket.AF_UNIX, socket.SOCK_STREAM)
    listener = sock(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((VIP, 0))
    listener.listen(8)
    for kind in (socket.SOCK_SEQPACKET, socket.SOCK_STREAM):
        for each in socket.socketpair(socket.AF_UNIX, kind):
            keep.append(each)
            pool.append(each.fileno())
    for fd in (*os.pipe(), os.open("/dev/null", os.O_RDWR), os.memfd_create("f")):
        keep.append(fd)
        pool.append(fd)
    return [rng.choice(pool) for _unused in range(rng.choice((0, 0, 1, 2, 3, 3, 5, 12)))], keep


def _close(keep: list[Any]) -> None:
    for each in keep:
        if isinstance(each, int):
            os.close(each)
        else:
            each.close()


def _record(rng: random.Random) -> bytes:
    vips = [wire.pack_addr(a) for a in (VIP, "10.44.0.2", "192.0.2.1", "127.0.0.1", "::1")]
    raw = wire.message(
        rng.choice(KINDS), rng.getrandbits(32), flags=rng.getrandbits(rng.choice((5, 32))),
        error=rng.choice((0, 1, 111, -1)), local=rng.choice(vips), peer=rng.choice(vips),
        lport=rng.choice((0, 80, 65535)), pport=rng.choice((0, 80, 65535)),
        family=rng.choice((0, 2, 10, 1, 65535)), count=rng.getrandbits(16),
        cookie=rng.choice((0, 1, rng.getrandbits(64))), value=rng.choice((0, 1, 2, 128, rng.getrandbits(64))),
    )  # fmt: skip
    return mutate(rng, raw) if rng.random() < 0.3 else raw


def test_records_and_descriptors(live: Live) -> None:
    rng = generator("worker-records")
    live.serves()
    before = live.descriptors()
    for number in range(runs(300)):
        shim = live.shim(greet=rng.random() < 0.9)
        try:
            for _unused in range(rng.randint(1, 8)):
                fds, keep = _descriptors(rng)
                try:
                    _send_fds(shim, _record(rng) or b"\0", fds)
                finally:
                    _close(keep)
        except (BrokenPipeError, ConnectionResetError):
            pass
        shim.close()
        live.drain()
        if number % 50 == 0:
            live.serves()
    live.serves()
    end = time.monotonic() + 15
    while live.descriptors() > before + 4 and time.monotonic() < end:
        live.drain()
        time.sleep(0.05)
    assert live.descriptors() <= before + 4, (
        f"{live.descriptors()} descriptors are open in the worker, {before} before:"
        f" {sorted({str(p.readlink()) for p in Path(f'/proc/{live.process.pid}/fd').iterdir()})}"
    )


def test_strangers_on_the_data_port(live: Live) -> None:
    rng = generator("worker-hellos")
    live.serves()
    mac = wire.keyed_mac(b"k" * 32)
    vip, other = wire.pack_addr(VIP), wire.pack_addr("10.44.0.2")
    open_socks: list[socket.socket] = []
    for _unused in range(runs(400)):
        good = wire.hello(
            mac, rng.choice((1, 2)), rng.randrange(4), rng.getrandbits(64),
            rng.choice((vip, other)), rng.choice((vip, vip, other)), 1000, 80,
        )  # fmt: skip
        raw = good if rng.random() < 0.4 else mutate(rng, good)
        sock = socket.create_connection(("127.0.0.1", live.port), 5)
        with contextlib.suppress(OSError):
            sock.sendall(raw)
            if rng.random() < 0.3:
                sock.sendall(rng.randbytes(rng.randint(1, 3000)))
        if rng.random() < 0.5:
            open_socks.append(sock)
        else:
            sock.close()
        live.drain()
        if rng.random() < 0.2:
            answer = {"op": "pair", "key_id": rng.randrange(4), "vip": rng.choice((VIP, "10.44.0.2")),
                      "ok": rng.random() < 0.5, "key": "6b" * 32, "reason": 0}  # fmt: skip
            live.link.send(json.dumps(answer).encode())
    live.serves()
    for sock in open_socks:
        sock.close()
    live.serves()


def test_the_shim_that_never_reads(live: Live) -> None:
    """Replies that nobody takes must not hold the worker up."""
    shim = live.shim()
    shim.settimeout(0.5)
    with contextlib.suppress(OSError):
        for seq in range(runs(20_000)):
            shim.send(wire.message(wire.SYNC, seq))
    live.serves()
    shim.close()
    live.serves()
