# SPDX-License-Identifier: Apache-2.0
"""The flow log's file: whole lines, a bound, and disks that do not take them."""

from __future__ import annotations

import os
import resource
import stat
import subprocess

import pytest

from slim_router import flowfile
from slim_router.flowfile import FlowFile


def lines(first: int, count: int, size: int = 100) -> list[bytes]:
    return [f"{number:0{size - 1}d}\n".encode() for number in range(first, first + count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flows.jsonl"


def made(path, max_bytes: int = 1000, files: int = 3) -> FlowFile:
    return FlowFile(path, max_bytes, files)


def test_lines_are_appended_to_what_is_there_and_others_may_not_read(path):
    path.write_bytes(b"before\n")
    path.chmod(0o666)
    file = made(path)
    assert file.write(lines(0, 2)) == 2
    assert path.read_bytes() == b"before\n" + b"".join(lines(0, 2))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert file.cause == ""


def test_files_are_rotated_at_the_bound_and_the_oldest_goes(path):
    file = made(path)
    for start in range(0, 100, 7):
        assert file.write(lines(start, 7)) == 7
    kept = sorted(entry.name for entry in path.parent.iterdir())
    assert kept == ["flows.jsonl", "flows.jsonl.1", "flows.jsonl.2"]
    for entry in path.parent.iterdir():
        assert entry.stat().st_size <= 1000
        assert stat.S_IMODE(entry.stat().st_mode) == 0o640
    found = b"".join(
        entry.read_bytes() for entry in (path.with_name(name) for name in reversed(kept))
    ).splitlines()
    assert [int(line) for line in found] == list(range(105 - len(found), 105)), "in their order"
    assert len(found) > 20


def test_one_file_starts_anew(path):
    file = made(path, files=1)
    assert file.write(lines(0, 25)) == 25
    assert path.read_bytes() == b"".join(lines(20, 5))
    assert [entry.name for entry in path.parent.iterdir()] == ["flows.jsonl"]


def test_a_line_longer_than_a_file_has_one_of_its_own(path):
    file = made(path)
    assert file.write([b"a\n", b"x" * 5000 + b"\n", b"b\n"]) == 3
    assert path.read_bytes() == b"b\n"
    assert path.with_name("flows.jsonl.1").stat().st_size == 5001


def test_a_file_that_was_moved_away_is_made_again(path):
    file = made(path)
    file.write(lines(0, 1))
    path.rename(path.with_name("taken"))
    assert file.write(lines(1, 1)) == 1
    assert path.read_bytes() == lines(1, 1)[0]


def test_a_missing_directory_is_named_and_tried_again(path, monkeypatch):
    monkeypatch.setattr(flowfile, "RETRY_S", 0.0)
    file = made(path.parent / "missing" / "flows.jsonl")
    assert file.write(lines(0, 3)) == 0
    assert "missing/flows.jsonl: No such file or directory" in file.cause
    (path.parent / "missing").mkdir()
    assert file.write(lines(0, 3)) == 3
    assert file.cause == ""


def test_what_cannot_be_written_is_not_tried_for_each_line(path, monkeypatch):
    file = made(path.parent / "missing" / "flows.jsonl")
    assert file.write(lines(0, 1)) == 0
    (path.parent / "missing").mkdir()
    assert file.write(lines(0, 1)) == 0, "within the second"


@pytest.mark.parametrize("what", ["link", "fifo", "directory"])
def test_what_is_no_file_of_its_own_is_refused(path, what):
    if what == "link":
        path.symlink_to(path.parent / "elsewhere")
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    file = made(path)
    assert file.write(lines(0, 1)) == 0
    assert str(path) in file.cause
    assert not (path.parent / "elsewhere").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=65536", "slim-test", str(place)]
    subprocess.run(mount, check=True, timeout=20)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def test_a_full_disk_leaves_whole_lines_and_is_used_again_when_there_is_room(
    small_disk, monkeypatch
):
    monkeypatch.setattr(flowfile, "RETRY_S", 0.0)
    file = made(small_disk / "flows.jsonl", max_bytes=1 << 20)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40_000))
    written = 0
    while not file.cause:
        written += file.write(lines(written, 10))
        assert written < 1000, "the disk never filled"
    assert "No space left on device" in file.cause
    kept = (small_disk / "flows.jsonl").read_bytes()
    assert kept == b"".join(lines(0, written)), "whole lines, and those that were said written"
    filler.unlink()
    assert file.write(lines(written, 10)) == 10
    assert (small_disk / "flows.jsonl").read_bytes() == b"".join(lines(0, written + 10))


def test_half_a_write_is_taken_back(path):
    """The kernel takes what fits: here below a limit that ends within a line."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = made(path, max_bytes=1 << 20)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (250, hard))
        assert file.write(lines(0, 4)) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.cause
    assert path.read_bytes() == b""
