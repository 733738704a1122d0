# SPDX-License-Identifier: Apache-2.0
"""The link to a worker: order, descriptors, and bounds against a slow worker.

WorkerLink <-- SEQPACKET pair --> the test plays the worker
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import pytest

from slim_router import link as module
from slim_router.link import MESSAGE_MAX, WorkerLink
from tests.unit.router.fleet import run, until


class Ends:
    def __init__(self):
        ours, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker.setblocking(False)
        self.got: list[Any] = []
        self.closed: list[str] = []
        self.link = WorkerLink(ours, self.got.append, self.closed.append)

    def drain(self):
        """(messages, descriptors) that wait at the worker's end."""
        messages: list[Any] = []
        fds: list[int] = []
        while True:
            try:
                data, more, _unused, _unused = socket.recv_fds(self.worker, 65536, 8)
            except BlockingIOError:
                return messages, fds
            if not data:
                return messages, fds
            messages.append(json.loads(data))
            fds += more

    def end(self):
        self.link.close("test")
        self.worker.close()


def scene(body):
    async def inside():
        ends = Ends()
        try:
            await body(ends)
        finally:
            ends.end()

    run(inside())


def test_messages_arrive_in_order_with_their_descriptors():
    async def body(ends):
        with open(os.devnull) as file:  # noqa: PTH123
            assert ends.link.send({"op": "config"}, (file.fileno(), file.fileno()))
            assert ends.link.send({"op": "stop"})
        messages, fds = ends.drain()
        for fd in fds:
            os.close(fd)
        assert [m["op"] for m in messages] == ["config", "stop"]
        assert len(fds) == 2

    scene(body)


def test_a_slow_worker_gets_everything_in_order_once_it_reads():
    async def body(ends):
        count = 0
        while not ends.link._queue:
            ends.link.send({"op": "n", "n": count, "pad": "x" * 4000})
            count += 1
            assert count < 20_000
        for _unused in range(50):
            ends.link.send({"op": "n", "n": count})
            count += 1
        seen: list[int] = []
        while len(seen) < count:
            seen += [m["n"] for m in ends.drain()[0]]
            await asyncio.sleep(0)
        assert seen == list(range(count))
        assert not ends.closed

    scene(body)


def test_a_worker_that_lets_too_much_pile_up_is_given_up():
    async def body(ends):
        sent = 0
        while not ends.closed:
            ends.link.send({"op": "n", "pad": "x" * 2000})
            sent += 1
            assert sent < 30_000
        assert "messages wait" in ends.closed[0]
        assert ends.link.send({"op": "n"}) is False

    scene(body)


def test_a_worker_that_reads_nothing_for_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "STALL_S", 0.2)

    async def body(ends):
        while not ends.link._queue:
            ends.link.send({"op": "n", "pad": "x" * 4000})
        await until(lambda: ends.closed, "the link is given up")
        assert "takes no messages" in ends.closed[0]

    scene(body)


def test_a_flood_of_shims_is_dropped_and_does_not_cost_the_worker_its_life():
    async def body(ends):
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            refused = 0
            for _unused in range(20_000):
                refused += not ends.link.send_shim(theirs.fileno())
                if refused > 10:
                    break
            assert refused > 10
            assert ends.link.dropped_shims == refused
            assert not ends.closed
            # What matters still gets through.
            assert ends.link.send({"op": "stop"})
            ops = []
            while "stop" not in ops:
                messages, fds = ends.drain()
                ops += [m["op"] for m in messages]
                for fd in fds:
                    os.close(fd)
                await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208

    scene(body)


@pytest.mark.parametrize("raw", [b"{", b"[]", b"3", b"\xff", b"[" * 50_000])
def test_garbage_of_a_worker_ends_its_link(raw):
    async def body(ends):
        ends.worker.send(raw)
        await until(lambda: ends.closed, "the link is closed")
        assert "garbage" in ends.closed[0]
        assert not ends.got

    scene(body)


def test_a_message_of_unlawful_size_ends_the_link():
    async def body(ends):
        ends.worker.send(json.dumps({"op": "x", "pad": "y" * MESSAGE_MAX}).encode())
        await until(lambda: ends.closed, "the link is closed")

    scene(body)


def test_a_worker_that_dies_is_told_once():
    async def body(ends):
        ends.worker.close()
        await until(lambda: ends.closed, "the end is seen")
        ends.link.close("again")
        assert ends.closed == ["it has ended"]

    scene(body)


def test_many_vips_are_cut_to_lawful_messages():
    async def body(ends):
        vips = [f"fd44::{i:x}" for i in range(16384)]
        ends.link.send_vips("unlocate", vips)
        messages, _unused = ends.drain()
        assert [vip for m in messages for vip in m["vips"]] == vips
        assert all(len(json.dumps(m)) <= MESSAGE_MAX for m in messages)

    scene(body)
