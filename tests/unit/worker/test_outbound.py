# SPDX-License-Identifier: Apache-2.0
"""The connecting half: warm under a lease, cold beside the overlay, plain with a reason.

Shim --- CONNECT, BEGIN, SWAP ---> Outbound --- hello ---> Peer.host (127.x)
                                      +--- renewal ---> listener of PEER in the namespace
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time

import pytest

from slim_router import outbound, wire, worker
from tests.unit.worker.stand import (
    OURS,
    PEER,
    RESET,
    THEIRS,
    VIP,
    Shim,
    alive,
    inside,
    is_reset,
    read_exactly,
    until,
)

PORT = 8080
SPORT = 45678


def cookie_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(1, 57, 8), "little")


def begin(stand, shim, *, port: int = PORT, sport: int = SPORT, **fields):
    """A cold connect up to the PREPARE at the peer: (attempt, host connection there, nonce)."""
    record, _unused = shim.connect(port, **fields)
    assert record.kind == wire.COLD, record
    shim.tell(wire.BEGIN, value=record.value, lport=sport)
    sock, (kind, key_id, nonce, src, dst, got_sport, dport), _unused = stand.peer.met()
    assert (kind, key_id) == (wire.K_PREPARE, stand.peer.key_id)
    assert (src, got_sport, dst, dport) == (OURS, sport, THEIRS, port)
    return record.value, sock, nonce


def swap(shim, attempt, bound_us: int = 1_000_000):
    return shim.ask(wire.SWAP, value=attempt, error=bound_us)


def cold(stand, shim, *, lease_ms: int = 30000, **fields):
    """A whole cold connect: (our end, the peer's end)."""
    attempt, there, nonce = begin(stand, shim, **fields)
    stand.peer.acknowledge(there, nonce, lease_ms=lease_ms)
    record, fds = swap(shim, attempt)
    assert record.kind == wire.SWAPPED, record
    here = socket.socket(fileno=fds[0])
    here.sendall(record.commit)
    raw = read_exactly(there, wire.COMMIT_SIZE)
    assert wire.parse_commit(stand.peer.mac, raw, nonce) == wire.C_DELIVER
    shim.tell(wire.COMMITTED, cookie=record.cookie)
    until(lambda: (THEIRS, record.pport) in stand.worker.outbound.leases, "the lease begins")
    return here, there


def warm(stand, shim, port: int = PORT, **fields):
    """A warm connect: (record, our end, the peer's end, the virtual source port)."""
    record, fds = shim.connect(port, **fields)
    assert record.kind == wire.WARM, record
    here = socket.socket(fileno=fds[0])
    there, (kind, _unused, _unused, src, dst, sport, dport), _unused = stand.peer.met()
    assert (kind, src, dst, dport) == (wire.K_DELIVER, OURS, THEIRS, port)
    assert (record.local, record.lport, record.peer, record.pport) == (OURS, sport, THEIRS, port)
    assert record.cookie == cookie_of(here)
    return record, here, there, sport


@pytest.fixture
def shim(stand) -> Shim:
    return stand.shim()


# --- cold ---------------------------------------------------------------------------


def test_cold_where_the_peer_is_ready_before_the_swap(stand, shim):
    attempt, there, nonce = begin(stand, shim)
    stand.peer.acknowledge(there, nonce)
    until(lambda: stand.worker.outbound.attempts[attempt].ready, "the ACK is seen")
    record, fds = swap(shim, attempt)
    assert record.kind == wire.SWAPPED
    assert (record.local, record.lport, record.peer, record.pport) == (OURS, SPORT, THEIRS, PORT)
    here = socket.socket(fileno=fds[0])
    assert record.cookie == cookie_of(here)
    assert wire.parse_commit(stand.peer.mac, record.commit, nonce) == wire.C_DELIVER
    here.sendall(b"ping")
    assert read_exactly(there, 4) == b"ping"
    stand.counted("connect_cold", 1)
    assert not stand.settled.outbound.attempts
    # The worker keeps no copy.
    here.close()
    assert read_exactly(there, 1) == b""


def test_cold_where_the_swap_is_asked_before_the_peer_is_ready(stand, shim):
    attempt, there, nonce = begin(stand, shim)
    seq = shim.tell(wire.SWAP, value=attempt, error=5_000_000)
    until(lambda: stand.worker.outbound.attempts[attempt].swap_shim, "SWAP is seen")
    for byte in wire.ack(stand.peer.mac, 0, 1000, nonce):
        there.sendall(bytes((byte,)))
    record, fds = shim.hear()
    assert (record.kind, record.seq) == (wire.SWAPPED, seq)
    for fd in fds:
        os.close(fd)


def test_a_swap_that_is_not_ready_in_time_keeps_the_overlay_within_its_bound(stand, shim):
    attempt, there, _nonce = begin(stand, shim)
    began = time.monotonic()
    record, fds = swap(shim, attempt, 50_000)
    assert 0.045 < time.monotonic() - began < 5
    assert (record.kind, record.error, fds) == (wire.KEEP, wire.R_NOT_READY, [])
    assert read_exactly(there, 1) == b"", "the peer learns that there will be no COMMIT"
    stand.counted("connect_overlay_not_ready_in_time", 1)
    until(lambda: not stand.worker.outbound.attempts, "it is gone")


@pytest.mark.parametrize("status", [wire.R_NOT_LISTENING, wire.R_LIMIT, wire.R_NOT_READY, 200])
def test_a_peer_that_refuses_keeps_the_overlay_with_its_reason(stand, shim, status):
    attempt, there, nonce = begin(stand, shim)
    stand.peer.acknowledge(there, nonce, status=status)
    record, _unused = swap(shim, attempt)
    reason = status if status in wire.REASONS else wire.R_REFUSED
    assert (record.kind, record.error) == (wire.KEEP, reason)
    # "Does not listen through Slim" is believed for a moment, and for that port only.
    record, _unused = shim.connect(PORT)
    if status == wire.R_NOT_LISTENING:
        assert (record.kind, record.error) == (wire.PLAIN, wire.R_NOT_LISTENING)
        assert shim.connect(PORT + 1)[0].kind == wire.COLD
        until(lambda: shim.connect(PORT)[0].kind == wire.COLD, "it is asked again", 5)
    else:
        assert record.kind == wire.COLD


def test_an_ack_with_any_bit_flipped_keeps_the_overlay(stand, shim):
    for bit in range(wire.ACK_SIZE * 8):
        attempt, there, nonce = begin(stand, shim)
        raw = bytearray(wire.ack(stand.peer.mac, 0, 30000, nonce))
        raw[bit // 8] ^= 1 << bit % 8
        there.sendall(bytes(raw))
        record, _unused = swap(shim, attempt)
        assert (record.kind, record.error) == (wire.KEEP, wire.R_REFUSED), f"bit {bit}"
        there.close()


@pytest.mark.parametrize("how", ["close", "reset", "late", "cut"])
def test_a_peer_that_goes_away_keeps_the_overlay(stand, shim, how):
    attempt, there, nonce = begin(stand, shim)
    if how == "late":
        stand.peer.acknowledge(there, nonce)
        until(lambda: stand.worker.outbound.attempts[attempt].ready, "the ACK is seen")
    if how == "cut":
        there.sendall(wire.ack(stand.peer.mac, 0, 1, nonce)[:39])
    if how == "reset":
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    there.close()
    until(lambda: stand.worker.outbound.attempts[attempt].failed, "its end is seen")
    record, _unused = swap(shim, attempt)
    assert record.kind == wire.KEEP
    assert record.error in (wire.R_REFUSED, wire.R_HOST_FAILED)


def test_a_data_port_that_is_closed_keeps_the_overlay(stand, shim):
    stand.peer.host.getsockname()
    port = stand.peer.host.getsockname()[1]
    stand.peer.host.close()
    located = {
        "op": "located", "vip": PEER, "found": True, "reason": 0, "address": stand.address,
        "port": port, "key_id": 1, "key": stand.peer.key.hex(),
    }  # fmt: skip
    stand.sup.auto["locate"] = lambda _: located
    record, _unused = shim.connect(PORT)
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    record, _unused = swap(shim, record.value)
    assert (record.kind, record.error) == (wire.KEEP, wire.R_HOST_FAILED)


def test_begin_may_come_before_the_location_and_the_location_before_begin(stand, shim):
    stand.sup.auto.pop("locate")
    record, _unused = shim.connect(PORT)
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    asked = stand.sup.get("locate", vip=PEER)
    stand.sup.send(**stand.peer.answer_locate(asked))
    there, hello, _unused = stand.peer.met()
    assert hello[5] == SPORT
    there.close()
    assert not stand.sup.count("locate"), "it is asked once, and then known"
    _unused, there, _unused = begin(stand, shim, sport=SPORT + 1)
    assert not stand.sup.count("locate")


def test_one_question_serves_all_who_wait_for_it(stand, shim):
    stand.sup.auto.pop("locate")
    records = [shim.connect(PORT)[0] for _unused in range(5)]
    for index, record in enumerate(records):
        shim.tell(wire.BEGIN, value=record.value, lport=SPORT + index)
    asked = stand.sup.get("locate")
    stand.sup.sync()
    assert not stand.sup.count("locate")
    stand.sup.send(**stand.peer.answer_locate(asked))
    nonces = set()
    for _unused in records:
        _unused, hello, _unused = stand.peer.met()
        nonces.add(hello[2])
    assert len(nonces) == 5


def test_a_cancelled_attempt_is_gone_and_its_peer_hears_of_it(stand, shim):
    attempt, there, _unused = begin(stand, shim)
    shim.tell(wire.CANCEL, value=attempt)
    assert read_exactly(there, 1) == b""
    until(lambda: not stand.worker.outbound.attempts, "it is gone")
    record, _unused = swap(shim, attempt)
    assert (record.kind, record.error) == (wire.KEEP, wire.R_NOT_READY)
    shim.tell(wire.CANCEL, value=attempt)
    shim.tell(wire.CANCEL, value=1 << 63)
    assert shim.ask(wire.SYNC)[0].kind == wire.SYNCED


def test_a_shim_that_ends_takes_its_attempts_along(stand, shim):
    attempt, there, nonce = begin(stand, shim)
    waiting, other, _unused = begin(stand, shim, sport=SPORT + 1)
    shim.tell(wire.SWAP, value=waiting, error=1_000_000)
    stand.peer.acknowledge(there, nonce)
    until(lambda: stand.worker.outbound.attempts[attempt].ready, "the ACK is seen")
    shim.sock.close()
    for sock in (there, other):
        assert read_exactly(sock, 1) == b""
    until(lambda: not stand.worker.outbound.attempts, "they are gone")


def test_a_swap_twice_or_of_nobodys_attempt_is_answered_keep(stand, shim):
    record, _unused = swap(shim, 12345)
    assert (record.kind, record.error) == (wire.KEEP, wire.R_NOT_READY)
    attempt, there, nonce = begin(stand, shim)
    first = shim.tell(wire.SWAP, value=attempt, error=1_000_000)
    second = shim.tell(wire.SWAP, value=attempt, error=1_000_000)
    record, _unused = shim.hear()
    assert (record.kind, record.seq) == (wire.KEEP, second)
    stand.peer.acknowledge(there, nonce)
    record, fds = shim.hear()
    assert (record.kind, record.seq) == (wire.SWAPPED, first)
    os.close(fds[0])


def test_attempts_of_an_endpoint_are_bounded(stand, shim, monkeypatch):
    monkeypatch.setattr(outbound, "ATTEMPTS", 3)
    attempts = [shim.connect(PORT)[0] for _unused in range(3)]
    assert all(record.kind == wire.COLD for record in attempts)
    record, _unused = shim.connect(PORT)
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_LIMIT)
    shim.tell(wire.CANCEL, value=attempts[0].value)
    assert shim.connect(PORT)[0].kind == wire.COLD


def test_an_attempt_that_nobody_asks_about_ends_by_itself(stand, shim, monkeypatch):
    monkeypatch.setattr(outbound, "LINGER_S", 0.2)
    _unused, there, _unused = begin(stand, shim)
    assert read_exactly(there, 1) == b""
    until(lambda: not stand.worker.outbound.attempts, "it is gone")


def test_an_offer_that_has_grown_old_is_prepared_anew_when_the_overlay_is_through(
    stand, shim, monkeypatch
):
    monkeypatch.setattr(outbound, "OFFER_S", 0.1)
    attempt, there, nonce = begin(stand, shim)
    stand.peer.acknowledge(there, nonce)
    assert read_exactly(there, 1) == b"", "the old offer is withdrawn"
    until(lambda: stand.worker.outbound.attempts[attempt].expired, "it is known to be old")
    monkeypatch.setattr(outbound, "OFFER_S", 10.0)
    shim.tell(wire.SWAP, value=attempt, error=5_000_000)
    there, (kind, _unused, second, *_unused), _unused = stand.peer.met()
    assert kind == wire.K_PREPARE
    assert second > nonce
    stand.peer.acknowledge(there, second)
    record, fds = shim.hear()
    assert record.kind == wire.SWAPPED
    assert wire.parse_commit(stand.peer.mac, record.commit, second) == wire.C_DELIVER
    os.close(fds[0])


# --- warm ---------------------------------------------------------------------------


def test_a_lease_begins_when_the_shim_has_written_commit_and_not_before(stand, shim):
    attempt, there, nonce = begin(stand, shim)
    stand.peer.acknowledge(there, nonce)
    offered, fds = swap(shim, attempt)
    assert shim.connect(PORT)[0].kind == wire.COLD
    assert not stand.settled.outbound.leases
    shim.tell(wire.COMMITTED, cookie=offered.cookie ^ 1)  # nobody's
    assert shim.connect(PORT)[0].kind == wire.COLD
    shim.tell(wire.COMMITTED, cookie=offered.cookie)
    warm(stand, shim)
    assert shim.connect(PORT + 1)[0].kind == wire.COLD, "a lease is for one port"
    os.close(fds[0])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_swap_that_the_shim_does_not_take_gives_no_lease(stand, shim, how):
    other = stand.shim()
    attempt, there, nonce = begin(stand, shim)
    stand.peer.acknowledge(there, nonce)
    record, fds = swap(shim, attempt)
    os.close(fds[0])
    if how == "cancel":
        shim.tell(wire.CANCEL, cookie=record.cookie, error=104)
    else:
        shim.sock.close()
    until(lambda: not stand.worker.outbound.offered, "the offer is void")
    other.tell(wire.COMMITTED, cookie=record.cookie)
    assert other.connect(PORT)[0].kind == wire.COLD


def test_warm_connections_carry_data_and_ask_nobody(stand, shim):
    cold(stand, shim)
    for number in range(20):
        _unused, here, there, _unused = warm(stand, shim)
        here.sendall(b"ping")
        assert read_exactly(there, 4) == b"ping"
        there.sendall(b"pong")
        assert read_exactly(here, 4) == b"pong"
        here.close()
        assert read_exactly(there, 1) == b"", f"connection {number} has one holder"
    stand.counted("connect_warm", 20)
    assert not stand.settled.outbound.attempts


def test_nonces_of_a_pair_only_grow(stand, shim):
    cold(stand, shim)
    nonces = []
    for index in range(10):
        if index % 2:
            _unused, _unused, nonce = begin(stand, shim, port=PORT + 1, sport=SPORT + index)
            nonces.append(nonce)
        else:
            record, fds = shim.connect(PORT)
            assert record.kind == wire.WARM
            os.close(fds[0])
            nonces.append(stand.peer.met()[1][2])
    assert nonces == sorted(set(nonces))


@pytest.mark.parametrize("flags", [0, wire.F_NONBLOCK])
def test_a_socket_blocks_if_the_applications_does(stand, shim, flags):
    here, _unused = cold(stand, shim, flags=flags)
    _unused, other, _unused, _unused = warm(stand, shim, flags=flags)
    for sock in (here, other):
        assert bool(fcntl.fcntl(sock, fcntl.F_GETFL) & os.O_NONBLOCK) == bool(flags)


def test_a_socket_is_of_the_applications_family(stand, shim):
    here, _unused = cold(stand, shim, family=10)
    record, other, _unused, _unused = warm(stand, shim, family=10)
    assert record.family == 10
    for sock in (here, other):
        assert sock.family == socket.AF_INET6
        assert sock.getpeername()[0] == f"::ffff:{stand.address}"
    assert warm(stand, shim, family=2)[1].family == socket.AF_INET


def test_virtual_source_ports_are_unique_for_a_destination_while_connections_live(stand, shim):
    stand.worker.outbound.low, stand.worker.outbound.high = 40000, 40019
    ends = {40007: cold(stand, shim, sport=40007)}
    for _unused in range(19):
        record, here, there, sport = warm(stand, shim)
        assert 40000 <= sport <= 40019
        assert sport not in ends
        ends[sport] = (here, there)
    record, _unused = shim.connect(PORT)
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_LIMIT), "the overlay serves"
    # Another destination has ports of its own.
    other = cold(stand, shim, port=PORT + 1)
    for _unused in range(5):
        warm(stand, shim, PORT + 1)
    assert all(map(alive, other))
    for sock in ends[40010]:
        sock.close()
    del ends[40010]
    stand.worker.loop.next_pass(stand.worker.table.reap)
    stand.sup.sync()
    until(lambda: (THEIRS, PORT, 40010) not in stand.worker.table.names, "its name is free")
    assert warm(stand, shim)[3] == 40010


def test_a_port_that_the_application_has_bound_stays_its_port(stand, shim):
    cold(stand, shim)
    record, _unused, _unused, sport = warm(stand, shim, flags=wire.F_BOUND, lport=55555)
    assert sport == 55555
    # A hostile one binds nothing: no hello with port 0 leaves us.
    record, _unused = shim.connect(PORT, flags=wire.F_BOUND, lport=0)
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_LIMIT)


def test_a_lease_ends_with_its_time_with_its_withdrawal_and_with_its_peers_place(stand, shim):
    def expire():
        stand.sup.sync()  # what follows a reply is done
        stand.worker.outbound.leases[(THEIRS, PORT)].until = time.monotonic() - 0.001

    for end in (
        expire,
        lambda: stand.sup.send(op="withdraw", vip=PEER, port=PORT),
        lambda: stand.sup.send(op="unlocate", vips=[PEER]),
        lambda: stand.sup.send(op="unlocate", vips=None),
        lambda: stand.sup.send(op="located", vip=PEER, found=False, reason=wire.R_NO_TRUNK),
    ):
        cold(stand, shim)
        warm(stand, shim)
        stand.sup.send(op="withdraw", vip=PEER, port=PORT + 1)  # another port
        stand.sup.send(op="unlocate", vips=["10.44.0.9"])  # another peer
        stand.sup.sync()
        warm(stand, shim)
        end()
        stand.sup.sync()
        record, _unused = shim.connect(PORT)
        assert record.kind in (wire.COLD, wire.PLAIN)
        assert not stand.settled.outbound.leases
        stand.sup.send(op="unlocate", vips=[PEER])
        stand.sup.sync()


def test_a_warm_connection_that_fails_ends_the_lease(stand, shim):
    cold(stand, shim)
    record, *_unused = warm(stand, shim)
    shim.tell(wire.CANCEL, cookie=record.cookie + 1, error=110)
    warm(stand, shim)
    shim.tell(wire.CANCEL, cookie=record.cookie, error=110)
    assert shim.connect(PORT)[0].kind == wire.COLD
    stand.counted("connect_warm_failed", 1)


def test_an_address_that_cannot_be_reached_is_plain_and_ends_the_lease(stand, shim):
    cold(stand, shim)
    stand.worker.outbound.leases[(THEIRS, PORT)].location.address = "255.255.255.255"
    record, fds = shim.connect(PORT)
    assert (record.kind, record.error, fds) == (wire.PLAIN, wire.R_HOST_FAILED, [])
    stand.counted("connect_host_failed", 1)
    assert shim.connect(PORT)[0].kind == wire.COLD


def test_the_supervisor_hears_whose_leases_are_in_use(stand, shim, monkeypatch):
    cold(stand, shim)
    cold(stand, shim, port=PORT + 1)
    for _unused in range(worker.USING_LOOKS - 1):
        stand.worker.loop.next_pass(stand.worker._look)
        stand.sup.sync()
    assert stand.sup.count("using") == 0, "not at every look"
    stand.worker.loop.next_pass(stand.worker._look)
    stand.sup.sync()
    assert stand.sup.get("using")["vips"] == [PEER], "each peer once"
    for lease in stand.worker.outbound.leases.values():
        lease.until = time.monotonic() - 1
    for _unused in range(worker.USING_LOOKS):
        stand.worker.loop.next_pass(stand.worker._look)
        stand.sup.sync()
    assert stand.sup.count("using") == 0, "leases that have run out are not in use"


# --- plain --------------------------------------------------------------------------


def test_our_own_address_is_plain(stand, shim):
    record, _unused = shim.connect(PORT, peer=OURS)
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_OWN_ADDRESS)
    assert not stand.sup.count("locate")


@pytest.mark.parametrize("reason", [wire.R_UNKNOWN_PEER, wire.R_NO_TRUNK, wire.R_NO_ROUTER])
def test_a_peer_that_is_not_found_is_plain_for_a_while(stand, shim, reason, monkeypatch):
    monkeypatch.setattr(outbound, "NOT_FOUND_S", 1.0)
    stand.sup.auto["locate"] = lambda asked: {
        "op": "located", "vip": asked["vip"], "found": False, "reason": reason,
    }  # fmt: skip
    record, _unused = shim.connect(PORT)
    assert record.kind == wire.COLD, "the first one does not wait for the answer"
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    record, _unused = swap(shim, record.value)
    assert (record.kind, record.error) == (wire.KEEP, reason)
    record, _unused = shim.connect(PORT + 1)
    assert (record.kind, record.error) == (wire.PLAIN, reason)
    assert stand.sup.count("locate") == 1
    until(lambda: shim.connect(PORT)[0].kind == wire.COLD, "it is asked again", 5)
    stand.sup.get("locate")
    stand.sup.get("locate")
    # News of the supervisor count at once.
    stand.sup.send(**stand.peer.answer_locate({"vip": PEER}))
    stand.sup.sync()
    begin(stand, shim)


def test_a_shim_that_has_given_up_gets_no_connection(stand, shim):
    cold(stand, shim)
    for wait_s in (-0.5, 0.001):
        record, _unused = shim.connect(PORT, wait_s=wait_s)
        assert (record.kind, record.error) == (wire.PLAIN, wire.R_NOT_READY)
    # A time namespace of its own: its clock says nothing.
    for wait_s in (-100, 100_000):
        warm(stand, shim, wait_s=wait_s)


# --- whose probe is it? ---------------------------------------------------------------


def ask(stand, sport: int, dport: int = PORT, number: int = 7) -> bool:
    stand.sup.send(op="query", id=number, vip=VIP, sport=sport, dst=PEER, dport=dport)
    return stand.sup.get("answer", id=number)["probe"]


def test_a_query_is_answered_by_the_attempts_under_way(stand, shim):
    attempt, there, nonce = begin(stand, shim)
    assert ask(stand, SPORT) is True
    assert ask(stand, SPORT + 1) is False
    assert ask(stand, SPORT, PORT + 1) is False
    assert ask(stand, 0) is False
    stand.peer.acknowledge(there, nonce, status=wire.R_LIMIT)
    until(lambda: stand.worker.outbound.attempts[attempt].failed, "the refusal is seen")
    assert ask(stand, SPORT) is False, "an attempt that failed is no probe"


def test_a_query_waits_a_moment_for_an_attempt_without_a_port(stand, shim):
    record, _unused = shim.connect(PORT)
    assert ask(stand, SPORT) is False, "but not for ever"
    stand.sup.send(op="query", id=8, vip=VIP, sport=SPORT, dst=PEER, dport=PORT)
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    # Usually true; a machine that slept between the two lines may say false.
    stand.sup.get("answer", id=8)
    assert ask(stand, SPORT) is True


# --- renewal of admission ---------------------------------------------------------------


@contextlib.contextmanager
def overlay_listener(stand, backlog: int = 16):
    """The peer's application, as the overlay shows it."""
    with inside(stand.netns):
        listener = socket.socket()
    listener.settimeout(10)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((PEER, 0))
    listener.listen(backlog)
    with listener:
        yield listener, listener.getsockname()[1]


def age(stand, port: int) -> object:
    """More than half of the lease is over."""
    stand.sup.sync()  # what follows a reply is done
    lease = stand.worker.outbound.leases[(THEIRS, port)]
    lease.until = time.monotonic() + lease.period * 0.4
    return lease


def test_a_lease_in_use_is_renewed_by_proving_the_admission_again(stand, shim):
    with overlay_listener(stand) as (listener, port):
        cold(stand, shim, port=port)
        warm(stand, shim, port)
        assert not stand.settled.outbound.attempts, "a fresh lease needs no renewal"
        lease = age(stand, port)
        record, _unused = shim.connect(port)
        assert record.kind == wire.WARM, "nobody waits for a renewal"
        shim.connect(port)  # one at a time
        met = [stand.peer.met() for _unused in range(3)]
        ((there, hello, _unused),) = [m for m in met if m[1][0] == wire.K_PREPARE]
        over, (_unused, sport) = listener.accept()
        assert sport == hello[5], "both halves are of one virtual connection"
        stand.peer.acknowledge(there, hello[2], lease_ms=20000)
        raw = read_exactly(there, wire.COMMIT_SIZE)
        assert wire.parse_commit(stand.peer.mac, raw, hello[2]) == wire.C_RENEW
        assert read_exactly(there, 1) == b""
        assert is_reset(over)
        until(lambda: not lease.renewing, "it is renewed")
        assert 15 < lease.until - time.monotonic() <= 20
        until(lambda: not stand.worker.outbound.attempts, "it is over")
        warm(stand, shim, port)


def test_a_renewal_that_the_overlay_refuses_ends_the_lease(stand, shim):
    with overlay_listener(stand) as (_unused, port):
        pass
    cold(stand, shim, port=port)
    age(stand, port)
    shim.connect(port)
    until(lambda: not stand.worker.outbound.leases, "the lease is gone")
    stand.counted("admission_refused", 1)
    assert shim.connect(port)[0].kind == wire.COLD
    assert not [a for a in stand.worker.outbound.attempts.values() if a.overlay]


@pytest.mark.parametrize("how", ["status", "close"])
def test_a_renewal_that_the_peer_refuses_ends_the_lease(stand, shim, how):
    with overlay_listener(stand) as (_unused, port):
        cold(stand, shim, port=port)
        age(stand, port)
        shim.connect(port)
        met = [stand.peer.met(), stand.peer.met()]
        ((there, hello, _unused),) = [m for m in met if m[1][0] == wire.K_PREPARE]
        if how == "status":
            stand.peer.acknowledge(there, hello[2], status=wire.R_NOT_LISTENING)
        else:
            there.close()
        until(lambda: not stand.worker.outbound.leases, "the lease is gone")
        stand.counted("admission_refused", 1)


def test_a_renewal_that_nobody_answers_lets_the_lease_run_out(stand, shim):
    with overlay_listener(stand, 0) as (_unused, port), contextlib.ExitStack() as stack:
        # A full backlog drops SYNs: silence, not refusal.
        for _unused in range(3):
            with inside(stand.netns):
                filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((PEER, port))
        cold(stand, shim, port=port, lease_ms=800)
        lease = age(stand, port)
        shim.connect(port)
        stand.counted("admission_silent", 1)
        assert stand.worker.counters["admission_refused"] == 0
        assert not lease.renewing
        assert not [a for a in stand.worker.outbound.attempts.values() if a.overlay]
        assert shim.connect(port)[0].kind == wire.COLD


def test_a_live_connection_does_not_notice_the_end_of_its_lease(stand, shim):
    here, there = cold(stand, shim)
    _unused, other, far, _unused = warm(stand, shim)
    stand.sup.send(op="unlocate", vips=None)
    stand.sup.send(op="located", vip=PEER, found=False, reason=wire.R_NO_TRUNK)
    stand.sup.sync()
    for a, b in ((here, there), (other, far)):
        assert alive(a)
        a.sendall(b"live")
        assert read_exactly(b, 4) == b"live"
