# SPDX-License-Identifier: Apache-2.0
"""The keeper: it starts, restarts, holds and stops one command."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KEEPER = Path(__file__).resolve().parents[3] / "tools" / "lab" / "keeper.py"


class Keeper:
    """Runs keeper.py on one pid file."""

    def __init__(self, directory: Path) -> None:
        self.pidfile = directory / "r.pid"
        self.log = directory / "r.log"

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(KEEPER), "--pidfile", str(self.pidfile), *words],
            capture_output=True,
            text=True,
            timeout=30,
            check=check,
        )

    def status(self) -> dict:
        return json.loads(self("status", check=False).stdout)

    def pid(self) -> int:
        return int(self.pidfile.read_text())


def eventually(predicate: Callable[[], object], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keeper]:
    # A short directory: the control socket's path has to fit into 107 bytes.
    made = Keeper(tmp_path_factory.mktemp("k"))
    yield made
    made("stop", "-9")


def test_start_publishes_the_commands_pid(keeper: Keeper) -> None:
    keeper("start", "--", "sleep", "60")
    eventually(keeper.pidfile.exists)
    assert Path(f"/proc/{keeper.pid()}/comm").read_text() == "sleep\n"
    status = keeper.status()
    assert status["pid"] == keeper.pid()
    assert status["command"] == ["sleep", "60"]
    # The command is in a session of its own and has no terminal's end to fear.
    assert os.getsid(keeper.pid()) == keeper.pid()


def test_start_of_a_kept_command_changes_nothing(keeper: Keeper) -> None:
    keeper("start", "--", "sleep", "60")
    eventually(keeper.pidfile.exists)
    before = keeper.pid()
    keeper("start", "--", "sleep", "60")
    assert keeper.pid() == before


def test_killed_command_comes_back(keeper: Keeper) -> None:
    keeper("start", "--", "sleep", "60")
    eventually(keeper.pidfile.exists)
    before = keeper.pid()
    os.kill(before, signal.SIGKILL)
    eventually(lambda: keeper.pidfile.exists() and keeper.pid() != before)
    assert keeper.status()["restarts"] == 1
    assert keeper.status()["last_status"] == -signal.SIGKILL


def test_held_command_stays_dead_until_resume(keeper: Keeper) -> None:
    keeper("start", "--", "sleep", "60")
    eventually(keeper.pidfile.exists)
    keeper("hold")
    os.kill(keeper.pid(), signal.SIGKILL)
    eventually(lambda: not keeper.pidfile.exists())
    assert keeper("status", check=False).returncode == 3
    assert keeper.status()["held"]
    keeper("resume")
    eventually(keeper.pidfile.exists)
    assert keeper("status").returncode == 0


def test_quick_failures_are_spaced_out(keeper: Keeper, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    keeper("start", "--", "/bin/sh", "-c", f"date +%s.%N >> {marks}; exit 7")
    eventually(lambda: marks.exists() and len(marks.read_text().split()) >= 5)
    times = [float(word) for word in marks.read_text().split()[:5]]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] >= 0.05
    assert gaps[3] >= 0.35, "the pause doubles"
    assert keeper.status()["last_status"] in (7, None)


def test_stop_waits_for_the_end_and_forgets(keeper: Keeper) -> None:
    keeper("start", "--", "/bin/sh", "-c", "trap 'sleep 0.2; exit 0' TERM; sleep 60 & wait")
    eventually(keeper.pidfile.exists)
    pid = keeper.pid()
    keeper("stop")
    assert not Path(f"/proc/{pid}").exists()
    assert not keeper.pidfile.exists()
    assert sorted(path.name for path in keeper.pidfile.parent.iterdir()) == ["r.log"]
    keeper("stop")


def test_stop_9_ends_a_command_that_ignores_term(keeper: Keeper) -> None:
    keeper("start", "--", "/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    eventually(keeper.pidfile.exists)
    started = time.monotonic()
    keeper("stop", "-9")
    assert time.monotonic() - started < 5


def test_reload_is_sighup(keeper: Keeper, tmp_path: Path) -> None:
    mark, ready = tmp_path / "hup", tmp_path / "ready"
    keeper(
        "start", "--", "/bin/sh", "-c",
        f"trap 'touch {mark}' HUP; touch {ready}; while :; do sleep 0.02; done",
    )  # fmt: skip
    eventually(ready.exists)
    pid = keeper.pid()
    keeper("reload")
    eventually(mark.exists)
    assert keeper.pid() == pid


def test_wait_is_for_ready(keeper: Keeper) -> None:
    program = (
        "import os, socket, time; time.sleep(0.3);"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM);"
        "s.sendto(b'STATUS=x\\nREADY=1', os.environ['NOTIFY_SOCKET']); time.sleep(60)"
    )
    keeper("start", "--wait", "10", "--", sys.executable, "-c", program)
    assert keeper.status()["ready"]
    done = keeper("restart", "--wait", "0.3", "--", "sleep", "60", check=False)
    assert done.returncode == 1
    assert "not ready" in done.stderr


def test_restart_keeps_or_replaces_the_command(keeper: Keeper) -> None:
    keeper("start", "--", "sleep", "60")
    eventually(keeper.pidfile.exists)
    before = keeper.pid()
    keeper("restart")
    eventually(lambda: keeper.pidfile.exists() and keeper.pid() != before)
    assert keeper.status()["command"] == ["sleep", "60"]
    keeper("restart", "--", "sleep", "61")
    assert keeper.status()["command"] == ["sleep", "61"]


def test_callers_pipe_is_not_kept_open(keeper: Keeper) -> None:
    # subprocess.run(capture_output) would wait for the keeper's end otherwise.
    started = time.monotonic()
    keeper("start", "--", "sleep", "60")
    assert time.monotonic() - started < 5


def test_verbs_without_a_keeper(keeper: Keeper) -> None:
    assert keeper("status", check=False).returncode == 3
    assert keeper("stop").returncode == 0
    for verb in ("reload", "hold", "resume"):
        done = keeper(verb, check=False)
        assert done.returncode == 1
        assert "nobody keeps" in done.stderr
    assert keeper("start", check=False).returncode == 1
