# SPDX-License-Identifier: Apache-2.0
"""Live connections end when the filters of the overlay no longer permit their pair.

Peer --- cold connect (admits) ---> Worker (accepts) : no more proofs: they are revoked
Worker (connects) --- overlay connect, PREPARE, "renew" ---> Peer : though nobody connects
"""

from __future__ import annotations

import threading
import time

import pytest

from slim_router import wire
from tests.unit.worker.stand import Stand, alive, is_reset, read_exactly, until
from tests.unit.worker.test_outbound import cold, overlay_listener

LEASE_S, FILTERS_S = 0.4, 1.0


@pytest.fixture
def stand(namespaces):
    made = Stand(*namespaces, lease_s=LEASE_S, filters_s=FILTERS_S)
    made.sup.auto["query"] = lambda asked: {"op": "answer", "id": asked["id"], "probe": True}
    try:
        yield made
    finally:
        made.close()


def came(stand, app):
    """One cold connection from the peer: (accepted, the peer's end)."""
    over = stand.peer.overlay(app.port)
    sock = stand.peer.dial(stand.peer.hello(wire.K_PREPARE, over.getsockname()[1], app.port))
    read_exactly(sock, wire.ACK_SIZE)
    sock.sendall(stand.peer.commit(stand.peer.nonce))
    _record, accepted = app.accept()
    over.close()
    return accepted, sock


def renew(stand, app) -> None:
    over = stand.peer.overlay(app.port)
    sock = stand.peer.dial(stand.peer.hello(wire.K_PREPARE, over.getsockname()[1], app.port))
    read_exactly(sock, wire.ACK_SIZE)
    sock.sendall(stand.peer.commit(stand.peer.nonce, wire.C_RENEW))
    assert is_reset(over)
    sock.close()
    over.close()


def test_what_is_not_proven_any_more_ends_and_what_is_lives(stand):
    left, kept = stand.app(), stand.app()
    doomed, there = came(stand, left)
    dear, dear_there = came(stand, kept)
    stop = threading.Event()

    def go_on() -> None:
        while not stop.wait(LEASE_S / 4):
            renew(stand, kept)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        began = time.monotonic()
        assert is_reset(there)
        assert time.monotonic() - began > FILTERS_S / 2
        stand.counted("ended_by_filters", 1)
        assert alive(dear)
        assert alive(dear_there)
    finally:
        stop.set()
        thread.join()
    for sock in (doomed, dear, dear_there):
        sock.close()


def test_nothing_ends_where_nobody_listens_any_more(stand):
    app = stand.app()
    accepted, there = came(stand, app)
    app.channel.close()
    until(lambda: not stand.worker.listeners.by_port, "the listener is gone")
    looks = []
    look = stand.worker.filters._judge
    stand.worker.filters._judge = lambda: (look(), looks.append(time.monotonic()))
    until(
        lambda: looks and looks[-1] > stand.worker.filters._began + 3 * FILTERS_S,
        "it has been judged often enough",
    )
    assert alive(accepted)
    assert alive(there)
    accepted.close()


def test_live_connections_are_proved_again_though_nobody_connects(stand):
    shim = stand.shim()
    with overlay_listener(stand) as (listener, port):
        here, there = cold(stand, shim, port=port, lease_ms=int(1000 * LEASE_S))
        for _unused in range(3):
            sock, hello, _raw = stand.peer.met()
            assert hello[0] == wire.K_PREPARE
            over, (_address, sport) = listener.accept()
            assert sport == hello[5]
            stand.peer.acknowledge(sock, hello[2], lease_ms=int(1000 * LEASE_S))
            raw = read_exactly(sock, wire.COMMIT_SIZE)
            assert wire.parse_commit(stand.peer.mac, raw, hello[2]) == wire.C_RENEW
            over.close()
            sock.close()
        here.close()
        there.close()
