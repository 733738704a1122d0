# SPDX-License-Identifier: Apache-2.0
"""The zygote: light, forks workers, reports their ends, can be replaced.

test (Nursery) -- zygote -- fake workers
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from slim_router.nursery import Nursery, NurseryError
from tests.unit.router.fleet import FAKES, run, until

HEAVY = ("asyncio", "ssl", "logging", "argparse", "prometheus_client", "typing.io")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def scene(body, module: str = "simple_worker"):
    async def inside():
        ends = []
        nursery = Nursery(lambda pid, status: ends.append((pid, status)), module, (FAKES,))
        await nursery.start()
        try:
            await body(nursery, ends)
        finally:
            await nursery.stop()

    run(inside())


def say(child, word: bytes) -> bytes:
    child.link.settimeout(5)
    child.link.send(word)
    return bytes(child.link.recv(65536))


def test_a_worker_has_its_link_and_little_else():
    async def body(nursery, _unused):
        child = await nursery.spawn("web-with-a-long-name")
        assert say(child, b"echo") == b"echo"
        fds = say(child, b"fds").split()
        # standard streams, the link, and the listing of the directory itself
        assert fds == [b"0", b"1", b"2", b"3", b"4"]
        assert Path(f"/proc/{child.pid}/comm").read_text().strip() == "slim-w-web-with"
        child.link.close()
        await until(lambda: not alive(child.pid), "the worker ends with its link")
        child.release()

    scene(body)


def test_no_heavy_module_is_in_a_worker():
    async def body(nursery, _unused):
        child = await nursery.spawn("a")
        loaded = say(child, b"modules").decode().split()
        assert "slim_router.zygote" in loaded
        assert not [name for name in HEAVY if name in loaded]
        child.link.close()
        child.release()

    scene(body)


def test_the_end_of_a_worker_is_reported_with_its_status():
    async def body(nursery, ends):
        child = await nursery.spawn("a")
        child.link.send(b"exit")
        await until(lambda: ends, "the end is reported")
        assert ends[0][0] == child.pid
        assert os.waitstatus_to_exitcode(ends[0][1]) == 7
        child.kill()  # harmless
        child.release()
        child.link.close()
        other = await nursery.spawn("b")
        other.kill()
        await until(lambda: len(ends) == 2, "the kill is reported")
        assert os.waitstatus_to_exitcode(ends[1][1]) == -signal.SIGKILL
        other.link.close()
        other.release()

    scene(body)


def test_a_worker_that_raises_ends_with_70_and_the_zygote_lives(capfd):
    async def body(nursery, ends):
        child = await nursery.spawn("a")
        child.link.send(b"raise")
        await until(lambda: ends, "the end is reported")
        assert os.waitstatus_to_exitcode(ends[0][1]) == 70
        again = await nursery.spawn("b")
        assert say(again, b"echo") == b"echo"
        for one in (child, again):
            one.link.close()
            one.release()

    scene(body)
    assert "RuntimeError: as ordered" in capfd.readouterr().err


def test_workers_outlive_the_zygote_and_a_new_one_comes_on_demand():
    async def body(nursery, _unused):
        child = await nursery.spawn("a")
        os.kill(nursery.pid, signal.SIGKILL)
        await until(lambda: nursery.pid == 0, "the loss is seen")
        assert say(child, b"echo") == b"echo"
        other = await nursery.spawn("b")
        assert nursery.starts == 2
        assert say(other, b"echo") == b"echo"
        for one in (child, other):
            one.link.close()
            one.release()

    scene(body)


def test_the_zygote_ends_with_the_supervisor_but_not_by_signals():
    async def inside():
        nursery = Nursery(lambda *_: None, "simple_worker", (FAKES,))
        await nursery.start()
        pid = nursery.pid
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
        child = await nursery.spawn("a")
        assert say(child, b"echo") == b"echo"
        child.link.close()
        child.release()
        await nursery.stop()
        assert not alive(pid)

    run(inside())


def test_a_worker_module_that_cannot_be_imported_is_an_error_at_start():
    async def inside():
        nursery = Nursery(lambda *_: None, "no_such_worker")
        with pytest.raises(NurseryError, match="zygote"):
            await nursery.start()
        await nursery.stop()

    run(inside())


def test_the_environment_of_workers_has_no_service_manager(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    monkeypatch.setenv("WATCHDOG_USEC", "1")

    async def body(nursery, _unused):
        environ = Path(f"/proc/{nursery.pid}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environ
        assert b"WATCHDOG" not in environ

    scene(body)


def test_idle_memory_of_a_worker_is_small():
    async def body(nursery, _unused):
        child = await nursery.spawn("a")
        assert say(child, b"echo") == b"echo"
        rollup = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
        private = sum(
            int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")
        )
        assert private < 3000, f"{private} kB"
        child.link.close()
        child.release()

    scene(body)


def test_garbage_on_the_control_socket_is_survived():
    async def body(nursery, _unused):
        for raw in (b"{", b"[]" * 1, b'{"op":"spawn","id":1,"name":"x"}'):
            if raw != b"[]":
                nursery._control.send(raw)
        await asyncio.sleep(0)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(nursery._control, [b'{"op":"what"}'], [theirs.fileno()])
        child = await nursery.spawn("a")
        assert say(child, b"echo") == b"echo"
        child.link.close()
        child.release()

    scene(body)
