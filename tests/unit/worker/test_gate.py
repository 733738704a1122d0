# SPDX-License-Identifier: Apache-2.0
"""The policy in force at one endpoint: what it refuses, what it takes away.

Supervisor --- policy (pieces of slices.Slicer) ---> Worker.gate
Shim       --- CONNECT ---------------------------> refused by the list
Peer       --- hello, overlay --------------------> reset by the list
every connection that lives and is forbidden <----- SOCK_DESTROY; enforced ---> Supervisor
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import socket
import threading
import time
from typing import Any

import pytest

from slim_router import gate, policy, secure, sockdiag, wire, worker
from slim_router.slices import Slicer
from slim_router.sockets import cookie_of
from tests.unit.worker.stand import (
    OURS,
    PATIENCE,
    PEER,
    THEIRS,
    VIP,
    alive,
    inside,
    is_reset,
    read_exactly,
    until,
)
from tests.unit.worker.test_outbound import PORT, SPORT, cold, swap, warm

_revisions = itertools.count(1)
DENY_OUT = {"id": "out", "action": "deny", "sources": [VIP], "destinations": [PEER]}
DENY_IN = {"id": "in", "action": "deny", "sources": [PEER], "destinations": [VIP]}


def push(stand, *rules, default: str = "allow") -> int:
    """Send a list; its revision."""
    revision = next(_revisions)
    made = policy.parse(
        {"version": 1, "revision": revision, "default": default, "rules": list(rules)}
    )
    for piece in Slicer(made).pieces("default", OURS):
        stand.sup.link.send(piece)
    return revision


def enforced(stand, revision: int) -> list[dict[str, Any]]:
    """What the worker says was revoked, all of it; nothing may have gone wrong."""
    rows: list[dict[str, Any]] = []
    while True:
        message = stand.sup.get("enforced", revision=revision)
        rows += message["revoked"]
        if message["last"]:
            assert message["cause"] == ""
            return rows


def put(stand, *rules, default: str = "allow") -> list[dict[str, Any]]:
    return enforced(stand, push(stand, *rules, default=default))


def is_aborted(sock: socket.socket) -> bool:
    """Does every use of it say that it was taken away?"""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(4096):
            pass
    except ConnectionAbortedError:
        return True
    except OSError:
        return False
    return False


def bound_socket() -> socket.socket:
    """A socket of the endpoint's, in whose namespace the caller is: that has the peer's
    address too, which a connection to the peer would otherwise come from."""
    sock = socket.socket()
    sock.bind((VIP, 0))
    return sock


def overlay_is_reset(stand, port: int, **fields) -> bool:
    """Is a connection over the overlay reset, in connect() or behind it?"""
    try:
        sock = stand.peer.overlay(port, **fields)
    except ConnectionResetError:
        return True
    with sock:
        return is_reset(sock)


# --- going out ------------------------------------------------------------------------


def test_without_a_list_everything_is_allowed_and_one_reference_is_compared(stand):
    assert stand.worker.gate.egress is None
    assert stand.worker.gate.ingress is None
    assert put(stand) == []
    assert stand.worker.gate.egress is None, "an empty list that allows costs nothing"
    shim = stand.shim()
    cold(stand, shim)
    warm(stand, shim)


def test_connects_that_the_list_forbids_are_refused_cold_plain_and_late(stand):
    put(stand, {**DENY_OUT, "ports": [PORT]})
    shim = stand.shim()
    for fields in ({}, {"wait_s": 0.0}, {"family": 10}):
        record, fds = shim.connect(PORT, **fields)
        assert (record.kind, record.error) == (wire.REFUSED, errno.ECONNREFUSED)
        assert not fds
    stand.counted("refused_egress", 3)
    assert not stand.worker.outbound.attempts
    record, _unused = shim.connect(PORT + 1)
    assert record.kind == wire.COLD, "another port is nobody's business"


def test_the_endpoint_itself_and_what_is_off_the_overlay_are_not_judged(stand):
    put(stand, default="deny")
    shim = stand.shim()
    with inside(stand.netns):
        home = socket.create_server((VIP, 0))
        myself = socket.create_connection(home.getsockname(), timeout=PATIENCE)
    record, _unused = shim.connect(home.getsockname()[1], peer=OURS, cookie=cookie_of(myself))
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_OWN_ADDRESS)
    record, _unused = shim.connect(PORT, peer=wire.pack_addr("192.0.2.7"))
    assert (record.kind, record.error) == (wire.PLAIN, wire.R_UNKNOWN_PEER)
    app = stand.app(address="0.0.0.0")
    with inside(stand.netns):
        local = socket.create_connection(("127.0.0.1", app.port), timeout=PATIENCE)
    _record, kept = app.accept()
    own = stand.peer.overlay(app.port, source=VIP)
    record, accepted = app.accept()
    assert record.peer == OURS
    put(stand, {"id": "x", "action": "deny"}, default="deny")
    for sock in (own, local, myself):
        assert alive(sock), "nor are they when they live"
    for sock in (own, accepted, local, kept, myself, home):
        sock.close()


def test_a_lease_is_lost_with_its_permission_and_the_live_connection_too(stand):
    shim = stand.shim()
    first, first_there = cold(stand, shim)
    record, second, second_there, sport = warm(stand, shim)
    second.sendall(b"hello")
    second_there.sendall(b"you")
    assert read_exactly(second, 3) == b"you"
    assert read_exactly(second_there, 5) == b"hello"
    other, other_there = cold(stand, shim, port=PORT + 1, sport=SPORT + 1)
    rows = put(stand, {**DENY_OUT, "ports": [PORT]})
    for here, there in ((first, first_there), (second, second_there)):
        assert is_aborted(here)
        assert is_reset(there)
    assert alive(other)
    other.sendall(b"still")
    other_there.settimeout(PATIENCE)
    assert other_there.recv(24 + 16).endswith(b"still")
    assert {(row["src"], row["sport"], row["dst"], row["dport"]) for row in rows} == {
        (VIP, SPORT, PEER, PORT), (VIP, sport, PEER, PORT),
    }  # fmt: skip
    by_cookie = {row["cookie"]: row for row in rows}
    row = by_cookie[record.cookie]
    assert (row["endpoint"], row["direction"], row["path"]) == ("a1", "out", "slim")
    assert (row["hdst"], row["hdport"]) == stand.peer.host.getsockname()
    assert (row["rule"], row["state"]) == (0, "established")
    # (of TCP Fast Open's bytes the kernel counts the hello, and the SYN)
    assert (row["bytes_sent"], row["bytes_received"]) == (wire.HELLO_SIZE + 1 + 5, 3)
    assert set(stand.worker.outbound.leases) == {(THEIRS, PORT + 1)}
    assert record.cookie not in stand.settled.table.rows
    assert stand.worker.counters["revoked"] == 2
    assert put(stand) == []
    record, _unused = shim.connect(PORT)
    assert record.kind == wire.COLD, "allowed again, to be proved again"


def test_host_connections_are_revoked_by_name_and_by_search_where_a_name_is_wrong(
    stand, monkeypatch
):
    shim, hunts = stand.shim(), []
    real = sockdiag.hunt
    monkeypatch.setattr(sockdiag, "hunt", lambda *of: hunts.append(of) or real(*of))
    ends = [cold(stand, shim), warm(stand, shim)[1:3]]
    assert len(put(stand, DENY_OUT)) == 2
    assert all(is_aborted(here) and is_reset(there) for here, there in ends)
    assert not hunts
    put(stand)
    here, there = cold(stand, shim)
    known = stand.settled.table.name(cookie_of(here))
    assert known is not None
    stand.worker.table.set_name(cookie_of(here), ("127.0.0.1", 1), ("127.0.0.1", 2))
    assert len(put(stand, DENY_OUT)) == 1
    assert is_aborted(here)
    assert is_reset(there)
    assert hunts


def test_accepted_host_connections_have_names(stand):
    app = stand.app()
    _record, here, there = stand.peer.cold(app)
    ours, theirs = stand.data_name, there.getsockname()
    assert stand.settled.table.name(cookie_of(here)) == (
        wire.pack_addr(ours[0]), ours[1], wire.pack_addr(theirs[0]), theirs[1],
    )  # fmt: skip


def test_an_overlay_connection_is_revoked_and_a_false_cookie_revokes_nothing(stand):
    shim = stand.shim()
    with inside(stand.netns):
        server = socket.create_server((PEER, 0))
        port = server.getsockname()[1]
        mine, innocent = bound_socket(), bound_socket()
    stand.sup.auto["locate"] = lambda m: {
        "op": "located", "vip": m["vip"], "found": False, "reason": 3,
    }  # fmt: skip
    # A connection to elsewhere whose cookie the shim gives for one that is forbidden.
    with inside(stand.netns):
        elsewhere = socket.create_server((VIP, 0))
    innocent.connect(elsewhere.getsockname())
    for sock in (mine, innocent):
        record, _unused = shim.connect(port, cookie=cookie_of(sock))
        while record.kind == wire.COLD:  # the answer of locate comes with the first
            stand.sup.sync()
            record, _unused = shim.connect(port, cookie=cookie_of(sock))
        assert record.kind == wire.PLAIN
    mine.connect((PEER, port))
    accepted, _unused = server.accept()
    rows = put(stand, {**DENY_OUT, "ports": [port]})
    assert [(row["path"], row["dst"], row["dport"], row["why"]) for row in rows] == [
        ("overlay", PEER, port, "no-trunk")
    ]
    assert is_aborted(mine)
    assert is_reset(accepted)
    assert alive(innocent)
    for sock in (innocent, elsewhere, server):
        sock.close()


def test_what_is_under_way_when_the_list_comes_ends_wherever_it_is(stand):
    shim = stand.shim()
    with inside(stand.netns):
        server = socket.create_server((PEER, 0))
        port = server.getsockname()[1]
        app_sockets = [bound_socket() for _unused in range(3)]
    asked, began, swapping = (shim.connect(port)[0].value for _unused in range(3))
    hosts = []
    for number, sport in ((began, SPORT), (swapping, SPORT + 1)):
        shim.tell(wire.BEGIN, value=number, lport=sport)
        hosts.append(stand.peer.met()[0])
    seq = shim.tell(wire.SWAP, value=swapping, error=900_000)
    put(stand, {**DENY_OUT, "ports": [port]})
    record, fds = shim.hear()
    assert (record.kind, record.seq, fds) == (wire.KEEP, seq, [])
    for host in hosts:
        host.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert host.recv(1) == b"", "the prepared connection is gone"
    # The application goes on with what it was told before, over the overlay.
    for sock in app_sockets:
        sock.connect((PEER, port))
    shim.tell(wire.BEGIN, value=asked, lport=app_sockets[0].getsockname()[1])
    record, _unused = swap(shim, began)
    assert record.kind == wire.KEEP
    for sock in app_sockets:
        assert is_aborted(sock), "never a live one a second later"
    assert not stand.worker.counters["connect_cold"]
    server.close()


def test_an_attempt_that_the_list_overtook_is_remembered_until_it_begins(stand):
    shim = stand.shim()
    with inside(stand.netns):
        server = socket.create_server((PEER, 0))
        socks = [bound_socket() for _unused in range(2)]
    port = server.getsockname()[1]
    begins, swaps = (shim.connect(port)[0].value for _unused in socks)
    put(stand, {**DENY_OUT, "ports": [port]})
    for number, sock in zip((begins, swaps), socks, strict=True):
        # (a process that was stopped meanwhile, say)
        until(lambda: not stand.worker.gate._watching, "nobody looks any more")
        sock.connect((PEER, port))
        assert alive(sock)
        if number == begins:
            shim.tell(wire.BEGIN, value=number, lport=sock.getsockname()[1])
        else:
            record, _unused = swap(shim, number)
            assert record.kind == wire.KEEP
        assert is_aborted(sock)
    server.close()


def test_a_connect_whose_answer_the_list_overtook_is_found_when_it_appears(stand):
    shim = stand.shim()
    with inside(stand.netns):
        server = socket.create_server((PEER, 0))
        sock = bound_socket()
    port = server.getsockname()[1]
    stand.sup.auto["locate"] = lambda m: {
        "op": "located", "vip": m["vip"], "found": False, "reason": 3,
    }  # fmt: skip
    shim.connect(port)
    stand.sup.sync()
    record, _unused = shim.connect(port, cookie=cookie_of(sock))
    assert record.kind == wire.PLAIN
    assert put(stand, {**DENY_OUT, "ports": [port]}) == []
    sock.connect((PEER, port))
    began = time.monotonic()
    assert is_aborted(sock)
    assert time.monotonic() - began < 1.0
    server.close()


# --- coming in ------------------------------------------------------------------------


def test_what_the_list_forbids_is_reset_on_the_host_and_on_the_overlay(stand):
    app = stand.app()
    _record, accepted, sock = stand.peer.cold(app)  # admits the pair
    put(stand, {**DENY_IN, "ports": [app.port]})
    assert is_aborted(accepted)
    assert is_reset(sock)
    deliver = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 41000, app.port))
    prepare = stand.peer.dial(stand.peer.hello(wire.K_PREPARE, 41001, app.port))
    assert is_reset(deliver)
    assert is_reset(prepare)
    assert overlay_is_reset(stand, app.port)
    stand.counted("refused_ingress", 3)
    assert app.idle
    assert stand.sup.get("withdraw", port=app.port)["vips"] == [PEER]
    other = stand.app()
    stand.peer.cold(other)


def test_a_list_that_comes_before_accept_resets_what_waits(stand):
    app = stand.app(backlog=600)
    stand.peer.cold(app)
    waiting = [stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 30000 + n, app.port)) for n in range(400)]  # fmt: skip
    until(lambda: stand.worker.counters["accepted_warm"] == 400, "all have come")
    listener = next(iter(stand.worker.listeners.by_cookie.values()))
    assert listener.queue, "some wait with the worker, the others in the channel"
    rows = put(stand, {**DENY_IN, "ports": [app.port]})
    assert not listener.queue
    assert len(rows) >= 400
    for sock in waiting:
        assert is_reset(sock)
        sock.close()
    # What was in the channel can be accepted, and is dead.
    while not app.idle:
        _record, accepted = app.accept()
        assert is_aborted(accepted)
        accepted.close()


def test_held_and_prepared_connections_are_judged_when_the_list_comes(stand):
    app = stand.app()
    stand.sup.auto["query"] = lambda m: None
    over = stand.peer.overlay(app.port)
    until(lambda: stand.worker.inbound.held, "it is held")
    prepared, _nonce = stand.peer.prepare(43210, app.port)
    put(stand, {**DENY_IN, "ports": [app.port]})
    assert is_reset(over)
    assert is_reset(prepared)
    assert not stand.worker.inbound.held
    assert not stand.worker.inbound.prepared
    assert app.idle


def test_ipv6_and_its_mapped_kin(stand):
    app = stand.app(address="::")
    put(stand, {"id": "six", "action": "deny", "sources": ["fd44::2/128"]})
    four = stand.peer.overlay(app.port)  # to a socket of AF_INET6
    stand.sup.auto["query"] = lambda m: {"op": "answer", "id": m["id"], "probe": False}
    stand.sup.send(op="answer", id=stand.worker.inbound.query_id, probe=False)
    record, accepted = app.accept()
    assert record.peer == THEIRS
    assert overlay_is_reset(stand, app.port, source="fd44::2")
    rows = put(stand, {"id": "four", "action": "deny", "sources": [f"::ffff:{PEER}/128"]})
    assert [(row["path"], row["src"]) for row in rows] == [("overlay", PEER)]
    assert is_aborted(accepted)
    assert is_reset(four)


# --- the list itself ---------------------------------------------------------------------


def test_a_list_takes_effect_as_a_whole_and_connects_are_not_held_up(stand):
    shim = stand.shim()
    cold(stand, shim)
    many = [
        {"id": f"r{n}", "action": "allow", "destinations": [f"10.44.{n >> 8}.{n & 255}"],
         "ports": [n % 60000 + 1]}
        for n in range(4000)
    ]  # fmt: skip
    passes = []
    step = stand.worker.gate._step

    def counted() -> None:
        passes.append(time.monotonic())
        step()

    stand.worker.gate._step = counted
    revision = push(stand, *many, {**DENY_OUT, "ports": [9]}, {**DENY_IN, "ports": [9]})
    longest = 0.0
    while not stand.sup.count("enforced", revision=revision):
        began = time.monotonic()
        record, here, there, _unused = warm(stand, shim)
        longest = max(longest, time.monotonic() - began)
        here.close()
        there.close()
    assert enforced(stand, revision) == []
    assert len(passes) > 5, "others have their turn while it is compiled"
    assert longest < 0.5, f"{longest} s"
    record, _unused = shim.connect(9)
    assert record.kind != wire.COLD


def test_pieces_out_of_order_leave_the_old_list_in_force(stand):
    put(stand, DENY_OUT)
    made = policy.parse({"version": 1, "revision": 10**6, "default": "deny", "rules": []})
    piece = next(iter(Slicer(made).pieces("default", OURS)))
    stand.sup.link.send(piece.replace(b'"part":0', b'"part":3'))
    said = stand.sup.get("enforced", revision=10**6)
    assert "part 3" in said["cause"]
    assert stand.worker.gate.revision < 10**6
    record, _unused = stand.shim().connect(PORT)
    assert record.kind != wire.COLD
    stand.sup.send(op="policy", revision=10**6 + 1, same=True)
    assert stand.sup.get("enforced", revision=10**6 + 1)["revoked"] == []
    assert stand.worker.gate.revision == 10**6 + 1


def test_a_new_list_overtakes_one_that_is_still_compiled(stand, monkeypatch):
    monkeypatch.setattr(gate, "PASS_S", 0.0)
    many = [{"id": f"r{n}", "action": "deny", "destinations": [f"10.44.{n}.0/24"]} for n in range(200)]  # fmt: skip
    push(stand, *many)
    assert put(stand, {**DENY_OUT, "ports": [1]}) == []
    record, _unused = stand.shim().connect(PORT)
    assert record.kind == wire.COLD, "the later one allows it"


# --- secure mode, and failures ---------------------------------------------------------------


class Backend:
    """Notes what it is to revoke; revokes nothing itself."""

    mode = "kmod"

    def __init__(self, fails: int = 0) -> None:
        self.revoked: list[int] = []
        self.fails = fails

    def tag(self, fd: int, cookie: int) -> None:
        """Nothing to do."""

    def revoke(self, cookies) -> secure.Revoked:
        self.revoked += list(cookies)
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        return secure.Revoked(len(self.revoked))


@pytest.mark.parametrize("fails", [0, errno.EIO])
def test_secure_mode_revokes_host_sockets_by_its_backend_and_what_lives_on_by_the_kernel(
    stand, monkeypatch, fails
):
    backend = Backend(fails)
    monkeypatch.setattr(stand.worker, "may_serve", lambda _sock: True)
    shim = stand.shim()
    here, there = cold(stand, shim)
    stand.worker.guard(backend)
    revision = push(stand, DENY_OUT)
    said = stand.sup.get("enforced", revision=revision)
    assert ("kmod" in said["cause"]) == bool(fails)
    assert backend.revoked == [cookie_of(here)]
    assert len(said["revoked"]) == 1
    assert is_aborted(here)
    assert is_reset(there)


def test_a_kernel_that_cannot_abort_is_said_to_the_supervisor(stand, monkeypatch):
    here, _there = cold(stand, stand.shim())
    monkeypatch.setattr(sockdiag, "destroy", lambda *_unused: errno.EOPNOTSUPP)
    said = (push(stand, DENY_OUT), stand.sup.get("enforced"))[1]
    assert "CONFIG_INET_DIAG_DESTROY" in said["cause"]
    assert stand.worker.counters["revoke_failed"] == 1
    assert alive(here)
    assert len(said["revoked"]) == 1


# --- interleavings ---------------------------------------------------------------------------


def test_no_forbidden_connection_lives_a_second_after_any_interleaving(stand):
    """Seeded: connects, accepts and lists in any order, then a list and a second's patience."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    shim = stand.shim()
    app = stand.app(backlog=64)
    cold(stand, shim)
    outs: list[tuple[int, socket.socket]] = []
    ins: list[socket.socket] = []
    forbidden = False
    for _unused in range(60):
        act = dice.randrange(4)
        if act == 0:
            record, fds = shim.connect(PORT)
            if record.kind == wire.WARM:
                outs.append((PORT, socket.socket(fileno=fds[0])))
            elif not forbidden and record.kind == wire.COLD:
                shim.tell(wire.CANCEL, value=record.value)
        elif act == 1:
            with contextlib.suppress(OSError):
                hello = stand.peer.hello(wire.K_DELIVER, dice.randrange(1024, 60000), app.port)
                ins.append(stand.peer.dial(hello))
        elif act == 2:
            if not app.idle:
                app.accept()[1].close()
        else:
            forbidden = dice.random() < 0.5
            push(stand, *([DENY_OUT, DENY_IN] if forbidden else []))
    put(stand, DENY_OUT, DENY_IN)
    for _port, sock in outs:
        assert is_aborted(sock), f"seed {seed}"
    for sock in ins:
        assert is_reset(sock), f"seed {seed}"
        sock.close()


# --- figures -----------------------------------------------------------------------------------


def test_a_thousand_of_many_are_dead_in_a_moment(stand):
    """Not the bar itself (that is bench/revoke.py's), but its order of magnitude."""
    shim = stand.shim()
    pairs = [cold(stand, shim)]
    keep = [cold(stand, shim, port=PORT + 1, sport=SPORT + 1)]
    for number in range(600):
        port = PORT if number % 10 == 0 else PORT + 1
        _record, here, there, _unused = warm(stand, shim, port)
        (pairs if port == PORT else keep).append((here, there))
    began = time.monotonic()
    rows = put(stand, {**DENY_OUT, "ports": [PORT]})
    took = time.monotonic() - began
    assert len(rows) == len(pairs)
    assert all(is_aborted(here) and is_reset(there) for here, there in pairs)
    assert all(alive(here) and alive(there) for here, there in keep)
    assert took < 2.0, f"{took} s"
    for sock in itertools.chain(*pairs, *keep):
        sock.close()


def test_a_worker_that_is_promised_a_list_serves_nobody_before(stand):
    link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = {
        "op": "config", "name": "a2", "vip": VIP, "overlay": ["10.44.0.0/16"], "bounds": {},
        "policy": True,
    }  # fmt: skip
    with socket.create_server((stand.address, 0)) as data:
        netns = os.open(stand.netns, os.O_RDONLY)
        made: list[worker.Worker] = []

        def start() -> None:
            made.append(worker.Worker(theirs, config, data, netns))
            made[0].await_policy()

        thread = threading.Thread(target=start, daemon=True)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive(), "it waits"
        parsed = policy.parse({"version": 1, "revision": 4, "default": "deny", "rules": []})
        for piece in Slicer(parsed).pieces("default", OURS):
            link.send(piece)
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert made[0].gate.revision == 4
        assert made[0].gate.forbids_out(THEIRS, 80)
        assert made[0].gate.forbids_in(THEIRS, 80)
        for sock in made[0].diag:
            sock.close()
        made[0].loop.epoll.close()
        os.close(made[0].host_netns)
        os.close(netns)
    for sock in (link, theirs):
        sock.close()


def test_the_operator_names_connections_and_they_end(stand):
    shim = stand.shim()
    here, there = cold(stand, shim)
    record, other, other_there, _unused = warm(stand, shim)
    stand.sup.send(op="revoke", id=7, cookies=[cookie_of(here), 12345])
    said = stand.sup.get("revoked", id=7)
    assert (said["last"], said["cause"]) == (True, "")
    assert [(row["cookie"], row["rule"]) for row in said["revoked"]] == [(cookie_of(here), -1)]
    assert is_aborted(here)
    assert is_reset(there)
    assert alive(other)
    assert alive(other_there)
    stand.sup.send(op="revoke", id=8, cookies=[cookie_of(here)])
    assert stand.sup.get("revoked", id=8)["revoked"] == []
    assert record.cookie in stand.settled.table.rows
