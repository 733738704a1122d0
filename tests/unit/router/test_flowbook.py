# SPDX-License-Identifier: Apache-2.0
"""The flow log from notes and ends to lines.

the test plays the worker (notes) and the applications (real TCP connections, whose
ends the kernel tells); look() is called by hand, or by the book's own thread
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from slim_router import ends, flowbook, flowfile
from slim_router.config import FlowLog
from slim_router.flowbook import FlowBook, stamp
from slim_router.flows import FALLBACK, OPEN, REFUSE, REVOKE

PATIENCE = 10.0
KEY = ("blue", "10.44.0.1")
PORTS = (29_900, 29_909)
COMMON = {"v", "time", "event", "host"}
NAMES = {
    "endpoint", "tenant", "id", "direction", "path", "src", "sport", "dst", "dport",
    "hsrc", "hsport", "hdst", "hdport",
}  # fmt: skip


class Book(FlowBook):
    """One whose rounds the test makes."""

    def __init__(self, path: Path, **options) -> None:
        super().__init__("node1", PORTS)
        self.path = path
        self._thread = threading.Thread(target=self.look)  # never started
        self.use(FlowLog(path, **options))
        self.look()

    def tell(self, *notes, dropped: int = 0) -> None:
        self.take(KEY, "web", {"notes": list(notes), "dropped": dropped}, self.rule)

    @staticmethod
    def rule(index: int, revision: int) -> str | None:
        return f"r{index}@{revision}" if index >= 0 else None

    def lines(self, event: str | None = None) -> list[dict]:
        self.look()
        found = []
        for name in (f"{self.path}.1", self.path):
            with contextlib.suppress(FileNotFoundError):
                found += [json.loads(line) for line in Path(name).read_text().splitlines()]
        return [line for line in found if event in (None, line["event"])]

    def until(self, event: str, count: int = 1) -> list[dict]:
        deadline = time.monotonic() + PATIENCE
        while len(found := self.lines(event)) < count:
            assert time.monotonic() < deadline, f"{count} x {event}: {self.lines()}"
            time.sleep(0.01)
        return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flows.jsonl"


@pytest.fixture
def book(path):
    made = Book(path)
    yield made
    made._switch(None)


def note(kind=OPEN, cookie=0, *, out=True, slim=True, why=0, host=None, rule=-1, rev=-1, more=0):
    return [
        kind, time.monotonic(), cookie, out, slim, why, "10.44.0.1", 4000 if slim or not out else 0,
        "10.44.0.2", 80, host, rule, rev, more,
    ]  # fmt: skip


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")


def pair(port: int = PORTS[0]) -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        server, _unused = listener.accept()
    return client, server


def end(*socks: socket.socket) -> None:
    for sock in socks:
        sock.close()


def test_a_log_begins_with_a_line_of_its_own_and_ends_with_one(path):
    book = Book(path)
    (first,) = book.lines()
    assert set(first) == COMMON | {"router"}
    assert (first["v"], first["event"], first["host"]) == (1, "start", "node1")
    book._switch(None)
    assert json.loads(path.read_text().splitlines()[-1])["event"] == "stop"


def test_open_and_close_tell_of_one_connection(book):
    client, server = pair()
    host = ["127.0.0.1", client.getsockname()[1], "::ffff:127.0.0.1", PORTS[0]]
    book.tell(note(cookie=cookie(client), host=host, rule=3, rev=7))
    (opened,) = book.lines("open")
    assert set(opened) == COMMON | NAMES | {"rule", "revision"}
    assert (opened["endpoint"], opened["tenant"]) == ("web", "blue")
    assert (opened["direction"], opened["path"]) == ("out", "slim")
    assert (opened["src"], opened["sport"]) == ("10.44.0.1", 4000)
    assert (opened["dst"], opened["dport"]) == ("10.44.0.2", 80)
    assert (opened["hsrc"], opened["hsport"]) == ("127.0.0.1", host[1])
    assert (opened["hdst"], opened["hdport"]) == ("127.0.0.1", PORTS[0]), "plain, not mapped"
    assert (opened["rule"], opened["revision"]) == ("r3@7", 7)
    client.sendall(b"x" * 1000)
    server.recv(1000, socket.MSG_WAITALL)
    assert not book.lines("close")
    end(client, server)
    (closed,) = book.until("close")
    assert set(closed) == COMMON | NAMES | {"seconds", "figures"}
    assert {name: closed[name] for name in NAMES} == {name: opened[name] for name in NAMES}
    assert set(closed["figures"]) == {figure[0] for figure in ends._FIGURES}
    assert 1000 <= closed["figures"]["bytes_sent"] <= 1002
    assert 0 <= closed["seconds"] < PATIENCE


def test_a_connection_that_ended_before_its_note_came_has_both_lines_in_order(book):
    client, server = pair()
    known = cookie(client), cookie(server)
    end(client, server)
    deadline = time.monotonic() + PATIENCE
    while not {(flowbook.HOST, each) for each in known} <= set(book._unclaimed):
        assert time.monotonic() < deadline
        book.look()
    book.tell(*(note(cookie=each, out=out) for each, out in zip(known, (True, False), strict=True)))
    assert [line["event"] for line in book.lines()] == ["start", "open", "close", "open", "close"]
    assert all(line["figures"] for line in book.lines("close"))


def test_ends_that_nobody_speaks_of_are_forgotten(book, monkeypatch):
    monkeypatch.setattr(flowbook, "UNCLAIMED", 5)
    for _unused in range(10):
        end(*pair())
    deadline = time.monotonic() + PATIENCE
    while not book._unclaimed:
        assert time.monotonic() < deadline
        book.look()
    book.look()
    assert len(book._unclaimed) <= 5
    monkeypatch.setattr(flowbook, "UNCLAIMED_S", 0.0)
    while book._unclaimed:
        assert time.monotonic() < deadline
        book.look()


def test_refusals_revocations_and_fallbacks_say_why(book):
    book.tell(
        note(REFUSE, rule=2, rev=5), note(REFUSE, out=False, rev=5),
        note(REVOKE, 11, rule=1, rev=6), note(REVOKE, 12, more=1),
        note(FALLBACK, 0, slim=False, why=3), note(FALLBACK, 0, slim=False, why=99),
    )  # fmt: skip
    refused = book.lines("refuse")
    assert [(r["rule"], r["revision"], r["id"]) for r in refused] == [
        ("r2@5", 5, None), (None, 5, None),
    ]  # fmt: skip
    assert [(r["rule"], r["by"], r["id"]) for r in book.lines("revoke")] == [
        ("r1@6", "policy", 11), (None, "order", 12),
    ]  # fmt: skip
    fallbacks = book.lines("fallback")
    assert [(f["why"], f["path"], f["sport"]) for f in fallbacks] == [
        ("no-trunk", "overlay", None), ("99", "overlay", None),
    ]  # fmt: skip
    assert fallbacks[0]["hsrc"] is None


def test_an_overlay_connection_ends_in_its_endpoints_namespace(book):
    """(Our own namespace plays it: what counts is whose listener hears.)"""
    book.watch(KEY, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    book.look()
    client, server = pair(29_950)  # no data port
    taken = note(FALLBACK, cookie(client), slim=False, why=2)
    taken[8], taken[9] = "127.0.0.1", 29_950
    book.tell(taken)
    local = client.getsockname()[1]
    assert book.lines("fallback")[0]["sport"] is None
    end(client, server)
    (closed,) = book.until("close")
    assert closed["sport"] == local, "the kernel knows it"
    assert closed["figures"]


def test_a_strangers_socket_is_not_taken_for_the_shims_own(book):
    book.watch(KEY, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    book.look()
    client, server = pair(29_950)
    book.tell(note(FALLBACK, cookie(client), slim=False))  # says 10.44.0.2:80
    end(client, server)
    other = pair()
    book.tell(note(cookie=cookie(other[0])))
    end(*other)
    (closed,) = book.until("close")
    assert closed["path"] == "slim"
    assert not book._open


def test_a_namespace_that_is_gone_closes_what_was_in_it_one_that_is_let_go_does_not(book):
    for gone in (False, True):
        book.watch(KEY, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        book.tell(note(cookie=77, out=False, slim=False))
        book.look()
        book.unwatch(KEY, gone=gone)
        closed = book.lines("close")
        assert [line["figures"] for line in closed] == ([None] if gone else [])
        assert not book._open
        assert KEY not in book._ends


def test_lost_reports_are_made_up_for_by_asking_the_kernel(path, monkeypatch):
    monkeypatch.setattr(ends, "BUFFER", 4096)
    monkeypatch.setattr(flowbook, "SETTLE_S", 0.0)
    book = Book(path)
    try:
        many = [pair() for _unused in range(60)]
        kept = pair()
        book.tell(*(note(cookie=cookie(client)) for client, _unused in (*many, kept)))
        assert len(book.lines("open")) == 61
        for socks in many:
            end(*socks)
        closed = book.until("close", 60)
        assert len(closed) == 60, "the one that lives has none"
        assert not all(line["figures"] for line in closed), "some reports were lost"
        assert book.counters["overruns"] >= 1
        end(*kept)
        assert len(book.until("close", 61)) == 61
        assert not book._open
    finally:
        book._switch(None)


def test_without_reports_the_kernel_is_asked(path, monkeypatch):
    def refuse(_self):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(ends.Ends, "_join", refuse)
    monkeypatch.setattr(flowbook, "BLIND_S", 0.0)
    book = Book(path)
    try:
        assert book._ends[flowbook.HOST].blind
        client, server = pair()
        book.tell(note(cookie=cookie(client)))
        for _unused in range(3):
            assert not book.lines("close")
        end(client, server)
        (closed,) = book.until("close")
        assert closed["figures"] is None
    finally:
        book._switch(None)


def test_an_aborted_socket_that_is_still_held_is_not_closed_by_one_check(book, monkeypatch):
    client, server = pair()
    book.tell(note(cookie=cookie(client)))
    book.look()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    end(server)
    monkeypatch.setattr(flowbook, "CHECK_S", 0.0)
    book._check_at = 0.0
    book.look()
    monkeypatch.setattr(flowbook, "CHECK_S", 300.0)
    book._check_at = time.monotonic() + 300
    assert not book.lines("close")
    end(client)
    (closed,) = book.until("close")
    assert closed["figures"]


def test_hosts_with_other_data_ports_widen_what_is_listened_for(book):
    client, server = pair(29_950)
    book.tell(note(cookie=cookie(client), host=["127.0.0.1", 1, "127.0.0.1", 29_950]))
    book.look()
    assert book._ends[flowbook.HOST].ports == (PORTS[0], 29_950)
    end(client, server)
    assert book.until("close")[0]["figures"]


def test_what_a_worker_dropped_is_said_and_counted(book):
    book.tell(note(REFUSE), dropped=17)
    (line,) = book.lines("dropped")
    assert set(line) == COMMON | {"n", "where", "tenant", "vip"}
    assert (line["n"], line["where"], line["tenant"], line["vip"]) == (17, "worker", *KEY)
    assert book.report()["dropped"] == 17


def test_more_than_the_queue_holds_is_dropped_said_and_counted(book, monkeypatch):
    monkeypatch.setattr(flowbook, "BATCHES", 2)
    for _unused in range(5):
        book.tell(note(REFUSE), note(REFUSE))
    assert book.report()["dropped"] == 6, "at once, not only when it is written"
    assert len(book.lines("refuse")) == 4
    (line,) = book.lines("dropped")
    assert (line["n"], line["where"], line["tenant"]) == (6, "router", None)
    assert book.report()["dropped"] == 6


def test_a_disk_that_takes_nothing_costs_lines_not_the_router(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(flowfile, "RETRY_S", 0.0)
    place = tmp_path / "missing"
    book = Book(place / "flows.jsonl")
    try:
        for _unused in range(3):
            book.tell(note(REFUSE))
            book.look()
        report = book.report()
        assert report["dropped"] == 4, "with the line of the start"
        assert "No such file" in str(report["cause"])
        assert capsys.readouterr().err.count("event=flow-log-unwritable") == 1, "said once"
        place.mkdir()
        book.tell(note(REFUSE))
        (line,) = book.lines("dropped")
        assert (line["n"], line["where"]) == (4, "file")
        assert len(book.lines("refuse")) == 1
        assert book.report()["cause"] == ""
        assert "flow-log-written-again" in capsys.readouterr().err
    finally:
        book._switch(None)


def test_more_connections_than_are_remembered_have_no_close(book, monkeypatch):
    monkeypatch.setattr(flowbook, "ROWS", 1)
    one, two = pair(), pair()
    book.tell(note(cookie=cookie(one[0])), note(cookie=cookie(two[0])))
    book.look()
    end(*two, *one)
    assert book.until("close")[0]["id"] == book.lines("open")[0]["id"]
    assert book.report()["unknown_ends"] == 1


@pytest.mark.parametrize(
    "message",
    [
        {}, {"notes": []}, {"notes": 5, "dropped": 0}, {"notes": [5], "dropped": 0},
        {"notes": [[9] * 14], "dropped": 0}, {"notes": [[0] * 13], "dropped": 0},
        {"notes": [], "dropped": None},
    ],
)  # fmt: skip
def test_a_malformed_message_is_refused(book, message):
    with pytest.raises((KeyError, TypeError, ValueError)):
        book.take(KEY, "web", message, book.rule)


def test_a_defect_in_one_note_does_not_end_the_log(path, capsys):
    book = FlowBook("node1", PORTS)
    book.use(FlowLog(path))
    bad = note(REFUSE)
    bad[1] = "never"
    book.take(KEY, "web", {"notes": [bad], "dropped": 0}, Book.rule)
    deadline = time.monotonic() + PATIENCE
    while "flow-log-defect" not in capsys.readouterr().err:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    book.take(KEY, "web", {"notes": [note(REFUSE)], "dropped": 0}, Book.rule)
    book.stop()
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["start", "refuse", "stop"]


def test_switched_off_and_on_again_by_a_reload(path):
    book = FlowBook("node1", PORTS)
    assert not book.on
    book.unwatch(KEY, gone=True)
    book.stop()  # never begun
    book.use(FlowLog(path))
    book.use(None)
    book.take(KEY, "web", {"notes": [note(REFUSE)], "dropped": 0}, Book.rule)
    book.use(FlowLog(path.with_name("second.jsonl")))
    book.stop()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        "start", "stop",
    ]  # fmt: skip
    assert path.with_name("second.jsonl").exists()


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1.0000004, "1970-01-01T00:00:01.000000Z"),
        (1.9999996, "1970-01-01T00:00:02.000000Z"),
        (1_700_000_000.25, "2023-11-14T22:13:20.250000Z"),
    ],
)
def test_stamps(when, text):
    assert stamp(when) == text
