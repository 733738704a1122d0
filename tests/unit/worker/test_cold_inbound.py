# SPDX-License-Identifier: Apache-2.0
"""A cold connection arrives twice; exactly one of the two is delivered, whatever comes first.

Peer.dial    ---- PREPARE, ACK, COMMIT ----> Inbound.prepared --+
                                                                +--> App
Peer.overlay ---- TCP in the namespace ----> Inbound.held ------+
"""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from slim_router import inbound, wire
from tests.unit.worker.stand import (
    OURS,
    RESET,
    STRANGER,
    THEIRS,
    alive,
    inside,
    is_reset,
    read_exactly,
    until,
)


@pytest.fixture
def quick(stand):
    """The peer's router says of every overlay connection that it is a probe."""
    stand.sup.auto["query"] = lambda asked: {"op": "answer", "id": asked["id"], "probe": True}
    return stand


def sport_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def delivered_over_overlay(app, over, first: bytes = b"ping") -> socket.socket:
    """*over* itself is what the application accepts; its end."""
    record, accepted = app.accept()
    assert record.flags & wire.F_OVERLAY
    assert (record.peer, record.pport) == (THEIRS, sport_of(over))
    assert (record.local, record.lport) == (OURS, app.port)
    if first:
        over.sendall(first)
    accepted.settimeout(10)
    assert read_exactly(accepted, 4) == b"ping"
    accepted.sendall(b"pong")
    assert read_exactly(over, 4) == b"pong"
    return accepted


def delivered_over_host(app, sock, over) -> None:
    """*sock* is what the application accepts; *over* was only the shadow."""
    record, accepted = app.accept()
    assert not record.flags & wire.F_OVERLAY
    assert (record.peer, record.pport) == (THEIRS, sport_of(over))
    assert (record.local, record.lport) == (OURS, app.port)
    sock.sendall(b"ping")
    assert read_exactly(accepted, 4) == b"ping"
    accepted.sendall(b"pong")
    assert read_exactly(sock, 4) == b"pong"
    assert is_reset(over)
    assert app.idle


def test_overlay_then_prepare_then_commit(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    asked = quick.sup.get("query")
    assert (asked["vip"], asked["sport"]) == (peer.vip, sport_of(over))
    assert (asked["dst"], asked["dport"]) == ("10.44.0.1", app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    assert app.idle, "nothing is decided yet"
    sock.sendall(peer.commit(nonce))
    delivered_over_host(app, sock, over)
    quick.counted("accepted_cold", 1)
    assert not quick.settled.inbound.held
    assert not quick.settled.inbound.prepared


def test_prepare_then_overlay_then_commit_needs_no_question(quick):
    app, peer = quick.app(), quick.peer
    with inside(quick.netns):
        reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind((peer.vip, 0))
    sock, nonce = peer.prepare(sport_of(reserved), app.port)
    reserved.connect(("10.44.0.1", app.port))
    until(lambda: quick.worker.inbound.held, "the overlay connection is held")
    sock.sendall(peer.commit(nonce))
    delivered_over_host(app, sock, reserved)
    assert quick.sup.count("query") == 0


def test_commit_before_the_overlay_connection(quick):
    app, peer = quick.app(), quick.peer
    with inside(quick.netns):
        over = socket.socket()
    over.settimeout(10)
    over.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    over.bind((peer.vip, 0))
    sock, nonce = peer.prepare(sport_of(over), app.port)
    sock.sendall(peer.commit(nonce) + b"early")
    until(lambda: any(p.committed for p in quick.worker.inbound.prepared.values()), "COMMIT")
    assert app.idle, "a COMMIT alone admits nobody"
    assert is_reset(peer.dial(peer.hello(wire.K_PREPARE, 1, 1)[:79] + b"\0"))
    with contextlib.suppress(ConnectionResetError):  # that fast
        over.connect(("10.44.0.1", app.port))
    record, accepted = app.accept()
    assert not record.flags & wire.F_OVERLAY
    assert read_exactly(accepted, 5) == b"early"
    assert not alive(over)


def test_a_commit_whose_overlay_connection_never_comes_is_reset(quick, monkeypatch):
    monkeypatch.setattr(inbound, "MATCH_S", 0.2)
    app, peer = quick.app(), quick.peer
    sock, nonce = peer.prepare(40000, app.port)
    sock.sendall(peer.commit(nonce))
    assert is_reset(sock)
    quick.counted("prepare_late", 1)
    assert app.idle
    assert not quick.settled.inbound.admitted


def test_a_prepared_connection_without_a_commit_is_dropped_in_time(quick, monkeypatch):
    monkeypatch.setattr(inbound, "COMMIT_S", 0.3)
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    assert is_reset(sock)
    quick.counted("prepare_late", 1)
    delivered_over_overlay(app, over)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_an_end_without_commit_makes_the_overlay_connection_the_real_one(quick, how):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    assert app.idle
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
    delivered_over_overlay(app, over)
    quick.counted("accepted_overlay", 1)
    assert not quick.settled.inbound.admitted


def test_data_on_a_held_connection_means_that_it_is_the_real_one(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    over.sendall(b"ping")
    delivered_over_overlay(app, over, b"")
    assert is_reset(sock), "the other half is void"
    # Also without any prepared connection.
    over = peer.overlay(app.port)
    over.sendall(b"ping")
    delivered_over_overlay(app, over, b"")


def test_the_answer_no_makes_it_the_real_one_at_once(stand):
    app, peer = stand.app(), stand.peer
    over = peer.overlay(app.port)
    asked = stand.sup.get("query")
    assert app.idle
    stand.sup.send(op="answer", id=asked["id"], probe=False)
    delivered_over_overlay(app, over)
    assert not stand.settled.inbound.held
    assert not stand.settled.inbound.queries
    stand.sup.send(op="answer", id=asked["id"], probe=False)  # again: nobody's
    stand.sup.sync()


def test_the_answer_no_comes_too_late_for_a_connection_that_is_prepared(stand):
    app, peer = stand.app(), stand.peer
    over = peer.overlay(app.port)
    asked = stand.sup.get("query")
    sock, nonce = peer.prepare(sport_of(over), app.port)
    stand.sup.send(op="answer", id=asked["id"], probe=False)
    stand.sup.sync()
    assert app.idle
    sock.sendall(peer.commit(nonce))
    delivered_over_host(app, sock, over)


def test_a_connection_is_held_for_a_bounded_time(quick, monkeypatch):
    monkeypatch.setattr(inbound, "HOLD_S", 0.05)
    monkeypatch.setattr(inbound, "HOLD_MAX_S", 0.4)
    app, peer = quick.app(), quick.peer
    began = time.monotonic()
    over = peer.overlay(app.port)
    delivered_over_overlay(app, over)
    assert 0.35 < time.monotonic() - began < 5
    assert quick.sup.count("query") > 1, "the peer was asked whether it still means it"
    quick.counted("held_late", 1)
    # With a prepared half, which is void then.
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    delivered_over_overlay(app, over)
    assert is_reset(sock)
    quick.counted("held_late", 2)


def test_a_peer_that_changes_its_mind_is_not_waited_for(stand, monkeypatch):
    monkeypatch.setattr(inbound, "HOLD_S", 0.05)
    app, peer = stand.app(), stand.peer
    began = time.monotonic()
    over = peer.overlay(app.port)
    for probe in (True, False):
        asked = stand.sup.get("query")
        stand.sup.send(op="answer", id=asked["id"], probe=probe)
    delivered_over_overlay(app, over)
    assert time.monotonic() - began < inbound.HOLD_MAX_S


def test_a_connection_that_is_held_for_long_cannot_be_prepared_any_more(quick, monkeypatch):
    monkeypatch.setattr(inbound, "PREPARE_S", 0.0)
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    until(lambda: quick.worker.inbound.held, "it is held")
    _unused, status, _unused = peer.try_prepare(sport_of(over), app.port)
    assert status == wire.R_NOT_READY
    over.sendall(b"ping")
    delivered_over_overlay(app, over, b"")


def test_a_connection_that_was_delivered_cannot_be_prepared_any_more(stand):
    app, peer = stand.app(), stand.peer
    stand.sup.auto["query"] = lambda asked: {"op": "answer", "id": asked["id"], "probe": False}
    over = peer.overlay(app.port)
    accepted = delivered_over_overlay(app, over)
    sock, status, _unused = peer.try_prepare(sport_of(over), app.port)
    assert status == wire.R_NOT_READY
    assert alive(over)
    assert alive(accepted)
    assert app.idle
    sock.close()


def test_sources_outside_of_the_overlay_are_delivered_without_a_question(stand):
    app = stand.app()
    over = stand.peer.overlay(app.port, source=STRANGER)
    record, accepted = app.accept()
    assert record.flags & wire.F_OVERLAY
    assert (record.peer, record.pport) == (wire.pack_addr(STRANGER), sport_of(over))
    assert stand.sup.count("query") == 0
    # Our own address neither.
    own = stand.peer.overlay(app.port, source="10.44.0.1")
    record, _unused = app.accept()
    assert record.peer == OURS
    assert stand.sup.count("query") == 0
    for sock in (accepted, own):
        sock.close()


def test_a_held_connection_that_the_client_gives_up_is_still_delivered(quick):
    """As on the overlay: a connection that was reset in the queue is accepted, and is dead."""
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    until(lambda: quick.worker.inbound.held, "it is held")
    over.close()
    record, accepted = app.accept()
    assert record.flags & wire.F_OVERLAY
    assert read_exactly(accepted, 1) == b""


def test_a_port_used_again_while_its_predecessor_is_held(quick):
    app, peer = quick.app(), quick.peer
    first = peer.overlay(app.port)
    sport = sport_of(first)
    until(lambda: quick.worker.inbound.held, "it is held")
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    first.close()
    record, _dead = app.accept()
    assert record.flags & wire.F_OVERLAY
    over = peer.overlay(app.port, sport=sport)
    sock, nonce = peer.prepare(sport, app.port)
    sock.sendall(peer.commit(nonce))
    delivered_over_host(app, sock, over)


def test_a_second_prepare_takes_the_place_of_the_first(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    first, _unused = peer.prepare(sport_of(over), app.port)
    second, nonce = peer.prepare(sport_of(over), app.port)
    assert is_reset(first)
    second.sendall(peer.commit(nonce))
    delivered_over_host(app, second, over)


def test_a_commit_with_any_bit_flipped_is_reset_and_the_overlay_serves(quick):
    app, peer = quick.app(), quick.peer
    for bit in range(wire.COMMIT_SIZE * 8):
        over = peer.overlay(app.port)
        sock, nonce = peer.prepare(sport_of(over), app.port)
        raw = bytearray(peer.commit(nonce))
        raw[bit // 8] ^= 1 << bit % 8
        sock.sendall(bytes(raw))
        assert is_reset(sock), f"bit {bit}"
        record, accepted = app.accept()
        assert record.flags & wire.F_OVERLAY, f"bit {bit}"
        for each in (over, sock, accepted):
            each.close()
    quick.counted("commit_malformed", wire.COMMIT_SIZE * 8)
    assert not quick.settled.inbound.admitted


def test_a_commit_may_come_byte_by_byte_and_the_bytes_behind_it_are_untouched(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    raw = peer.commit(nonce)
    for index in range(len(raw)):
        sock.sendall(raw[index : index + 1])
        time.sleep(0.001)
    delivered_over_host(app, sock, over)
    over = peer.overlay(app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    sock.sendall(peer.commit(nonce) + b"x" * 1000)
    record, accepted = app.accept()
    assert not record.flags & wire.F_OVERLAY
    assert read_exactly(accepted, 1000) == b"x" * 1000
    # One byte must wake a reader: the mark that waited for all of COMMIT is gone.
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


def test_a_commit_that_is_cut_off_makes_the_overlay_connection_the_real_one(quick):
    app, peer = quick.app(), quick.peer
    began = time.monotonic()
    for size in range(1, wire.COMMIT_SIZE):
        over = peer.overlay(app.port)
        sock, nonce = peer.prepare(sport_of(over), app.port)
        sock.sendall(peer.commit(nonce)[:size])
        sock.close()
        record, accepted = app.accept()
        assert record.flags & wire.F_OVERLAY, f"{size} bytes"
        accepted.close()
        over.close()
    quick.counted("commit_malformed", wire.COMMIT_SIZE - 1)
    assert time.monotonic() - began < 0.5 * wire.COMMIT_SIZE, "nobody waits for the rest"


def test_a_renewal_admits_and_delivers_nothing(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    sock.sendall(peer.commit(nonce, wire.C_RENEW))
    assert is_reset(over)
    assert read_exactly(sock, 1) == b""
    quick.counted("admission_renewed", 1)
    assert app.idle
    peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port))
    record, _unused = app.accept()
    assert record.pport == 40000


def test_a_warm_hello_that_overtakes_the_commit_waits_for_it(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    warm = peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port) + b"warm")
    until(lambda: quick.worker.inbound.parked, "it is parked")
    assert app.idle
    sock.sendall(peer.commit(nonce))
    ports = {}
    for _unused in range(2):
        record, accepted = app.accept()
        ports[record.pport] = accepted
    assert set(ports) == {40000, sport_of(over)}
    assert read_exactly(ports[40000], 4) == b"warm"
    assert alive(warm)
    assert not quick.settled.inbound.parked


def test_a_warm_hello_that_waits_for_a_commit_that_never_comes_is_reset(quick):
    app, peer = quick.app(), quick.peer
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    other_over = peer.overlay(app.port)
    other, _unused = peer.prepare(sport_of(other_over), app.port)
    warm = peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port))
    until(lambda: quick.worker.inbound.parked, "it is parked")
    sock.close()
    delivered_over_overlay(app, over)
    assert alive(warm), "there is hope as long as one COMMIT may come"
    other.close()
    assert is_reset(warm)
    quick.counted("hello_no_lease", 1)
    assert not quick.settled.inbound.parked


def test_a_full_queue_refuses_prepares_withdraws_leases_and_recovers(quick):
    shim = quick.shim()
    app = quick.app(shim, backlog=4)
    peer = quick.peer
    _unused, first, _unused = peer.cold(app)
    # What the channel's own buffer takes does not count; fill that, and then the queue.
    listener = quick.worker.listeners.by_port[app.port][0]
    socks = []
    while not listener.full:
        socks.append(peer.dial(peer.hello(wire.K_DELIVER, 1000 + len(socks), app.port)))
        number = len(socks) + 1
        until(lambda number=number: quick.worker.counters["accepted_warm"] + 1 >= number, "it came")
        assert len(socks) < 2000
    asked = quick.sup.get("withdraw")
    assert (asked["port"], asked["vips"]) == (app.port, [peer.vip])
    _unused, status, _unused = peer.try_prepare(40000, app.port)
    assert status == wire.R_LIMIT
    # A hello under a lease that was good when it left is still taken.
    late = peer.dial(peer.hello(wire.K_DELIVER, 50000, app.port))
    for _unused in socks:
        app.accept()[1].close()
    record, accepted = app.accept()
    assert record.pport == 50000
    assert alive(late)
    assert alive(accepted)
    until(lambda: not listener.paused, "the overlay is accepted from again")
    over = peer.overlay(app.port)
    sock, nonce = peer.prepare(sport_of(over), app.port)
    sock.sendall(peer.commit(nonce))
    delivered_over_host(app, sock, over)
    first.close()


def test_when_the_application_closes_everything_that_waits_is_reset_and_leases_withdrawn(quick):
    app, peer = quick.app(), quick.peer
    _unused, accepted, ours = peer.cold(app)
    queued = peer.dial(peer.hello(wire.K_DELIVER, 40000, app.port))
    over = peer.overlay(app.port)
    sock, _unused = peer.prepare(sport_of(over), app.port)
    lone = peer.overlay(app.port)
    until(lambda: len(quick.worker.inbound.held) == 2, "both are held")
    quick.counted("accepted_warm", 1)
    app.channel.close()
    for each in (queued, over, sock, lone):
        assert is_reset(each)
    asked = quick.sup.get("withdraw")
    assert (asked["port"], asked["vips"]) == (app.port, [peer.vip])
    assert not quick.settled.listeners.by_port
    assert not quick.settled.inbound.held
    assert not quick.settled.inbound.prepared
    accepted.sendall(b"live")
    assert read_exactly(ours, 4) == b"live"
    with pytest.raises(ConnectionRefusedError):
        peer.overlay(app.port)


def test_listeners_of_a_reuseport_group_take_turns_and_the_last_one_withdraws(quick):
    shim, peer = quick.shim(), quick.peer
    first = quick.app(shim, reuse_port=True)
    # listeners of the group must all be open before the first is the shim's alone
    second = quick.app(shim, port=first.port, reuse_port=True)
    quick.worker.inbound.admitted[(THEIRS, first.port)] = time.monotonic() + 60
    for sport in range(40000, 40010):
        peer.dial(peer.hello(wire.K_DELIVER, sport, first.port))
    for app in (first, second):
        for _unused in range(5):
            app.accept()
        assert app.idle
    first.channel.close()
    until(lambda: len(quick.worker.listeners.by_port[second.port]) == 1, "one is left")
    assert quick.sup.count("withdraw") == 0
    peer.dial(peer.hello(wire.K_DELIVER, 41000, second.port))
    assert second.accept()[0].pport == 41000
    second.channel.close()
    assert quick.sup.get("withdraw")["vips"] == [peer.vip]


def test_ipv6_endpoints_address_an_ipv6_listener(quick):
    """The overlay may be IPv6; names are 16 bytes all the way."""
    app = quick.app(address="fd44::1")
    quick.sup.auto["query"] = lambda asked: {"op": "answer", "id": asked["id"], "probe": False}
    over = quick.peer.overlay(app.port, source="fd44::2")
    record, _unused = app.accept()
    assert (record.peer, record.pport) == (wire.pack_addr("fd44::2"), sport_of(over))
    assert quick.sup.get("query")["vip"] == "fd44::2"
