# SPDX-License-Identifier: Apache-2.0
"""Connections that come to this endpoint: hellos on the data port, and overlay
connections that may be the shadow of one.

A cold connection arrives twice: over the overlay, which is its admission, and
as a prepared host connection. Exactly one of the two is delivered, and the
connecting side decides which: it writes COMMIT, or it closes.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wire
from .listeners import (
    EXHAUSTED,
    EXHAUSTED_S,
    HOLD_S,
    RECOVERED_S,
    Delivered,
    Listener,
)
from .loop import HUP, IN, RDHUP, Timer
from .peers import Pair
from .row import Row
from .sockets import cookie_of, reset

if TYPE_CHECKING:
    from .worker import Worker

Key = tuple[bytes, int, int]  # source vip, source port, our port

HELLO_S = 3.0  # a stranger may stay silent this long
COMMIT_S = 10.0  # the other side closes what it does not offer much earlier
HOLD_MAX_S = 4.0  # an overlay connection is held no longer, whatever was said
PREPARE_S = 1.5  # held for longer than this, it is not prepared for any more
MATCH_S = 5.0  # COMMIT seen, overlay connection not yet
UNPROVEN = 512  # connections that have not shown a valid hello yet
ASKING = 1024  # hellos that wait for the supervisor to say who may send them
PARKED = 1024  # hellos that wait for a COMMIT
PREPARED = 4096
PREPARED_EACH = 1024  # of one source: it must not crowd out the others
WITHDRAWN = 1000  # vips a message
HELD = 4096  # overlay connections without a verdict


@dataclass(slots=True, eq=False)
class Held:
    """An overlay connection whose verdict is not in yet."""

    sock: socket.socket
    listener: Listener
    since: float
    timer: Timer | None = None
    query: int = 0  # the last question about it


@dataclass(slots=True, eq=False)
class Prepared:
    """A host connection that waits for COMMIT, or for its overlay shadow."""

    sock: socket.socket
    pair: Pair
    nonce: int
    timer: Timer
    committed: int = 0


@dataclass(slots=True, eq=False)
class Unproven:
    """An accepted data connection that owes us (the rest of) its hello."""

    sock: socket.socket
    timer: Timer
    seen: bytes = b""


class Inbound:
    """The accepting half of a worker."""

    def __init__(self, worker: Worker, data: socket.socket) -> None:
        self.worker = worker
        self.data = data
        self.pairs: dict[tuple[int, bytes], Pair] = {}
        self.asking: dict[tuple[int, bytes], list[tuple[socket.socket, bytes]]] = {}
        self.unproven: dict[int, Unproven] = {}
        self.held: dict[Key, Held] = {}
        self.prepared: dict[Key, Prepared] = {}
        self.prepared_of: dict[bytes, int] = {}  # how many, by source
        self.parked_count = 0
        self.asking_count = 0
        self.parked: dict[tuple[bytes, int], list[tuple[socket.socket, int]]] = {}
        self.delivered = Delivered()
        self.admitted: dict[tuple[bytes, int], float] = {}
        self.queries: dict[int, Key] = {}
        self.query_id = 0
        data.setblocking(False)
        worker.loop.add(data.fileno(), IN, self.on_data)

    def mark_listener(self) -> None:
        """Accepted sockets are born with the listener's mark: what they say before their
        hello is known belongs to the endpoint, too."""
        mark = self.worker.mark
        try:
            self.data.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        except OSError:
            self.worker.count("not_dressed")

    # --- host connections ---------------------------------------------------
    def on_data(self, _mask: int) -> None:
        data = self.data
        for _unused in range(16):
            try:
                fd, _peer = data._accept()  # type: ignore[attr-defined] # as in listeners.py
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.worker.count("data_accept_error")
                if error.errno in EXHAUSTED:
                    self.worker.loop.modify(data.fileno(), 0)
                    self.worker.loop.after(
                        EXHAUSTED_S, lambda: self.worker.loop.modify(data.fileno(), IN)
                    )
                return
            sock = socket.socket(data.family, socket.SOCK_STREAM, 6, fileno=fd)
            try:
                raw = sock.recv(wire.HELLO_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait_hello(sock, b"")
                continue
            except OSError:
                sock.close()
                continue
            if len(raw) == wire.HELLO_SIZE:
                self.hello(sock, raw)
            elif raw:
                self._wait_hello(sock, raw)
            else:
                self._refuse(sock, "hello_missing")

    def _wait_hello(self, sock: socket.socket, seen: bytes) -> None:
        if len(self.unproven) >= UNPROVEN:
            oldest = next(iter(self.unproven))
            self._drop_unproven(oldest, "hello_crowded")
        fd = sock.fileno()
        timer = self.worker.loop.after(HELLO_S, lambda: self._drop_unproven(fd, "hello_late"))
        self.unproven[fd] = Unproven(sock, timer, seen)
        self.worker.loop.add(fd, IN, lambda _mask: self._more_hello(fd))

    def _more_hello(self, fd: int) -> None:
        entry = self.unproven[fd]
        try:
            raw = entry.sock.recv(wire.HELLO_SIZE - len(entry.seen), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        entry.seen += raw
        if raw and len(entry.seen) < wire.HELLO_SIZE:
            return
        if not raw:
            self._drop_unproven(fd, "hello_missing")
            return
        entry.timer.cancel()
        self.worker.loop.remove(fd)
        del self.unproven[fd]
        self.hello(entry.sock, entry.seen)

    def _drop_unproven(self, fd: int, why: str) -> None:
        entry = self.unproven.pop(fd, None)
        if entry is not None:
            entry.timer.cancel()
            self.worker.loop.remove(fd)
            self._refuse(entry.sock, why)

    def _refuse(self, sock: socket.socket, why: str) -> None:
        self.worker.count(why)
        reset(sock)

    def _forbid(
        self, sock: socket.socket, src: bytes, sport: int, dport: int, *, slim: bool = True
    ) -> None:
        """The policy forbids it."""
        self._note_refusal(sock, src, sport, dport, slim=slim)
        self._refuse(sock, "refused_ingress")

    def _note_refusal(
        self, sock: socket.socket, src: bytes, sport: int, dport: int, *, slim: bool
    ) -> None:
        if self.worker.flows is not None:
            self.worker.flows.refused_in(sock, src, sport, dport, slim=slim)

    def hello(self, sock: socket.socket, raw: bytes) -> None:
        """Check a whole hello and act on it."""
        try:
            kind, key_id, nonce, src, dst, sport, dport = wire.parse_hello(raw)
        except wire.WireError:
            self._refuse(sock, "hello_malformed")
            return
        if dst != self.worker.vip:
            self._refuse(sock, "hello_not_ours")
            return
        pair = self.pairs.get((key_id, src))
        if pair is None:
            self._ask_pair(key_id, src, sock, raw)
            return
        if wire.mac_of(pair.mac, raw[:64]) != raw[64:]:
            self._refuse(sock, "hello_bad_mac")
            return
        if not pair.fresh(nonce):
            self._refuse(sock, "hello_replayed")
            return
        if self.worker.gate.forbids_in(src, dport):
            self._forbid(sock, src, sport, dport)
            return
        if kind == wire.K_PREPARE:
            self._prepare(sock, pair, nonce, (src, sport, dport))
            return
        now = time.monotonic()
        if self.admitted.get((src, dport), 0.0) < now:
            self._park(sock, src, sport, dport)
            return
        listener = self.worker.listeners.find(dst, dport)
        if listener is None:
            self._refuse(sock, "hello_no_listener")
            return
        self.worker.counters["accepted_warm"] += 1
        if self.worker.dress is not None:
            self.worker.dress(sock, dport)
        listener.deliver(sock, Row(False, True, 0, src, sport, dst, dport, now), 0)

    def _park(self, sock: socket.socket, src: bytes, sport: int, dport: int) -> None:
        """A warm hello may overtake the COMMIT that admits its pair: it waits for it."""
        waiting = self.parked.setdefault((src, dport), [])
        if self.parked_count < PARKED and any(
            key[0] == src and key[2] == dport for key in self.prepared
        ):
            waiting.append((sock, sport))
            self.parked_count += 1
            return
        if not waiting:
            del self.parked[(src, dport)]
        self._refuse(sock, "hello_no_lease")

    def _unpark(self, src: bytes, dport: int, admitted: bool) -> None:
        if not admitted and any(key[0] == src and key[2] == dport for key in self.prepared):
            return
        waiting = self.parked.pop((src, dport), ())
        self.parked_count -= len(waiting)
        for sock, sport in waiting:
            listener = self.worker.listeners.find(self.worker.vip, dport) if admitted else None
            if listener is None:
                self._refuse(sock, "hello_no_lease")
            else:
                self.worker.count("accepted_warm")
                if self.worker.dress is not None:
                    self.worker.dress(sock, dport)
                row = Row(False, True, 0, src, sport, self.worker.vip, dport, time.monotonic())
                listener.deliver(sock, row, 0)

    def _ask_pair(self, key_id: int, src: bytes, sock: socket.socket, raw: bytes) -> None:
        if self.asking_count >= ASKING:
            self._refuse(sock, "hello_crowded")
            return
        self.asking_count += 1
        waiting = self.asking.get((key_id, src))
        if waiting is None:
            self.asking[(key_id, src)] = waiting = []
            self.worker.tell(op="pair", key_id=key_id, vip=wire.unpack_addr(src))
        waiting.append((sock, raw))

    def on_pair(self, key_id: int, src: bytes, key: bytes | None) -> None:
        """The supervisor's answer: the pair's key, or None."""
        if key is not None:
            self.pairs[(key_id, src)] = Pair(wire.keyed_mac(key))
        waiting = self.asking.pop((key_id, src), [])
        self.asking_count -= len(waiting)
        for sock, raw in waiting:
            if key is None:
                self._refuse(sock, "hello_unknown_pair")
            else:
                self.hello(sock, raw)

    def on_unpair(self, key_ids: set[int]) -> None:
        for key in [key for key in self.pairs if key[0] in key_ids]:
            del self.pairs[key]

    # --- prepared connections -----------------------------------------------
    def _prepare(self, sock: socket.socket, pair: Pair, nonce: int, key: Key) -> None:
        listener = self.worker.listeners.find(self.worker.vip, key[2])
        status = wire.R_NONE
        if listener is None:
            status = wire.R_NOT_LISTENING
        elif (
            listener.full
            or len(self.prepared) >= PREPARED
            or self.prepared_of.get(key[0], 0) >= PREPARED_EACH
        ):
            status = wire.R_LIMIT
        elif (
            key in self.delivered
            or (key in self.held and time.monotonic() - self.held[key].since > PREPARE_S)
            or time.monotonic() - listener.ours_since < RECOVERED_S
        ):
            status = wire.R_NOT_READY
        elif self.worker.tag is not None and not self.worker.tag(sock, cookie_of(sock)):
            status = wire.R_NOT_TAGGED
        if self.worker.dress is not None:
            self.worker.dress(sock, key[2])
        old = self.prepared.get(key)
        if old is not None and status == wire.R_NONE:
            self._end_prepared(key, old)
        period = self.worker.bounds["lease_s"]
        try:
            sent = sock.send(
                wire.ack(pair.mac, status, int(period * 1000), nonce),
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
            )
        except OSError:
            sent = 0
        if status != wire.R_NONE or sent != wire.ACK_SIZE:
            self.worker.count("prepare_refused")
            sock.close()
            return
        self._acknowledge_at_once(sock)
        timer = self.worker.loop.after(COMMIT_S, lambda: self._expire(key, sock))
        self.prepared[key] = Prepared(sock, pair, nonce, timer)
        self.prepared_of[key[0]] = self.prepared_of.get(key[0], 0) + 1
        self.worker.loop.add(
            sock.fileno(), IN | RDHUP, lambda mask: self._on_commit(key, sock, mask)
        )

    @staticmethod
    def _acknowledge_at_once(sock: socket.socket) -> None:
        """Nagle holds the application's first small write until COMMIT is acknowledged,
        and we, having sent an ACK record, would delay that by 40 ms."""
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _unlist(self, key: Key) -> None:
        del self.prepared[key]
        left = self.prepared_of[key[0]] - 1
        if left:
            self.prepared_of[key[0]] = left
        else:
            del self.prepared_of[key[0]]

    def _end_prepared(self, key: Key, entry: Prepared) -> None:
        """Close a prepared connection that will not be delivered."""
        entry.timer.cancel()
        self._unlist(key)
        if not entry.committed:
            self.worker.loop.remove(entry.sock.fileno())
        reset(entry.sock)
        self._unpark(key[0], key[2], admitted=False)

    def _expire(self, key: Key, sock: socket.socket) -> None:
        entry = self.prepared.get(key)
        if entry is not None and entry.sock is sock:
            self.worker.count("prepare_late")
            self._end_prepared(key, entry)
            self._release(key)

    def _on_commit(self, key: Key, sock: socket.socket, mask: int) -> None:
        entry = self.prepared.get(key)
        if entry is None or entry.sock is not sock:
            return
        # Peek until all of it is there: the bytes behind it are the application's.
        try:
            raw = sock.recv(wire.COMMIT_SIZE, socket.MSG_DONTWAIT | socket.MSG_PEEK)
            # (A cut-off one stays readable for ever: that is an error like any other.)
            if 0 < len(raw) < wire.COMMIT_SIZE and not mask & (HUP | RDHUP):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wire.COMMIT_SIZE)
                return
            if raw:
                sock.recv(wire.COMMIT_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            raw = b""
        if not raw:
            self._end_prepared(key, entry)
            self._release(key)
            return
        try:
            entry.committed = wire.parse_commit(entry.pair.mac, raw, entry.nonce)
        except wire.WireError:
            self.worker.count("commit_malformed")
            self._end_prepared(key, entry)
            self._release(key)
            return
        self.worker.loop.remove(sock.fileno())
        self._acknowledge_at_once(sock)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        entry.timer.cancel()
        if key in self.held:
            self._match(key, entry)
        else:
            entry.timer = self.worker.loop.after(MATCH_S, lambda: self._expire(key, sock))

    def _match(self, key: Key, entry: Prepared) -> None:
        """Both halves are here: the pair is admitted, the host connection counts."""
        held = self.held[key]
        listener = held.listener
        self._drop_held(key, held)
        entry.timer.cancel()
        self._unlist(key)
        src, sport, dport = key
        self.admitted[(src, dport)] = time.monotonic() + self.worker.bounds["lease_s"] + 1.0
        if self.worker.filters is not None:
            self.worker.filters.admitted(src, dport)
        if entry.committed == wire.C_RENEW:
            self.worker.count("admission_renewed")
            entry.sock.close()
        else:
            self.worker.count("accepted_cold")
            row = Row(False, True, 0, src, sport, self.worker.vip, dport, time.monotonic())
            listener.deliver(entry.sock, row, 0)
        self._unpark(src, dport, admitted=True)

    # --- overlay connections -------------------------------------------------
    def overlay(self, listener: Listener, sock: socket.socket, src: bytes, sport: int) -> None:
        """The overlay listener has accepted *sock* from (src, sport)."""
        key = (src, sport, listener.port)
        self.delivered.discard(key)
        if self.worker.gate.forbids_overlay(sock, src, listener.port):
            self._forbid(sock, src, sport, listener.port, slim=False)
            return
        prepared = self.prepared.get(key)
        if prepared is None and not self.worker.may_be_slim(src):
            self._real(listener, sock, key)
            return
        if key in self.held:  # a port used again: the older one is no shadow any more
            self._release(key)
        if len(self.held) >= HELD:
            self.worker.count("held_crowded")
            reset(sock)
            return
        held = Held(sock, listener, time.monotonic())
        self.held[key] = held
        if prepared is not None and prepared.committed:
            self._match(key, prepared)
            return
        self.worker.loop.add(sock.fileno(), IN, lambda mask: self._on_held(key, sock))
        held.timer = self.worker.loop.after(HOLD_S, lambda: self._verdict_late(key, sock))
        if prepared is None:
            self._query(key, held)

    def _query(self, key: Key, held: Held) -> None:
        self.queries.pop(held.query, None)
        held.query = self.ask(*key)
        self.queries[held.query] = key

    def ask(self, src: bytes, sport: int, dport: int) -> int:
        """Ask *src*'s worker whether (sport, dport) is a probe; the number of the question."""
        self.query_id += 1
        self.worker.tell(
            op="query", id=self.query_id, vip=wire.unpack_addr(src), sport=sport,
            dst=wire.unpack_addr(self.worker.vip), dport=dport,
        )  # fmt: skip
        return self.query_id

    def on_answer(self, query: int, probe: bool) -> None:
        key = self.queries.pop(query, None)
        if key is not None and not probe and key not in self.prepared:
            self._release(key)

    def _verdict_late(self, key: Key, sock: socket.socket) -> None:
        held = self.held.get(key)
        if held is None or held.sock is not sock:
            return
        age = time.monotonic() - held.since
        if age < HOLD_MAX_S:
            # One that prepares is trusted to decide (it closes after OFFER_S at the
            # latest); of the others we ask again whether they still mean to.
            held.timer = self.worker.loop.after(HOLD_S, lambda: self._verdict_late(key, sock))
            if key not in self.prepared:
                self._query(key, held)
            return
        # A client that never looks whether its connect is done (it waits for the
        # server's first byte, say) never asks for the swap: the overlay it is.
        self.worker.count("held_late")
        prepared = self.prepared.get(key)
        if prepared is not None:
            self._end_prepared(key, prepared)
        self._release(key)

    def _on_held(self, key: Key, sock: socket.socket) -> None:
        held = self.held.get(key)
        if held is None or held.sock is not sock:
            return
        try:
            seen = sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            seen = b""
        prepared = self.prepared.get(key)
        if not seen and prepared is not None:
            # The client has let go of it: its COMMIT is on the way, or its close.
            self.worker.loop.remove(sock.fileno())
            return
        # Data can only come from a client that keeps the overlay connection.
        if prepared is not None:
            self._end_prepared(key, prepared)
        self._release(key)

    def _drop_held(self, key: Key, held: Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
        del self.held[key]
        self.queries.pop(held.query, None)
        self.worker.loop.remove(held.sock.fileno())
        reset(held.sock)

    def _release(self, key: Key) -> None:
        """A held overlay connection is the real one."""
        held = self.held.pop(key, None)
        if held is None:
            return
        if held.timer is not None:
            held.timer.cancel()
        self.queries.pop(held.query, None)
        self.worker.loop.remove(held.sock.fileno())
        self._real(held.listener, held.sock, key)

    def _real(self, listener: Listener, sock: socket.socket, key: Key) -> None:
        if listener.channel.fileno() < 0:
            reset(sock)
            return
        if self.worker.may_be_slim(key[0]):
            self.delivered.add(key)
        self.worker.count("accepted_overlay")
        row = Row(
            False, False, wire.R_NONE, key[0], key[1], self.worker.vip, key[2], time.monotonic()
        )
        listener.deliver(sock, row, wire.F_OVERLAY)

    # --- endings --------------------------------------------------------------
    def prune(self) -> None:
        """Drop admissions that have run out."""
        now = time.monotonic()
        self.admitted = {key: until for key, until in self.admitted.items() if until > now}
        self.delivered.prune()

    def purge(self, forbids: Callable[[bytes, int], bool]) -> None:
        """A new policy *forbids* some (source, our port): what waits for its delivery is reset,
        and peers with a lease of such a kind lose it."""
        for key, held in list(self.held.items()):
            if self.worker.gate.forbids_overlay(held.sock, key[0], key[2]):
                self.worker.count("refused_ingress")
                self._note_refusal(held.sock, *key, slim=False)
                self._drop_held(key, held)
        for key in [key for key in self.prepared if forbids(key[0], key[2])]:
            self.worker.count("refused_ingress")
            self._note_refusal(self.prepared[key].sock, *key, slim=True)
            self._end_prepared(key, self.prepared[key])
        for key2, waiting in list(self.parked.items()):
            if forbids(*key2):
                del self.parked[key2]
                self.parked_count -= len(waiting)
                for sock, sport in waiting:
                    self._forbid(sock, key2[0], sport, key2[1])
        lost: dict[int, list[str]] = {}
        for src, port in [key for key in self.admitted if forbids(*key)]:
            del self.admitted[(src, port)]
            lost.setdefault(port, []).append(wire.unpack_addr(src))
        for port, vips in lost.items():
            for start in range(0, len(vips), WITHDRAWN):
                self.worker.tell(op="withdraw", port=port, vips=vips[start : start + WITHDRAWN])

    def forget(self, listener: Listener) -> None:
        """A listener is gone: what waits for it is reset."""
        for key in [key for key, held in self.held.items() if held.listener is listener]:
            self._drop_held(key, self.held[key])
        if listener.port in self.worker.listeners.by_port:
            return
        for key in [key for key in self.prepared if key[2] == listener.port]:
            self._end_prepared(key, self.prepared[key])
