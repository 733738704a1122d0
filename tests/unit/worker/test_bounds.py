# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps is bounded, whoever asks for it, and goes when it is over."""

from __future__ import annotations

import contextlib
import resource
import socket
import time

import pytest

from slim_router import inbound, listeners, outbound, wire
from tests.unit.worker.stand import PEER, THEIRS, VIP, Peer, Shim, inside, is_reset, until


def sport_of(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def test_one_source_cannot_fill_the_prepared_connections(stand, monkeypatch):
    monkeypatch.setattr(inbound, "PREPARED_EACH", 2)
    app = stand.app()
    kept = [stand.peer.prepare(40000 + n, app.port)[0] for n in range(2)]
    sock, status, _unused = stand.peer.try_prepare(40002, app.port)
    assert status == wire.R_LIMIT
    other = Peer(stand, "10.44.0.9")
    stand.sup.auto["pair"] = other.answer_pair
    kept.append(other.prepare(40000, app.port)[0])
    kept[0].close()
    until(lambda: len(stand.settled.inbound.prepared) == 2, "the closed one is dropped")
    kept.append(stand.peer.prepare(40003, app.port)[0])
    for each in [sock, *kept]:
        each.close()
    until(lambda: not stand.settled.inbound.prepared_of, "nothing is counted any more")


def test_overlay_connections_without_a_verdict_are_bounded(stand, monkeypatch):
    monkeypatch.setattr(inbound, "HELD", 2)
    app = stand.app()
    held = [stand.peer.overlay(app.port) for _unused in range(2)]
    until(lambda: len(stand.settled.inbound.held) == 2, "both are held")
    # (the reset may come before Python's connect() has looked whether it is through)
    with contextlib.suppress(ConnectionResetError), stand.peer.overlay(app.port) as more:
        assert is_reset(more)
    stand.counted("held_crowded", 1)
    for sock in held:
        sock.close()


def test_a_question_is_forgotten_with_what_it_was_about(stand):
    """The supervisor never answers; the client decides, by speaking."""
    app = stand.app()
    over = stand.peer.overlay(app.port)
    until(lambda: len(stand.settled.inbound.queries) == 1, "the question")
    over.sendall(b"x")
    _unused, accepted = app.accept()
    assert not stand.settled.inbound.queries
    for sock in (over, accepted):
        sock.close()


def test_a_late_answer_about_a_port_s_former_connection_says_nothing_of_the_next(stand):
    app = stand.app()
    first = stand.peer.overlay(app.port)
    question = stand.sup.get("query")
    first.sendall(b"x")
    _unused, accepted = app.accept()
    sport = sport_of(first)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    first.close()
    accepted.close()
    second = stand.peer.overlay(app.port, sport=sport)
    stand.sup.get("query")
    stand.sup.send(op="answer", id=question["id"], probe=False)
    assert len(stand.settled.inbound.held) == 1
    assert app.idle
    second.close()


def test_what_was_delivered_is_forgotten_in_time(monkeypatch):
    delivered = listeners.Delivered()
    for port in range(500):
        delivered.add((THEIRS, port, 80))
    delivered.prune()
    assert len(delivered.when) == 500
    monkeypatch.setattr(listeners, "REMEMBER_S", 0.0)
    time.sleep(0.01)
    delivered.prune()
    assert not delivered.when


def test_offers_that_nobody_takes_up_are_bounded(stand, monkeypatch):
    """A shim that swaps and never says COMMITTED."""
    monkeypatch.setattr(outbound, "OFFERED", 3)
    shim = Shim(stand)
    for n in range(6):
        record, _unused = shim.connect(80)
        assert record.kind == wire.COLD
        shim.tell(wire.BEGIN, value=record.value, lport=41000 + n)
        sock, hello, _unused = stand.peer.met()
        stand.peer.acknowledge(sock, hello[2])
        swapped, fds = shim.ask(wire.SWAP, value=record.value, error=1_000_000)
        assert swapped.kind == wire.SWAPPED
        socket.socket(fileno=fds[0]).close()
        sock.close()
    assert len(stand.settled.outbound.offered) == 3


def test_leases_that_ran_out_are_forgotten(stand):
    out = stand.worker.outbound
    location = outbound.Location(THEIRS, True, 0)
    now = time.monotonic()
    out.leases[(THEIRS, 1)] = outbound.Lease(location, 1, now - 1, 30, 40000)
    out.leases[(THEIRS, 2)] = outbound.Lease(location, 2, now + 30, 30, 40000)
    out.plain[(THEIRS, 3)] = now - 1
    out.not_found[THEIRS] = (1, now - 1)
    out.prune()
    assert list(out.leases) == [(THEIRS, 2)]
    assert not out.plain
    assert not out.not_found


def test_a_shim_cannot_hide_a_live_connection_from_the_table(stand):
    """Neither by giving it up nor by calling another socket by its cookie."""
    shim = Shim(stand)
    record, _unused = shim.connect(80)
    shim.tell(wire.BEGIN, value=record.value, lport=41000)
    sock, hello, _unused = stand.peer.met()
    stand.peer.acknowledge(sock, hello[2])
    swapped, fds = shim.ask(wire.SWAP, value=record.value, error=1_000_000)
    shim.tell(wire.COMMITTED, cookie=swapped.cookie)
    shim.tell(wire.CANCEL, cookie=swapped.cookie, error=111)
    shim.connect(81, cookie=swapped.cookie, peer=wire.pack_addr("10.44.0.77"))
    shim.connect(80, cookie=swapped.cookie, wait_s=-1)
    row = stand.settled.table.rows[swapped.cookie]
    assert row.slim
    assert row.dport == 80
    socket.socket(fileno=fds[0]).close()
    sock.close()


def test_addresses_off_the_overlay_are_nobody_s_to_locate(stand):
    shim = Shim(stand)
    record, _unused = shim.connect(80, peer=wire.pack_addr("192.0.2.7"), cookie=77)
    assert record.kind == wire.PLAIN
    assert stand.sup.count("locate") == 0
    assert 77 not in stand.settled.table.rows


@pytest.mark.parametrize("where", ["data", "overlay"])
def test_a_worker_out_of_descriptors_does_not_spin(stand, where):
    """accept() fails while the listener stays readable: it is looked at now and then only."""
    app = stand.app()
    counters, kept = stand.settled.counters, stand.worker.inbound
    if where == "data":
        client, target, what = socket.socket(), stand.data_name, "data_accept_error"
    else:
        with inside(stand.netns):
            client = socket.socket()
        client.bind((PEER, 0))
        target, what = (VIP, app.port), "accept_exhausted"
    client.setblocking(False)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # no new descriptor for anybody
    try:
        client.connect_ex(target)
        until(lambda: counters[what], "accept fails")
        before = counters[what]
        time.sleep(0.5)
        tries = counters[what] - before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tries <= 0.5 / listeners.EXHAUSTED_S + 1
    until(lambda: kept.unproven if where == "data" else kept.held, "it is served afterwards")
    client.close()
