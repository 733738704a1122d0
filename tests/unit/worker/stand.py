# SPDX-License-Identifier: Apache-2.0
"""A worker in a thread of the test, with a supervisor, a peer and shims that the test plays.

    test thread                                          worker's thread
    Supervisor  ==== SEQPACKET pair (JSON, fds) ======== Worker.link
    Shim        ==== SEQPACKET pair (records, fds) ===== shims.Shim
    Peer.dial   ---- TCP, 127.x (host's namespace) ----> data listener
    Peer.host   <--- TCP, 127.x ------------------------ outbound host connections
    Peer.overlay --- TCP in namespace wk-... ----------> App's overlay listener
    App         ==== accept channel ==================== listeners.Listener

The endpoint's namespace has both vips on its loopback device: ours (VIP) and the
peer's (PEER), so that the overlay is one device.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from slim_router import wire
from slim_router.endpoints import make_listener
from slim_router.rowfile import RowFile
from slim_router.worker import Worker

VIP, PEER, STRANGER = "10.44.0.1", "10.44.0.2", "192.0.2.9"
OURS, THEIRS = wire.pack_addr(VIP), wire.pack_addr(PEER)
BOUNDS = {
    "swap_us": 5000, "blocking_swap_us": 10000, "reply_us": 10000, "lease_s": 30,
}  # fmt: skip
PATIENCE = 10.0  # seconds that a loaded machine may take for anything
CLONE_NEWNET = 0x40000000
RESET = struct.pack("ii", 1, 0)
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def until(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """Poll *condition*; fail naming *what*."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout:g} s: {what}"
        time.sleep(0.002)
    return value


def make_namespace(name: str) -> str:
    """A namespace with the vips on lo; its path."""
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    commands = ["link set lo up"]
    commands += [f"addr add {vip}/32 dev lo" for vip in (VIP, PEER, STRANGER)]
    commands += [f"addr add {vip}/128 dev lo nodad" for vip in ("fd44::1", "fd44::2")]
    subprocess.run(
        ["ip", "-n", name, "-batch", "-"], check=True, timeout=20, text=True,
        input="\n".join(commands),
    )  # fmt: skip
    return f"/run/netns/{name}"


@contextlib.contextmanager
def inside(netns: str) -> Iterator[None]:
    """This thread, in another network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(netns, os.O_RDONLY)
    try:
        assert _libc.setns(away, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert _libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)
        os.close(away)


class Record(NamedTuple):
    """A shim-socket record, taken apart."""

    magic: int
    version: int
    kind: int
    seq: int
    flags: int
    error: int
    local: bytes
    peer: bytes
    lport: int
    pport: int
    family: int
    count: int
    cookie: int
    value: int
    commit: bytes


def receive(sock: socket.socket, timeout: float = PATIENCE) -> tuple[bytes, list[int]]:
    """One datagram and its descriptors."""
    sock.settimeout(timeout)
    data, ancillary, flags, _unused = sock.recvmsg(65536, socket.CMSG_SPACE(64))
    assert not flags & socket.MSG_CTRUNC
    fds = array.array("i")
    for _unused, kind, raw in ancillary:
        assert kind == socket.SCM_RIGHTS
        fds.frombytes(raw)
    return data, list(fds)


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    """One datagram with descriptors, which stay the caller's."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], ancillary)


def is_reset(sock: socket.socket, timeout: float = PATIENCE) -> bool:
    """Does it end by a reset? False for an end in order; data that comes before counts as none."""
    sock.settimeout(timeout)
    try:
        while sock.recv(4096):
            pass
    except (ConnectionResetError, BrokenPipeError):
        return True
    return False


def read_exactly(sock: socket.socket, size: int, timeout: float = PATIENCE) -> bytes:
    """*size* bytes, or what came before the end."""
    sock.settimeout(timeout)
    got = b""
    while len(got) < size and (more := sock.recv(size - len(got))):
        got += more
    return got


def alive(sock: socket.socket) -> bool:
    """Neither closed nor reset by the other side, as far as we know now."""
    sock.settimeout(0)  # with a limit, Python itself would wait
    try:
        return sock.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class Supervisor:
    """The other end of the worker's link: remembers what it hears, answers what it is told to."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.heard: list[dict[str, Any]] = []
        self.auto: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {}
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                data = self.link.recv(65536)
            except OSError:
                return
            if not data:
                return
            message = json.loads(data)
            answer = self.auto.get(message["op"], lambda _: None)(message)
            # Whoever sees the message may count on its answer, and the reverse.
            with self._news:
                self.heard.append(message)
                if answer is not None:
                    self.send(**answer)
                self._news.notify_all()

    def send(self, *fds: int, **message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            send(self.link, json.dumps(message).encode(), *fds)

    def count(self, op: str, **fields: Any) -> int:
        """How often has it been said?"""
        return sum(
            m["op"] == op and all(m.get(k) == v for k, v in fields.items()) for m in self.heard
        )

    def get(self, op: str, **fields: Any) -> dict[str, Any]:
        """The next message with this op and these fields; it is taken out."""
        end = time.monotonic() + PATIENCE
        with self._news:
            while True:
                for message in self.heard:
                    if message["op"] == op and all(message.get(k) == v for k, v in fields.items()):
                        self.heard.remove(message)
                        return message
                left = end - time.monotonic()
                assert left > 0, f"no {op} {fields} from the worker: {self.heard}"
                self._news.wait(left)

    def sync(self) -> None:
        """Return when the worker has handled everything that was sent before."""
        number = next(_numbers)
        self.send(op="dump", id=number, connections=False)
        self.get("dumped", id=number)


class Shim:
    """A process with the shim, as far as its worker can tell."""

    def __init__(self, stand: Stand, *, greet: bool = True) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            stand.sup.send(theirs.fileno(), op="shim")
        self.seq = 0
        if greet:
            data, _unused = self.ask_raw(wire.message(wire.HELLO, 1, value=wire.VERSION))
            assert Record(*wire.MSG.unpack_from(data)).kind == wire.WELCOME

    def tell(self, kind: int, *fds: int, **fields: Any) -> int:
        """Send a record; its number."""
        self.seq += 1
        send(self.sock, wire.message(kind, self.seq, **fields), *fds)
        return self.seq

    def hear(self, timeout: float = PATIENCE) -> tuple[Record, list[int]]:
        data, fds = receive(self.sock, timeout)
        assert len(data) == wire.MSG_SIZE, f"{len(data)} bytes"
        return Record(*wire.MSG.unpack(data)), fds

    def ask_raw(self, data: bytes, *fds: int) -> tuple[bytes, list[int]]:
        send(self.sock, data, *fds)
        return receive(self.sock)

    def ask(self, kind: int, *fds: int, **fields: Any) -> tuple[Record, list[int]]:
        """Send a record and wait for the reply, which must be to this one."""
        seq = self.tell(kind, *fds, **fields)
        record, got = self.hear()
        assert record.seq == seq
        return record, got

    def connect(
        self,
        pport: int,
        *,
        peer: bytes = THEIRS,
        wait_s: float = 5.0,
        family: int = 2,
        **fields: Any,
    ) -> tuple[Record, list[int]]:
        """CONNECT."""
        deadline = int((time.monotonic() + wait_s) * 1e6)
        return self.ask(
            wire.CONNECT, peer=peer, pport=pport, family=family, value=deadline, **fields
        )

    @property
    def dropped(self) -> bool:
        """Has the worker closed this connection?"""
        self.sock.settimeout(PATIENCE)
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True


class App:
    """An application that listens through the shim."""

    def __init__(self, stand: Stand, shim: Shim, *, port: int = 0, backlog: int = 16,
                 address: str = VIP, reuse_port: bool = False) -> None:  # fmt: skip
        self.stand, self.shim = stand, shim
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(stand.netns):
            self.listener = socket.socket(family, socket.SOCK_STREAM)
        if reuse_port:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind((address, port))
        self.listener.listen(backlog)
        self.port = self.listener.getsockname()[1]
        self.channel, self.workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.cookie = int.from_bytes(self.channel.getsockopt(1, 57, 8), "little")
        self.backlog = backlog

    def listen(self, flags: int = 0) -> tuple[Record, list[int]]:
        """LISTEN; the application's process keeps only its end of the channel."""
        fds = [self.listener.fileno(), self.workers.fileno()]
        if flags & wire.F_RECOVER:
            fds.append(self.channel.fileno())
        return self.shim.ask(
            wire.LISTEN, *fds, local=OURS, lport=self.port, family=2, value=self.backlog,
            cookie=self.cookie, flags=flags,
        )  # fmt: skip

    def start(self) -> App:
        """LISTEN, and let go what the worker has now."""
        record, _unused = self.listen()
        assert record.kind == wire.LISTENING, record
        self.listener.close()
        self.workers.close()
        return self

    def accept(self, timeout: float = PATIENCE) -> tuple[Record, socket.socket]:
        data, fds = receive(self.channel, timeout)
        record = Record(*wire.MSG.unpack(data))
        assert record.kind == wire.ACCEPTED
        assert len(fds) == 1
        return record, socket.socket(fileno=fds[0])

    @property
    def idle(self) -> bool:
        """Is nothing there to accept?"""
        self.channel.settimeout(0)
        try:
            return not self.channel.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True


class Peer:
    """Another host: its endpoint PEER, its router, its key."""

    def __init__(self, stand: Stand, vip: str = PEER) -> None:
        self.stand = stand
        self.vip = vip
        self.addr = wire.pack_addr(vip)
        self.key_id = 0x01020304 + next(_numbers)
        self.mac = wire.keyed_mac(os.urandom(32))
        self.key = os.urandom(32)
        self.mac = wire.keyed_mac(self.key)
        self.nonce = time.time_ns() // 1000
        self.host = socket.create_server((stand.address, 0))
        self.host.settimeout(PATIENCE)
        stand.closing.callback(self.host.close)

    # --- towards the worker ---------------------------------------------------

    def answer_pair(self, message: dict[str, Any]) -> dict[str, Any]:
        """What the supervisor says to `pair`."""
        ok = message["key_id"] == self.key_id and message["vip"] == self.vip
        return {
            "op": "pair", "key_id": message["key_id"], "vip": message["vip"], "ok": ok,
            "key": self.key.hex() if ok else None, "reason": 0 if ok else wire.R_REFUSED,
        }  # fmt: skip

    def answer_locate(self, message: dict[str, Any]) -> dict[str, Any]:
        """What the supervisor says to `locate`."""
        if message["vip"] != self.vip:
            return {"op": "located", "vip": message["vip"], "found": False, "reason": 1}
        address, port = self.host.getsockname()
        return {
            "op": "located", "vip": self.vip, "found": True, "reason": 0, "address": address,
            "port": port, "key_id": self.key_id, "key": self.key.hex(),
        }  # fmt: skip

    def hello(self, kind: int, sport: int, dport: int, *, nonce: int | None = None) -> bytes:
        if nonce is None:
            self.nonce = nonce = self.nonce + 1
        return wire.hello(self.mac, kind, self.key_id, nonce, self.addr, OURS, sport, dport)

    def dial(self, first: bytes = b"") -> socket.socket:
        """A connection to the worker's data port, with *first* written."""
        sock = socket.create_connection(self.stand.data_name, timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(first)
        return sock

    def prepare(self, sport: int, dport: int) -> tuple[socket.socket, int]:
        """PREPARE and its ACK, which must be ready; (host connection, nonce)."""
        sock, status, nonce = self.try_prepare(sport, dport)
        assert status == wire.R_NONE, wire.REASONS[status]
        return sock, nonce

    def try_prepare(self, sport: int, dport: int) -> tuple[socket.socket, int, int]:
        """(host connection, status, nonce)."""
        sock = self.dial(self.hello(wire.K_PREPARE, sport, dport))
        raw = read_exactly(sock, wire.ACK_SIZE)
        status, lease_ms = wire.parse_ack(self.mac, raw, self.nonce)
        assert lease_ms == BOUNDS["lease_s"] * 1000
        return sock, status, self.nonce

    def commit(self, nonce: int, kind: int = wire.C_DELIVER) -> bytes:
        return wire.commit(self.mac, kind, nonce)

    def overlay(self, dport: int, *, source: str | None = None, sport: int = 0) -> socket.socket:
        """A connection over the overlay to the application's port."""
        source = source or self.vip
        family = socket.AF_INET6 if ":" in source else socket.AF_INET
        with inside(self.stand.netns):
            sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, sport))
        sock.connect(("fd44::1" if ":" in source else VIP, dport))
        return sock

    def cold(self, app: App) -> tuple[Record, socket.socket, socket.socket]:
        """A whole cold connect; admits the pair. (record, accepted, our end)."""
        over = self.overlay(app.port)
        sport = over.getsockname()[1]
        sock, nonce = self.prepare(sport, app.port)
        sock.sendall(self.commit(nonce))
        record, accepted = app.accept()
        assert not record.flags & wire.F_OVERLAY
        over.close()
        return record, accepted, sock

    # --- from the worker --------------------------------------------------------

    def met(self) -> tuple[socket.socket, tuple[Any, ...], bytes]:
        """A host connection from the worker: (socket, its hello taken apart, raw)."""
        sock, _unused = self.host.accept()
        raw = read_exactly(sock, wire.HELLO_SIZE)
        assert wire.mac_of(self.mac, raw[:64]) == raw[64:], "hello under the pair's key"
        return sock, wire.parse_hello(raw), raw

    def acknowledge(self, sock: socket.socket, nonce: int, *, status: int = 0,
                    lease_ms: int = 30000) -> None:  # fmt: skip
        sock.sendall(wire.ack(self.mac, status, lease_ms, nonce))


class Stand:
    """The worker, its thread, and everybody around it."""

    def __init__(self, netns: str, stranger: str, **bounds: float) -> None:
        """*netns* is the endpoint's namespace, *stranger* another one; *bounds* replace some."""
        self.netns, self.stranger = netns, stranger
        self.closing = contextlib.ExitStack()
        self.address = f"127.{50 + os.getpid() % 50}.1.1"
        data = make_listener(self.address, 0)
        # Silent callers would otherwise stay in the kernel for seconds.
        data.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        self.data_name = (self.address, data.getsockname()[1])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sup = Supervisor(ours)
        self._worker: Worker | None = None
        self._failed = ""
        config = {
            "op": "config", "name": "a1", "tenant": "default", "vip": VIP, "host": "node1",
            "address": self.address, "data_port": self.data_name[1],
            "overlay": ["10.44.0.0/16", "fd44::/64"], "bounds": BOUNDS | bounds, "secure": "none",
        }  # fmt: skip
        self._link = theirs
        self._rows = RowFile(os.memfd_create("rows", os.MFD_CLOEXEC))
        self._data = data
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()
        until(lambda: self._worker or self._failed, "the worker starts")
        assert not self._failed, self._failed
        self.peer = Peer(self)
        self.sup.auto["pair"] = self.peer.answer_pair
        self.sup.auto["locate"] = self.peer.answer_locate

    @property
    def worker(self) -> Worker:
        assert self._worker is not None
        return self._worker

    @property
    def settled(self) -> Worker:
        """The worker, when it has done what belongs to its last answer."""
        self.sup.sync()
        return self.worker

    def _run(self, config: dict[str, Any]) -> None:
        try:
            netns = os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)
            self._worker = Worker(self._link, config, self._data, netns, self._rows)
            self._worker.loop.run()
        except BaseException as error:
            self._failed = repr(error)
            raise

    def shim(self, **options: Any) -> Shim:
        made = Shim(self, **options)
        self.closing.callback(made.sock.close)
        return made

    def app(self, shim: Shim | None = None, **options: Any) -> App:
        """An application that listens already."""
        made = App(self, shim or self.shim(), **options).start()
        self.closing.callback(made.channel.close)
        return made

    def counted(self, name: str, times: int = 1) -> None:
        """Wait until the worker has counted *name* so often, and no more."""
        until(lambda: self.worker.counters[name] >= times, f"{name} is counted {times} times")
        assert self.worker.counters[name] == times, name

    def close(self) -> None:
        """End the worker as the end of its supervisor does; nothing of it stays."""
        worker = self.worker
        self.sup.link.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the worker ends with its supervisor"
        self._rows.close()
        self.closing.close()
        self.sup.link.close()
        for sock in (
            worker.link, worker.inbound.data, *worker.diag,
            *(shim.sock for shim in worker.shims),
            *(held.sock for held in worker.inbound.held.values()),
            *(prepared.sock for prepared in worker.inbound.prepared.values()),
            *(entry.sock for entry in worker.inbound.unproven.values()),
        ):  # fmt: skip
            sock.close()
        for listener in worker.listeners.by_cookie.values():
            listener.sock.close()
            listener.channel.close()
        worker.loop.epoll.close()
        os.close(worker.host_netns)
        os.close(worker.endpoint_netns)
