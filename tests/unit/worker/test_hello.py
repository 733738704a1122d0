# SPDX-License-Identifier: Apache-2.0
"""Hellos on the data port: what is not exactly right is reset and counted, alone.

Peer.dial ---- TCP ----> data listener --- Inbound ---> App (accept channel)
strangers ---- TCP ----^
"""

from __future__ import annotations

import socket
import time

import pytest

from slim_router import inbound, wire
from tests.unit.worker.stand import (
    OURS,
    RESET,
    THEIRS,
    Peer,
    alive,
    is_reset,
    read_exactly,
    until,
)

HOSTILE = (
    "hello_malformed", "hello_not_ours", "hello_unknown_pair", "hello_bad_mac", "hello_missing",
    "hello_late", "hello_replayed", "hello_no_lease", "hello_no_listener", "hello_crowded",
)  # fmt: skip


def refusals(stand) -> int:
    return sum(stand.worker.counters[name] for name in HOSTILE)


@pytest.fixture
def lively(stand):
    """A stand with a connection between two applications, which must not notice anything."""
    app = stand.app()
    _unused, accepted, ours = stand.peer.cold(app)
    yield stand, app
    for a, b in ((accepted, ours), (ours, accepted)):
        a.sendall(b"still here")
        assert read_exactly(b, 10) == b"still here"
    # And a new one is made as before.
    sock = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 1, app.port))
    record, delivered = app.accept()
    assert (record.peer, record.pport) == (THEIRS, 1)
    for each in (accepted, ours, sock, delivered):
        each.close()


@pytest.mark.parametrize("kind", [wire.K_DELIVER, wire.K_PREPARE])
def test_a_hello_with_any_bit_flipped_is_reset_and_counted(lively, kind):
    stand, app = lively
    raw = stand.peer.hello(kind, 40000, app.port)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        before = refusals(stand)
        sock = stand.peer.dial(bytes(flipped))
        assert is_reset(sock), f"bit {bit}"
        assert refusals(stand) == before + 1, f"bit {bit}"
        sock.close()
    counters = stand.worker.counters
    assert app.idle
    assert not stand.settled.inbound.prepared
    assert not stand.settled.inbound.asking
    # Fields that are looked at before the MAC have counters of their own.
    assert counters["hello_malformed"] >= 8 * (4 + 1 + 1 + 2 + 4 + 4)
    assert counters["hello_not_ours"] == 8 * 16
    assert counters["hello_unknown_pair"] == 8 * (16 + 4)
    assert counters["hello_bad_mac"] >= 8 * (8 + 16)


def test_a_hello_cut_off_anywhere_is_reset_and_counted(lively):
    stand, app = lively
    raw = stand.peer.hello(wire.K_DELIVER, 40000, app.port)
    for size in range(1, len(raw)):
        sock = stand.peer.dial(raw[:size])
        sock.shutdown(socket.SHUT_WR)
        assert is_reset(sock), f"{size} bytes"
        sock.close()
    stand.counted("hello_missing", len(raw) - 1)
    assert not stand.settled.inbound.unproven
    assert app.idle


def test_a_stranger_that_resets_in_the_middle_costs_nothing(lively):
    stand, app = lively
    raw = stand.peer.hello(wire.K_DELIVER, 40000, app.port)
    for size in (1, 40, 79):
        sock = stand.peer.dial(raw[:size])
        until(lambda: stand.worker.inbound.unproven, "it is waited for")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()
        until(lambda: not stand.worker.inbound.unproven, "it is forgotten")
    stand.counted("hello_missing", 3)


def test_a_hello_may_come_byte_by_byte_and_the_bytes_behind_it_are_untouched(lively):
    stand, app = lively
    raw = stand.peer.hello(wire.K_DELIVER, 40000, app.port)
    sock = stand.peer.dial()
    for index in range(len(raw)):
        sock.sendall(raw[index : index + 1])
    sock.sendall(b"application")
    record, accepted = app.accept()
    assert (record.local, record.lport) == (OURS, app.port)
    assert (record.peer, record.pport) == (THEIRS, 40000)
    assert read_exactly(accepted, 11) == b"application"
    sock = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 40001, app.port) + b"at once")
    _unused, accepted = app.accept()
    assert read_exactly(accepted, 7) == b"at once"
    stand.counted("accepted_warm", 2)


def test_who_says_nothing_is_reset_in_time(lively, monkeypatch):
    stand, app = lively
    monkeypatch.setattr(inbound, "HELLO_S", 0.2)
    raw = stand.peer.hello(wire.K_DELIVER, 40000, app.port)
    began = time.monotonic()
    for first in (b"", raw[:1], raw[:79]):
        assert is_reset(stand.peer.dial(first))
    assert time.monotonic() - began < 9
    stand.counted("hello_late", 3)
    assert not stand.settled.inbound.unproven


def test_too_many_who_say_nothing_push_out_the_oldest(lively, monkeypatch):
    stand, _app = lively
    monkeypatch.setattr(inbound, "UNPROVEN", 4)
    mute = []
    for _unused in range(7):
        mute.append(stand.peer.dial(b"S"))
        until(lambda: len(stand.worker.inbound.unproven) == min(len(mute), 4), "it is seen")
    assert [is_reset(sock) for sock in mute[:3]] == [True] * 3
    assert all(alive(sock) for sock in mute[3:])
    stand.counted("hello_crowded", 3)
    for sock in mute:
        sock.close()


def test_a_pair_that_the_supervisor_refuses_is_reset(lively):
    stand, app = lively
    spoof = Peer(stand, "10.44.0.7")
    for kind in (wire.K_DELIVER, wire.K_PREPARE):
        assert is_reset(spoof.dial(spoof.hello(kind, 40000, app.port)))
    stand.counted("hello_unknown_pair", 2)
    # Nothing of a refusal is kept: a map that is pushed later changes the answer.
    assert stand.sup.count("pair", vip="10.44.0.7") == 2


def test_a_peer_cannot_speak_for_another_under_its_own_key(lively):
    stand, app = lively
    peer = stand.peer
    for src in ("10.44.0.3", "10.44.0.1"):
        raw = wire.hello(peer.mac, wire.K_PREPARE, peer.key_id, peer.nonce + 1,
                         wire.pack_addr(src), OURS, 40000, app.port)  # fmt: skip
        assert is_reset(peer.dial(raw))
    stand.counted("hello_unknown_pair", 2)


def test_hellos_wait_for_the_supervisors_word_and_their_number_is_bounded(stand, monkeypatch):
    monkeypatch.setattr(inbound, "ASKING", 3)
    app, peer = stand.app(), stand.peer
    stand.sup.auto.clear()
    waiting = [peer.dial(peer.hello(wire.K_PREPARE, 40000 + n, app.port)) for n in range(5)]
    stand.counted("hello_crowded", 2)
    stand.sup.sync()
    assert stand.sup.count("pair") == 1, "the question is asked once"
    others = [Peer(stand, f"10.44.0.{n}") for n in range(10, 14)]
    asking = [other.dial(other.hello(wire.K_PREPARE, 40000, app.port)) for other in others]
    stand.counted("hello_crowded", 6)
    stand.sup.send(**peer.answer_pair(stand.sup.get("pair", vip=peer.vip)))
    answers = []
    for sock in waiting:
        try:
            answers.append(read_exactly(sock, wire.ACK_SIZE))
        except ConnectionResetError:
            answers.append(b"")
    assert sorted(map(len, answers)) == [0, 0, *[wire.ACK_SIZE] * 3]
    for sock in waiting + asking:
        sock.close()


def test_a_replay_is_reset_and_counted(lively):
    stand, app = lively
    raw = stand.peer.hello(wire.K_DELIVER, 40000, app.port)
    sock = stand.peer.dial(raw)
    _unused, accepted = app.accept()
    assert is_reset(stand.peer.dial(raw))
    stand.counted("hello_replayed", 1)
    prepare = stand.peer.hello(wire.K_PREPARE, 40001, app.port)
    first = stand.peer.dial(prepare)
    assert len(read_exactly(first, wire.ACK_SIZE)) == wire.ACK_SIZE
    assert is_reset(stand.peer.dial(prepare))
    stand.counted("hello_replayed", 2)
    assert alive(first), "the one that was there first stays"
    assert alive(sock)
    assert app.idle
    old = stand.peer.hello(wire.K_DELIVER, 40002, app.port, nonce=stand.peer.nonce - 8192)
    assert is_reset(stand.peer.dial(old))
    stand.counted("hello_replayed", 3)
    accepted.close()


def test_a_host_connections_end_is_seen_by_the_application_and_by_nobody_else(lively):
    """The worker keeps no copy of what it has handed over."""
    stand, app = lively
    sock = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 40000, app.port) + b"x")
    _unused, accepted = app.accept()
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\0" * 8)
    read_exactly(accepted, 1)
    accepted.close()
    assert not is_reset(sock)


def test_a_hello_to_a_port_where_nobody_listens(lively):
    stand, app = lively
    sock, status, _unused = stand.peer.try_prepare(40000, app.port - 1)
    assert status == wire.R_NOT_LISTENING
    assert read_exactly(sock, 1) == b"", "and then it ends"
    assert is_reset(stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 40000, app.port - 1)))
    stand.counted("hello_no_lease", 1)
    until(lambda: stand.worker.inbound.admitted, "the admission of the live connection")
    stand.worker.inbound.admitted[(THEIRS, app.port - 1)] = time.monotonic() + 60
    assert is_reset(stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 40000, app.port - 1)))
    stand.counted("hello_no_listener", 1)


def test_without_admission_or_after_it_a_warm_hello_is_reset(stand):
    app, peer = stand.app(), stand.peer
    assert is_reset(peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port)))
    stand.counted("hello_no_lease", 1)
    peer.cold(app)
    key = (THEIRS, app.port)
    left = stand.worker.inbound.admitted[key] - time.monotonic()
    assert 28 < left <= 31, "a lease, and a second for the way"
    peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port))
    app.accept()
    stand.worker.inbound.admitted[key] = time.monotonic() - 0.001
    assert is_reset(peer.dial(peer.hello(wire.K_DELIVER, 40001, app.port)))
    stand.counted("hello_no_lease", 2)
    # An admission is for a port, too.
    other = stand.app()
    assert is_reset(peer.dial(peer.hello(wire.K_DELIVER, 40002, other.port)))
    stand.counted("hello_no_lease", 3)
    stand.worker.inbound.prune()
    assert key not in stand.worker.inbound.admitted


def test_after_unpair_the_supervisor_is_asked_again(stand):
    app, peer = stand.app(), stand.peer
    peer.prepare(40000, app.port)
    peer.prepare(40001, app.port)
    assert stand.sup.count("pair") == 1
    stand.sup.send(op="unpair", key_ids=[peer.key_id, 99])
    stand.sup.auto["pair"] = lambda message: {
        "op": "pair", "key_id": message["key_id"], "vip": message["vip"], "ok": False,
        "key": None, "reason": wire.R_NO_TRUNK,
    }  # fmt: skip
    stand.sup.sync()
    assert is_reset(peer.dial(peer.hello(wire.K_PREPARE, 40002, app.port)))
    stand.counted("hello_unknown_pair", 1)


def test_the_data_port_speaks_ipv6_mapped_and_plain(stand):
    """make_listener is dual-stack: an IPv4 peer arrives as a mapped one."""
    assert stand.worker.inbound.data.family == socket.AF_INET6
    app = stand.app()
    record, accepted, _unused = stand.peer.cold(app)
    assert accepted.family == socket.AF_INET6
    assert record.peer == THEIRS
