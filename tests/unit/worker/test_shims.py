# SPDX-License-Identifier: Apache-2.0
"""What a container may send its worker: everything is looked at, nothing is believed.

Shim (the test: well-behaved or hostile) ==== records, descriptors ====> shims.Shim
App ==== accept channel ====> listeners.Listener
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import time
from pathlib import Path

import pytest

from slim_router import listeners, sockets, wire, worker
from tests.unit.worker.stand import (
    OURS,
    THEIRS,
    App,
    Record,
    Shim,
    alive,
    inside,
    is_reset,
    read_exactly,
    receive,
    send,
    until,
)


@pytest.fixture
def shim(stand) -> Shim:
    return stand.shim()


@pytest.fixture
def good(stand):
    """A neighbour that must not notice anything."""
    neighbour = stand.shim()
    app = stand.app(neighbour)
    yield neighbour
    assert neighbour.ask(wire.SYNC)[0].kind == wire.SYNCED
    record, fds = neighbour.ask(wire.WHO, cookie=app.cookie)
    assert (record.kind, record.lport) == (wire.NAMES, app.port)
    for fd in fds:
        os.close(fd)
    _unused, accepted, ours = stand.peer.cold(app)
    ours.sendall(b"ping")
    assert read_exactly(accepted, 4) == b"ping"


def descriptors() -> int:
    """How many this process has, its worker's thread included."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settle(stand) -> int:
    stand.sup.sync()
    return descriptors()


# --- records --------------------------------------------------------------------------


def test_welcome_says_who_we_are_what_is_overlay_and_how_long_to_wait(stand):
    made = stand.shim(greet=False)
    data, _unused = made.ask_raw(wire.message(wire.HELLO, 7, value=9))
    record = Record(*wire.MSG.unpack_from(data))
    assert (record.kind, record.seq, record.local) == (wire.WELCOME, 7, OURS)
    assert (record.value & 0xFFFFFFFF, record.value >> 32, record.error) == (5000, 10000, 10000)
    rest = data[wire.MSG_SIZE :]
    prefixes = list(wire.PREFIX.iter_unpack(rest))
    assert len(prefixes) == record.count
    assert [(wire.unpack_addr(addr), bits) for addr, bits in prefixes] == [
        ("10.44.0.0", 112), ("fd44::", 64),
    ]  # fmt: skip


@pytest.mark.parametrize(("version", "highest"), [(1, 0), (2, 9), (255, 1)])
def test_a_version_that_we_do_not_speak_is_said_so(stand, version, highest):
    made = stand.shim(greet=False)
    raw = bytearray(wire.message(wire.HELLO, 7, value=highest))
    raw[2] = version
    record = Record(*wire.MSG.unpack(made.ask_raw(bytes(raw))[0]))
    assert (record.kind, record.error, record.seq) == (wire.ERROR, errno.EPROTONOSUPPORT, 7)
    # It may try again with less.
    data, _unused = made.ask_raw(wire.message(wire.HELLO, 8, value=1))
    assert Record(*wire.MSG.unpack_from(data)).kind == wire.WELCOME


@pytest.mark.parametrize("size", [1, 4, 95, 97, 200, 60000])
def test_a_record_of_a_wrong_size_costs_its_sender_the_connection(stand, good, shim, size):
    send(shim.sock, wire.message(wire.SYNC, 1).ljust(size, b"\0")[:size])
    assert shim.dropped
    stand.counted("shim_hostile", 1)


@pytest.mark.parametrize("kind", [0, *range(1, 22), 22, 100, 255])
def test_what_makes_no_sense_before_hello_costs_the_connection(stand, kind):
    made = stand.shim(greet=False)
    send(made.sock, wire.message(kind, 1))
    if kind == wire.HELLO:
        assert Record(*wire.MSG.unpack(receive(made.sock)[0])).error == errno.EPROTONOSUPPORT
        return
    assert made.dropped
    stand.counted("shim_hostile", 1)


WORKERS = (
    wire.WELCOME, wire.WARM, wire.COLD, wire.PLAIN, wire.SWAPPED, wire.KEEP, wire.LISTENING,
    wire.NAMES, wire.SYNCED, wire.ACCEPTED, wire.ERROR,
)  # fmt: skip


@pytest.mark.parametrize("kind", [0, wire.HELLO, *WORKERS, 22, 100, 255])
def test_what_makes_no_sense_after_hello_costs_the_connection(stand, good, shim, kind):
    shim.tell(kind, value=1)
    assert shim.dropped
    stand.counted("shim_hostile", 1)


@pytest.mark.parametrize(
    "fields", [{"family": 2}, {"family": 1, "pport": 80}, {"pport": 80}, {"family": 16, "pport": 1}]
)
def test_a_connect_to_nowhere_costs_the_connection(stand, good, shim, fields):
    shim.tell(wire.CONNECT, peer=THEIRS, **fields)
    assert shim.dropped
    stand.counted("shim_hostile", 1)


def test_a_wrong_magic_costs_the_connection(stand, good, shim):
    send(shim.sock, b"XX" + wire.message(wire.SYNC, 1)[2:])
    assert shim.dropped
    stand.counted("shim_hostile", 1)


def test_records_of_noise_never_harm_the_worker(stand, good):
    """Right in size and magic, anything else at random, descriptors at random."""
    rng = random.Random(20)
    before = settle(stand)
    null = os.open("/dev/null", os.O_RDONLY)
    made = None
    for _unused in range(1500):
        if made is None:
            made = Shim(stand)
        noise = bytearray(rng.randbytes(wire.MSG_SIZE))
        noise[:3] = wire.message(wire.HELLO)[:3]
        # Nothing that listens or connects for real: kinds as they come, and some more of ours.
        noise[3] = rng.choice((rng.randrange(256), rng.randrange(1, 22)))
        if rng.random() < 0.5:
            noise[52:54] = b"\x02\0"
        fds = [rng.choice((null, made.sock.fileno())) for _unused in range(rng.randrange(4))]
        try:
            send(made.sock, bytes(noise), *fds)
            made.sock.settimeout(0)
            while receive(made.sock, 0.0)[0]:
                pass
            raise ConnectionResetError
        except (BlockingIOError, TimeoutError):
            continue
        except (OSError, AssertionError):
            made.sock.close()
            made = None
    if made is not None:
        made.sock.close()
    os.close(null)
    until(lambda: len(stand.worker.shims) == 1, "only the good one is left")
    stand.worker.outbound.on_unlocate(None)
    until(lambda: settle(stand) <= before, "and no descriptor of the others")


def test_a_shim_that_ends_is_forgotten(stand, shim):
    assert len(stand.settled.shims) == 1
    before = settle(stand)
    shim.sock.close()
    until(lambda: not stand.worker.shims, "it is forgotten")
    assert settle(stand) == before - 2


def test_a_shim_that_does_not_read_is_let_go(stand, good, shim):
    shim.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for seq in range(100_000):
            shim.sock.settimeout(10)
            shim.sock.send(wire.message(wire.WHO, seq))
            if stand.worker.counters["shim_gone"]:
                break
    until(lambda: len(stand.worker.shims) == 1, "it is let go")
    assert stand.worker.counters["shim_gone"] >= 1


def test_shims_of_an_endpoint_are_bounded(stand, shim, monkeypatch):
    monkeypatch.setattr(worker, "SHIMS", 2)
    second = stand.shim()
    third = stand.shim(greet=False)
    assert third.dropped
    stand.counted("shim_crowded", 1)
    second.sock.close()
    until(lambda: len(stand.worker.shims) == 1, "there is room again")
    stand.shim()


# --- JOIN -------------------------------------------------------------------------------


def test_join_serves_the_other_end_of_a_pair(stand, shim):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        shim.tell(wire.JOIN, theirs.fileno())
        theirs.close()
        send(ours, wire.message(wire.HELLO, 3, value=1))
        assert Record(*wire.MSG.unpack_from(receive(ours)[0])).kind == wire.WELCOME
        shim.sock.close()
        send(ours, wire.message(wire.SYNC, 4))
        assert Record(*wire.MSG.unpack(receive(ours)[0])).kind == wire.SYNCED


@pytest.mark.parametrize("what", ["nothing", "pipe", "null", "stream", "udp", "tcp", "two"])
def test_join_with_something_else_costs_the_connection(stand, good, shim, what):
    before = settle(stand)
    with odd(what) as fds:
        shim.tell(wire.JOIN, *fds)
        assert shim.dropped
    stand.counted("shim_hostile", 1)
    shim.sock.close()
    assert settle(stand) == before - 2


@contextlib.contextmanager
def odd(what: str):
    """Descriptors that should not be there."""
    with contextlib.ExitStack() as stack:
        if what == "nothing":
            yield []
        elif what == "pipe":
            read, write = os.pipe()
            stack.callback(os.close, read)
            stack.callback(os.close, write)
            yield [read]
        elif what == "null":
            fd = os.open("/dev/null", os.O_RDWR)
            stack.callback(os.close, fd)
            yield [fd]
        elif what in ("stream", "two"):
            kind = socket.SOCK_STREAM if what == "stream" else socket.SOCK_SEQPACKET
            pair = socket.socketpair(socket.AF_UNIX, kind)
            for sock in pair:
                stack.enter_context(sock)
            yield [sock.fileno() for sock in pair][: 1 if what == "stream" else 2]
        else:
            kind = socket.SOCK_DGRAM if what == "udp" else socket.SOCK_STREAM
            yield [stack.enter_context(socket.socket(socket.AF_INET, kind)).fileno()]


# --- LISTEN -------------------------------------------------------------------------------


def test_listen_takes_the_listener_over_and_its_connections_come_through_the_channel(stand, shim):
    app = stand.app(shim)
    assert stand.worker.listeners.report() == [
        {"port": app.port, "address": "10.44.0.1", "queued": 0}
    ]
    record, _accepted, _ours = stand.peer.cold(app)
    assert (record.local, record.lport, record.peer) == (OURS, app.port, THEIRS)
    stand.counted("listens", 1)


def test_listeners_that_are_none_are_refused(stand, good, shim):
    def plain(kind=socket.SOCK_STREAM, family=socket.AF_INET):
        with inside(stand.netns):
            return socket.socket(family, kind)

    bound = plain()
    bound.bind(("10.44.0.1", 0))
    connected, other_end = socket.socketpair()
    elsewhere = []
    for netns in ("/proc/self/ns/net", stand.stranger):
        with inside(netns):
            made = socket.socket()
            made.bind(("0.0.0.0", 0))
            made.listen(1)
            elsewhere.append(made)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"\0slim-test-{os.getpid()}")
    unix.listen(1)
    samples = [
        plain(), bound, connected, *elsewhere, unix, plain(socket.SOCK_DGRAM),
        plain(socket.SOCK_DGRAM, socket.AF_INET6),
    ]  # fmt: skip
    before = settle(stand)
    for number, sample in enumerate(samples):
        channel, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with channel, workers:
            record, _unused = shim.ask(wire.LISTEN, sample.fileno(), workers.fileno(), value=5)
        assert (record.kind, record.error) == (wire.ERROR, errno.EINVAL), sample
        stand.counted("listen_refused", number + 1)
    assert settle(stand) == before, "nothing of them stays"
    for sample in (*samples, other_end):
        sample.close()
    assert len(stand.settled.listeners.by_cookie) == 1, "the good one's"


@pytest.mark.parametrize("what", ["pipe", "null"])
def test_a_listener_that_is_no_socket_costs_the_connection(stand, good, shim, what):
    before = settle(stand)
    channel, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with channel, workers, odd(what) as fds:
        shim.tell(wire.LISTEN, fds[0], workers.fileno(), value=5)
        assert shim.dropped
    shim.sock.close()
    assert settle(stand) == before - 2


@pytest.mark.parametrize("what", ["pipe", "null", "stream", "udp", "tcp"])
def test_a_channel_that_is_none_costs_the_connection_and_frees_the_listener(
    stand, good, shim, what
):
    app = App(stand, shim)
    before = settle(stand)
    with odd(what) as fds:
        shim.tell(wire.LISTEN, app.listener.fileno(), fds[0], value=5)
        assert shim.dropped
    shim.sock.close()
    assert settle(stand) == before - 2
    assert len(stand.settled.listeners.by_cookie) == 1
    # The same listener may come again through a decent shim.
    app.shim = stand.shim()
    assert app.listen()[0].kind == wire.LISTENING


@pytest.mark.parametrize(("number", "flags"), [(0, 0), (1, 0), (3, 0), (2, 4), (1, 4), (0, 4)])
def test_a_wrong_number_of_descriptors_costs_the_connection(stand, good, shim, number, flags):
    app = App(stand, shim)
    all_fds = [app.listener.fileno(), app.workers.fileno(), app.channel.fileno()]
    before = settle(stand)
    shim.tell(wire.LISTEN, *all_fds[:number], flags=flags, value=5, lport=app.port)
    assert shim.dropped
    shim.sock.close()
    assert settle(stand) == before - 2


@pytest.mark.parametrize("number", [5, 60, 253])
def test_more_descriptors_than_any_record_has_are_closed(stand, good, shim, number):
    before = settle(stand)
    with odd("null") as fds:
        shim.tell(wire.SYNC, *(fds * number))
        assert shim.dropped
    shim.sock.close()
    assert settle(stand) == before - 2


def test_descriptors_beside_a_record_that_needs_none_are_closed(stand, good, shim):
    before = settle(stand)
    with odd("pipe") as fds:
        for _unused in range(10):
            assert shim.ask(wire.WHO, fds[0], cookie=1)[0].error == errno.ENOENT
    assert settle(stand) == before


def test_listen_twice_is_busy(stand, shim):
    app = App(stand, shim)
    assert app.listen()[0].kind == wire.LISTENING
    other = stand.shim()
    for who in (shim, other):
        channel, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with channel, workers:
            record, fds = who.ask(
                wire.LISTEN, app.listener.fileno(), workers.fileno(), value=5, cookie=1
            )
            assert (record.kind, record.error, fds) == (wire.ERROR, errno.EBUSY, [])
            # The channel that was refused is nobody's.
            workers.close()
            channel.settimeout(5)
            assert channel.recv(1) == b""
    assert len(stand.settled.listeners.by_cookie) == 1


def test_processes_that_recover_one_listener_share_its_channel(stand):
    """A router has died; three processes of one prefork server offer the same listener."""
    shims = [stand.shim() for _unused in range(3)]
    app = App(stand, shims[0])
    record, fds = app.listen(wire.F_RECOVER)
    assert (record.kind, fds) == (wire.LISTENING, [])
    shared = []
    for shim in shims[1:]:
        other = App.__new__(App)
        other.__dict__.update(app.__dict__)
        other.shim = shim
        other.channel, other.workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        record, fds = other.listen(wire.F_RECOVER)
        assert record.kind == wire.LISTENING
        assert len(fds) == 1
        shared.append(socket.socket(fileno=fds[0]))
        other.channel.close()
        other.workers.close()
    for sock in shared:
        assert int.from_bytes(sock.getsockopt(1, 57, 8), "little") == app.cookie
    assert len(stand.settled.listeners.by_cookie) == 1
    # What arrives is there for each of them, once.
    stand.worker.inbound.admitted[(THEIRS, app.port)] = time.monotonic() + 60
    kept = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 40000, app.port))
    data, fds = receive(shared[1])
    assert Record(*wire.MSG.unpack(data)).pport == 40000
    os.close(fds[0])
    assert app.idle
    kept.close()


def test_a_recovered_channel_ends_with_its_last_holder(stand, shim, monkeypatch):
    monkeypatch.setattr(listeners, "SHARE_S", 0.2)
    app = App(stand, shim)
    app.listen(wire.F_RECOVER)
    app.workers.close()
    listener = stand.worker.listeners.by_port[app.port][0]
    until(lambda: listener.shared is None, "the worker lets its copy of our end go")
    record, _unused = app_again(stand, app).listen(wire.F_RECOVER)
    assert (record.kind, record.error) == (wire.ERROR, errno.EBUSY)
    app.listener.close()
    app.channel.close()
    until(lambda: not stand.worker.listeners.by_cookie, "its end is seen")
    App(stand, shim, port=app.port).start()  # the address is free


def app_again(stand, app: App) -> App:
    """The same listener with a new channel, of another process."""
    other = App.__new__(App)
    other.__dict__.update(app.__dict__)
    other.shim = stand.shim()
    other.channel, other.workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return other


def test_sync_also_ends_the_sharing(stand, shim):
    app = App(stand, shim)
    app.listen(wire.F_RECOVER)
    app.workers.close()
    app.listener.close()
    app.channel.close()
    assert stand.worker.listeners.by_cookie, "the worker's copy of our end holds it"
    assert shim.ask(wire.SYNC)[0].kind == wire.SYNCED
    until(lambda: not stand.worker.listeners.by_cookie, "its end is seen")


def test_an_application_that_shuts_its_listener_down_listens_no_more(stand, shim):
    app = App(stand, shim).start()
    listener = stand.worker.listeners.by_port[app.port][0]
    listener.sock.shutdown(socket.SHUT_RDWR)
    until(lambda: not stand.worker.listeners.by_cookie, "its end is seen")
    app.channel.settimeout(5)
    assert app.channel.recv(1) == b""


# --- WHO, SYNC ------------------------------------------------------------------------------


def test_who_tells_the_names_of_listeners_and_of_connections_of_both_directions(stand, shim):
    app = stand.app(shim)
    record, fds = shim.ask(wire.WHO, cookie=app.cookie)
    assert (record.kind, record.flags) == (wire.NAMES, wire.F_LISTENER)
    assert (record.local, record.lport) == (OURS, app.port)
    assert len(fds) == 1
    with socket.socket(fileno=fds[0]) as listener:
        assert listener.getsockname() == ("10.44.0.1", app.port)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    accepted, sock, _ours = stand.peer.cold(app)
    record, fds = shim.ask(wire.WHO, cookie=accepted.cookie)
    assert (record.kind, record.error, record.flags, fds) == (wire.NAMES, 0, 0, [])
    assert (record.local, record.lport) == (accepted.local, accepted.lport)
    assert (record.peer, record.pport) == (accepted.peer, accepted.pport)
    assert record.family == socket.AF_INET, "the listener's, whatever its host socket is"
    assert sock.family == socket.AF_INET6
    # An overlay connection has its own names; a stranger has none here.
    stand.sup.auto["query"] = lambda asked: {"op": "answer", "id": asked["id"], "probe": False}
    _over = stand.peer.overlay(app.port)
    overlay, _sock = app.accept()
    for cookie in (overlay.cookie, 1, 0, 2**64 - 1):
        record, fds = shim.ask(wire.WHO, cookie=cookie)
        assert (record.kind, record.error, fds) == (wire.NAMES, errno.ENOENT, [])


def test_sync_is_answered_at_once_when_nothing_is_closing(stand, shim):
    began = time.monotonic()
    for _unused in range(20):
        assert shim.ask(wire.SYNC)[0].kind == wire.SYNCED
    assert time.monotonic() - began < 20 * worker.WITHDRAW_S


def test_sync_waits_until_peers_know_that_a_listener_is_closed(stand, shim, monkeypatch):
    monkeypatch.setattr(worker, "WITHDRAW_S", 5.0)
    app = stand.app(shim)
    _unused, _accepted, _ours = stand.peer.cold(app)
    stand.sup.heard.clear()
    app.channel.close()
    seq = shim.tell(wire.SYNC)
    withdrawn = stand.sup.get("withdraw")
    assert (withdrawn["port"], withdrawn["vips"]) == (app.port, [stand.peer.vip])
    asked = stand.sup.get("query")
    assert (asked["vip"], asked["sport"], asked["dport"]) == (stand.peer.vip, 0, app.port)
    stand.sup.sync()
    with pytest.raises(TimeoutError):
        shim.hear(0.05)
    stand.sup.send(op="answer", id=asked["id"], probe=False)
    record, _unused = shim.hear()
    assert (record.kind, record.seq) == (wire.SYNCED, seq)


def test_sync_does_not_wait_for_ever_for_a_peer_that_says_nothing(stand, shim):
    app = stand.app(shim)
    _unused, _accepted, _ours = stand.peer.cold(app)
    app.channel.close()
    began = time.monotonic()
    record, _unused = shim.ask(wire.SYNC)
    assert record.kind == wire.SYNCED
    assert time.monotonic() - began < 5


def test_sync_sees_an_end_that_came_before_it(stand, shim):
    """The shim closes its channel, says SYNC, and the port is free when it is answered."""
    for _unused in range(20):
        app = stand.app(shim)
        port = app.port
        app.channel.close()
        assert shim.ask(wire.SYNC)[0].kind == wire.SYNCED
        with inside(stand.netns):
            again = socket.socket()
        again.bind(("10.44.0.1", port))  # without SO_REUSEADDR
        again.close()


# --- the supervisor's side ---------------------------------------------------------------


def test_a_dump_without_connections_does_not_ask_the_kernel(stand, shim, monkeypatch):
    app = stand.app(shim)
    _unused, _accepted, _ours = stand.peer.cold(app)

    def forbidden(_info):
        raise AssertionError("the kernel is asked")

    monkeypatch.setattr(stand.worker.table, "_live", forbidden)
    stand.sup.send(op="dump", id=5, connections=False)
    got = stand.sup.get("dumped", id=5)
    assert (got["last"], got["connections"]) == (True, [])
    assert got["listeners"] == [{"port": app.port, "address": "10.44.0.1", "queued": 0}]
    assert got["counters"]["accepted_cold"] == 1


def test_a_dump_with_connections_comes_in_pieces(stand, shim, monkeypatch):
    monkeypatch.setattr(worker, "DUMP_PIECE", 2)
    app = stand.app(shim)
    _unused, accepted, ours = stand.peer.cold(app)
    kept = [accepted, ours]
    for sport in range(40000, 40004):
        kept.append(stand.peer.dial(stand.peer.hello(wire.K_DELIVER, sport, app.port)))
        kept.append(app.accept()[1])
    stand.sup.send(op="dump", id=5, connections=True)
    rows, pieces = [], 0
    while True:
        got = stand.sup.get("dumped", id=5)
        rows += got["connections"]
        pieces += 1
        if got["last"]:
            break
    assert (len(rows), pieces) == (5, 3)
    assert {row["path"] for row in rows} == {"slim"}
    assert {40000, 40001, 40002, 40003} < {row["sport"] for row in rows}
    assert all(row["direction"] == "in" and row["dport"] == app.port for row in rows)
    assert got["counters"]["accepted_warm"] == 4


def test_the_worker_ends_when_it_is_told_to(stand, shim):
    app = stand.app(shim)
    _unused, accepted, ours = stand.peer.cold(app)
    stand.sup.send(op="stop")
    until(lambda: not stand.worker.loop.running, "it stops")
    ours.sendall(b"live")
    assert read_exactly(accepted, 4) == b"live"
    assert alive(ours)


def test_is_reset_tells_a_reset_from_an_end():
    """The tests' own judge."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for hard in (True, False):
            client = socket.create_connection(server.getsockname())
            other, _unused = server.accept()
            if hard:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, sockets.RESET)
            other.close()
            assert is_reset(client) is hard
            client.close()
