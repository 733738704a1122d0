# SPDX-License-Identifier: Apache-2.0
"""What a worker notes for the flow log, and that noting never holds anybody up.

Supervisor <--- flows (notes, dropped) --- Worker.flows <--- connects, accepts, the policy
"""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from slim_router import flows, wire
from slim_router.flows import FALLBACK, OPEN, REFUSE, REVOKE
from slim_router.sockets import cookie_of
from tests.unit.worker.stand import OURS, PATIENCE, PEER, VIP, is_reset, until
from tests.unit.worker.test_gate import DENY_IN, DENY_OUT, overlay_is_reset, put
from tests.unit.worker.test_outbound import PORT, SPORT, cold, warm


class Note:
    """One note, taken apart."""

    def __init__(self, raw: list[Any]) -> None:
        assert len(raw) == 14
        (
            self.kind, self.when, self.cookie, self.out, self.slim, self.why,
            src, sport, dst, dport, self.host, self.rule, self.revision, self.more,
        ) = raw  # fmt: skip
        self.names = (src, sport, dst, dport)
        if self.host is not None:  # the accepting side's sockets are IPv6 ones
            self.host = [str(part).removeprefix("::ffff:") for part in self.host]


class Notes:
    """The notes that the supervisor has got."""

    def __init__(self, stand) -> None:
        self.stand = stand
        stand.sup.send(op="flow_log", on=True)
        stand.sup.sync()
        self.found: list[Note] = []
        self.dropped = 0

    def get(self, kind: int, count: int = 1) -> list[Note]:
        """The next *count* notes of this kind; they are taken out."""
        end = time.monotonic() + PATIENCE
        while len(mine := [note for note in self.found if note.kind == kind]) < count:
            assert time.monotonic() < end, f"{count} notes of kind {kind}: {self.found}"
            message = self.stand.sup.get("flows")
            self.found += map(Note, message["notes"])
            self.dropped += message["dropped"]
        for note in mine[:count]:
            self.found.remove(note)
        return mine[:count]


@pytest.fixture
def notes(stand):
    return Notes(stand)


def names(sock: socket.socket) -> list[str]:
    return [*plain(sock.getsockname()), *plain(sock.getpeername())]


def plain(name: tuple[Any, ...]) -> list[str]:
    return [str(part).removeprefix("::ffff:") for part in name[:2]]


def test_without_a_log_nothing_is_noted(stand):
    assert stand.worker.flows is None
    shim = stand.shim()
    cold(stand, shim)
    warm(stand, shim)
    stand.sup.sync()
    assert not stand.sup.count("flows")


def test_cold_and_warm_connects(stand, notes):
    before = time.monotonic()
    shim = stand.shim()
    here, _there = cold(stand, shim)
    (note,) = notes.get(OPEN)
    assert (note.cookie, note.out, note.slim) == (cookie_of(here), True, True)
    assert note.names == (VIP, SPORT, PEER, PORT)
    assert note.host == names(here)
    assert before <= note.when <= time.monotonic()
    assert (note.rule, note.revision) == (-1, stand.worker.gate.revision)
    record, here, _there, sport = warm(stand, shim)
    (note,) = notes.get(OPEN)
    assert (note.cookie, note.names) == (record.cookie, (VIP, sport, PEER, PORT))
    assert note.host == names(here)
    assert not notes.found


def test_accepted_connections_of_either_path(stand, notes):
    app = stand.app()
    record, accepted, far = stand.peer.cold(app)
    (note,) = notes.get(OPEN)
    assert (note.cookie, note.out, note.slim) == (record.cookie, False, True)
    assert note.names == (PEER, record.pport, VIP, app.port)
    assert note.host == names(far)
    plain = stand.peer.overlay(app.port)
    plain.sendall(b"real")
    record, accepted = app.accept()
    assert record.flags & wire.F_OVERLAY
    (note,) = notes.get(OPEN)
    assert (note.cookie, note.out, note.slim) == (cookie_of(accepted), False, False)
    assert note.names == (PEER, plain.getsockname()[1], VIP, app.port)
    assert note.host is None


def test_a_connect_that_takes_the_overlay_says_why(stand, notes):
    shim = stand.shim()
    record, _unused = shim.connect(PORT, wait_s=0.0, cookie=4711)
    assert record.kind == wire.PLAIN
    (note,) = notes.get(FALLBACK)
    assert (note.cookie, note.out, note.slim, note.why) == (4711, True, False, wire.R_NOT_READY)
    assert note.names == (VIP, 0, PEER, PORT)
    record, _unused = shim.connect(PORT, peer=wire.pack_addr("198.51.100.1"), cookie=4712)
    assert record.kind == wire.PLAIN
    stand.sup.sync()
    assert not stand.sup.count("flows"), "what leads off the overlay is nobody's business"


def test_a_warm_connection_whose_handshake_failed_is_a_fallback(stand, notes):
    shim = stand.shim()
    cold(stand, shim)
    record, _here, _there, sport = warm(stand, shim)
    notes.get(OPEN, 2)
    shim.tell(wire.CANCEL, cookie=record.cookie)
    (note,) = notes.get(FALLBACK)
    assert (note.cookie, note.why) == (0, wire.R_HOST_FAILED)
    assert note.names == (VIP, sport, PEER, PORT)


def test_refusals_name_the_rule(stand, notes):
    put(stand, {"id": "other", "action": "deny", "sources": [PEER], "destinations": [PEER]},
        DENY_OUT, DENY_IN)  # fmt: skip
    revision = stand.worker.gate.revision
    app = stand.app()
    record, _unused = stand.shim().connect(PORT)
    assert record.kind == wire.REFUSED
    (note,) = notes.get(REFUSE)
    assert (note.out, note.names, note.host) == (True, (VIP, 0, PEER, PORT), None)
    assert (note.rule, note.revision) == (1, revision)
    far = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 4711, app.port))
    ours = plain(far.getsockname())
    assert is_reset(far)
    (note,) = notes.get(REFUSE)
    assert (note.out, note.slim, note.names) == (False, True, (PEER, 4711, VIP, app.port))
    assert (note.rule, note.host[:2]) == (2, ours)
    assert overlay_is_reset(stand, app.port)
    (note,) = notes.get(REFUSE)
    assert (note.out, note.slim, note.rule, note.host) == (False, False, 2, None)


def test_the_default_is_no_rule(stand, notes):
    put(stand, default="deny")
    stand.shim().connect(PORT)
    assert notes.get(REFUSE)[0].rule == -1


def test_revocations_by_the_list_and_by_order(stand, notes):
    shim = stand.shim()
    here, _there = cold(stand, shim)
    record, also, _unused, sport = warm(stand, shim)
    host = names(also)
    notes.get(OPEN, 2)
    stand.sup.send(op="revoke", id=99, cookies=[record.cookie])
    stand.sup.get("revoked", id=99)
    (note,) = notes.get(REVOKE)
    assert (note.cookie, note.names, note.host) == (record.cookie, (VIP, sport, PEER, PORT), host)
    assert note.more == 1
    host = names(here)
    put(stand, DENY_OUT)
    (note,) = notes.get(REVOKE)
    assert (note.cookie, note.host, note.more) == (cookie_of(here), host, 0)
    assert (note.rule, note.revision) == (0, stand.worker.gate.revision)


def test_opens_name_the_rule_that_allows_and_a_new_list_is_seen(stand, notes):
    shim = stand.shim()
    cold(stand, shim)
    assert notes.get(OPEN)[0].rule == -1
    for position in (0, 1):
        filler = {"id": "filler", "action": "deny", "sources": [VIP], "destinations": [VIP]}
        put(stand, *[filler] * position, {"id": "ok", "action": "allow", "sources": [VIP]},
            default="deny")  # fmt: skip
        warm(stand, shim)
        (note,) = notes.get(OPEN)
        assert (note.rule, note.revision) == (position, stand.worker.gate.revision)


def test_what_the_queue_does_not_hold_is_counted(stand, notes, monkeypatch):
    monkeypatch.setattr(flows, "QUEUE", 5)
    monkeypatch.setattr(flows, "FIRST_S", 0.5)
    shim = stand.shim()
    for _unused in range(12):
        shim.connect(PORT, wait_s=0.0)
    assert len(notes.get(FALLBACK, 5)) == 5
    assert notes.dropped == 7


def test_batches_are_bounded_and_all_notes_come(stand, notes):
    shim = stand.shim()
    for _unused in range(3 * flows.BATCH):
        shim.connect(PORT, wait_s=0.0)
    assert len(notes.get(FALLBACK, 3 * flows.BATCH)) == 3 * flows.BATCH
    assert notes.dropped == 0


def test_nothing_is_sent_to_a_supervisor_that_is_behind(stand, notes, monkeypatch):
    """What matters more is sent first, and notes do not pile up as messages."""
    worker = stand.worker
    shim = stand.shim()
    with monkeypatch.context() as behind:
        behind.setattr(worker, "_flush", lambda: None)
        stand.sup.send(op="dump", id=1, connections=False)
        until(lambda: worker.pending, "a message waits")
        for _unused in range(3):
            shim.connect(PORT, wait_s=0.0)
        rounds = []
        worker.loop.after(4 * flows.FIRST_S, lambda: rounds.append(1))
        shim.connect(PORT, wait_s=0.0)
        until(lambda: rounds, "several times when notes were due")
        assert len(worker.pending) == 1
        assert len(worker.flows.queue) == 4
    stand.sup.sync()
    assert len(notes.get(FALLBACK, 4)) == 4


def test_a_worker_that_is_stopped_sends_what_it_has(stand, notes, monkeypatch):
    monkeypatch.setattr(flows, "FIRST_S", 60.0)
    shim = stand.shim()
    for _unused in range(flows.BATCH + 1):
        shim.connect(PORT, wait_s=0.0)
    stand.sup.send(op="stop")
    assert len(notes.get(FALLBACK, flows.BATCH + 1)) == flows.BATCH + 1


def test_switched_off_again(stand, notes):
    shim = stand.shim()
    stand.sup.send(op="flow_log", on=False)
    stand.sup.sync()
    assert stand.worker.flows is None
    shim.connect(PORT, wait_s=0.0)
    assert OURS  # the worker serves as before
    stand.sup.sync()
    assert not stand.sup.count("flows")
