# SPDX-License-Identifier: Apache-2.0
"""Real processes are stopped while they sleep in a call, and go on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_router.stopped import stopped

READER = """
import os, sys, threading
def read():
    os.write(1, b"got " + os.read(0, 3) + b"\\n")
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads: thread.start()
os.write(1, b"ready\\n")
for thread in threads: thread.join()
"""


def states(pid: int) -> set[str]:
    """The state of each thread (proc(5), stat, field 3)."""
    return {
        task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        for task in Path(f"/proc/{pid}/task").iterdir()
    }


def wait_for_state(pid: int, wanted: str) -> None:
    end = time.monotonic() + 10
    while states(pid) != {wanted}:
        assert time.monotonic() < end, states(pid)
        time.sleep(0.005)


@pytest.fixture
def reader() -> Iterator[subprocess.Popen[bytes]]:
    """Four threads, three of which sleep in read."""
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
        process.kill()


def test_sleeping_threads_stand_still_and_their_calls_begin_anew(reader):
    wait_for_state(reader.pid, "S")
    with stopped([reader.pid], wait_s=10) as count:
        assert count == 4
        assert states(reader.pid) == {"t"}
        reader.stdin.write(b"onetwosix")
        reader.stdin.flush()
        assert states(reader.pid) == {"t"}
    assert sorted(reader.stdout.read().split()) == sorted([b"got"] * 3 + [b"one", b"two", b"six"])
    assert reader.wait(10) == 0


def test_a_block_that_fails_lets_them_go(reader):
    with pytest.raises(ZeroDivisionError), stopped([reader.pid], wait_s=10):
        raise ZeroDivisionError
    wait_for_state(reader.pid, "S")


def test_a_router_that_is_killed_lets_them_go(reader):
    wait_for_state(reader.pid, "S")
    router = os.fork()
    if not router:
        with stopped([reader.pid], wait_s=10):
            signal.pause()
        os._exit(0)
    wait_for_state(reader.pid, "t")
    os.kill(router, signal.SIGKILL)
    os.waitpid(router, 0)
    wait_for_state(reader.pid, "S")


def test_processes_that_have_ended_or_are_traced_are_left_out(reader):
    ended = subprocess.Popen(["true"])
    ended.wait(10)
    with stopped([reader.pid], wait_s=10) as first:
        assert first == 4
        with stopped([reader.pid, ended.pid], wait_s=1) as second:
            assert second == 0
        assert states(reader.pid) == {"t"}


def test_a_stopped_process_stays_stopped(reader):
    os.kill(reader.pid, signal.SIGSTOP)
    wait_for_state(reader.pid, "T")
    with stopped([reader.pid], wait_s=10):
        pass
    wait_for_state(reader.pid, "T")
