# SPDX-License-Identifier: Apache-2.0
"""Connection tables that outlive their worker.

worker --rows--> file <--rows-- its successor
"""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import threading
from pathlib import Path

import pytest

from slim_router import rowfile
from slim_router.row import HostName, Row
from slim_router.rowfile import FIRST, RECORD, RowFile
from slim_router.table import Table
from slim_router.wire import R_NO_ROUTER, R_NOT_LISTENING, pack_addr

US, THEM = pack_addr("10.44.0.1"), pack_addr("fd44::2")


def row(sport: int, **changes) -> Row:
    made = Row(True, True, 0, US, sport, THEM, 80, 0.5, 10)
    return made._replace(**changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows"


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def kept(path: Path) -> dict[int, Row]:
    """What a successor finds."""
    file = RowFile(opened(path))
    try:
        return dict(file.load())
    finally:
        file.close()


def test_a_successor_finds_every_row_as_it_was(path):
    rows = {
        1: row(1001),
        2: row(1002, slim=False, why=R_NOT_LISTENING),
        (1 << 64) - 1: row(1003, outgoing=False, src=THEM, dst=US, family=2),
    }
    file = RowFile(opened(path))
    assert not dict(file.load())
    for cookie, one in rows.items():
        assert file.put(cookie, one)
    file.put(9, row(9))
    file.remove(9)
    file.remove(10)
    file.close()
    assert kept(path) == rows
    assert kept(path) == rows


def test_a_row_takes_the_place_of_another_of_its_cookie(path):
    file = RowFile(opened(path))
    dict(file.load())
    for sport in range(10 * FIRST):
        file.put(7, row(sport))
    file.close()
    assert kept(path) == {7: row(10 * FIRST - 1)}
    assert path.stat().st_size == (FIRST + 1) * RECORD


def test_a_name_goes_with_its_row(path):
    file = RowFile(opened(path))
    dict(file.load())
    name = HostName(US, 40000, THEM, 7000)
    file.set_name(1, name)
    assert file.name(1) is None, "there is no such row"
    file.put(1, row(1001))
    file.put(2, row(1002))
    assert file.name(1) is None
    file.set_name(1, name)
    assert (file.name(1), file.name(2)) == (name, None)
    file.close()
    file = RowFile(opened(path))
    assert dict(file.load()) == {1: row(1001), 2: row(1002)}
    assert (file.name(1), file.name(2)) == (name, None)
    file.put(1, row(1003))
    assert file.name(1) is None, "another row of that cookie, another connection"
    file.set_name(1, name)
    file.remove(1)
    file.put(3, row(1004))
    assert file.name(1) is file.name(3) is None
    file.close()


def test_it_grows_and_uses_the_room_again(path):
    file = RowFile(opened(path))
    dict(file.load())
    for cookie in range(1000):
        assert file.put(cookie, row(cookie))
    size = path.stat().st_size
    for cookie in range(900):
        file.remove(cookie)
    for cookie in range(2000, 2900):
        assert file.put(cookie, row(cookie % 65536))
    assert path.stat().st_size == size
    file.close()
    assert set(kept(path)) == {*range(900, 1000), *range(2000, 2900)}


def test_random_use_is_what_a_dict_would_have(path):
    for seed in range(20):
        dice = random.Random(seed)
        path.unlink(missing_ok=True)
        file, wanted = RowFile(opened(path)), dict[int, Row]()
        dict(file.load())
        for _unused in range(2000):
            cookie = dice.randrange(300)
            if dice.random() < 0.6:
                wanted[cookie] = row(dice.randrange(65536), slim=dice.random() < 0.5)
                file.put(cookie, wanted[cookie])
            else:
                wanted.pop(cookie, None)
                file.remove(cookie)
            if dice.random() < 0.01:
                file.close()
                file = RowFile(opened(path))
                assert dict(file.load()) == wanted, f"seed {seed}"
        file.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:30],
        lambda data: b"\0" * len(data),
        lambda data: data[:8] + struct.pack("=H", 1) + data[10:],
        lambda data: data[:12] + bytes(16) + data[28:],  # of another boot
    ],
    ids=["empty", "short", "zeros", "version", "boot"],
)
def test_a_file_that_is_not_ours_is_begun_anew(path, damage):
    file = RowFile(opened(path))
    dict(file.load())
    file.put(1, row(1))
    file.close()
    path.write_bytes(damage(path.read_bytes()))
    assert kept(path) == {}
    file = RowFile(opened(path))
    dict(file.load())
    file.put(2, row(2))
    file.close()
    assert kept(path) == {2: row(2)}


def test_noise_behind_a_good_header_never_fails(path):
    kept(path)
    header = path.read_bytes()[:RECORD]
    for seed in range(200):
        dice = random.Random(seed)
        path.write_bytes(header + dice.randbytes(dice.randrange(4096)))
        for one in kept(path).values():
            assert len(one.src) == len(one.dst) == 16


def test_no_room_is_said_and_costs_nothing_else(path, monkeypatch):
    file = RowFile(opened(path))
    dict(file.load())
    for cookie in range(FIRST):
        assert file.put(cookie, row(cookie))

    def full(*_unused):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rowfile.os, "posix_fallocate", full)
    assert not file.put(FIRST, row(1))
    monkeypatch.undo()
    assert file.put(FIRST, row(1))
    monkeypatch.setattr(rowfile, "RECORDS_MAX", 2 * FIRST + 1)
    for cookie in range(FIRST + 1, 2 * FIRST + 1):
        assert file.put(cookie, row(1))
    assert not file.put(5000, row(1))
    file.close()
    assert len(kept(path)) == 2 * FIRST + 1


def test_a_killed_writer_leaves_what_it_had_stored(path):
    """Rows whose number it has said are there, and of the one that it was at nothing false."""
    for _unused in range(5):
        path.unlink(missing_ok=True)
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            file = RowFile(opened(path))
            dict(file.load())
            cookie = 0
            while True:
                cookie += 1
                file.put(cookie, row(cookie % 65536))
                file.set_name(cookie, HostName(US, cookie % 65536, THEM, 1))
                os.write(theirs, b".")
        os.close(theirs)
        said = 0
        while said < 500:
            said += len(os.read(ours, 500))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while piece := os.read(ours, 65536):
            said += len(piece)
        os.close(ours)
        file = RowFile(opened(path))
        found = dict(file.load())
        names = {cookie: file.name(cookie) for cookie in found}
        file.close()
        assert said <= len(found) <= said + 1
        assert found == {cookie: row(cookie % 65536) for cookie in found}
        assert sum(name is not None for name in names.values()) >= said
        for cookie, name in names.items():
            assert name in (None, HostName(US, cookie % 65536, THEM, 1))


def test_it_waits_for_a_predecessor_that_is_on_its_way_out(path):
    first = RowFile(opened(path))
    taken = threading.Event()

    def take() -> None:
        kept(path)
        taken.set()

    thread = threading.Thread(target=take)
    thread.start()
    assert not taken.wait(0.2)
    first.close()
    assert taken.wait(10)
    thread.join()


def test_a_table_takes_over_what_was_kept(path):
    file = RowFile(opened(path))
    table = Table(lambda _info: iter(()), kept=file)
    table.add(1, row(1001))
    table.add(2, row(1002))
    table.drop(2)
    table.begin(3, row(0, slim=False, why=R_NO_ROUTER))
    table.begin(1, row(0, slim=False))  # what a shim calls its cookie must not hide a row
    table.end(1)
    table.begin(4, row(0, slim=False))
    table.end(4)
    file.close()
    file = RowFile(opened(path))
    after = Table(lambda _info: iter(()), kept=file)
    assert after.rows == {1: row(1001), 3: row(0, slim=False, why=R_NO_ROUTER)}
    assert set(after.names) == {(THEM, 80, 1001)}
    after.reap()
    file.close()
    assert kept(path) == {}


def test_a_time_that_cannot_be_is_now(path):
    file = RowFile(opened(path))
    dict(file.load())
    for cookie, since in enumerate((float("nan"), float("inf"), -1.0, 1e300)):
        file.put(cookie, row(1, since=since))
    file.close()
    assert all(0.0 <= one.since < 1e9 for one in kept(path).values())
