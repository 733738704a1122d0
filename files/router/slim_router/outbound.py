# SPDX-License-Identifier: Apache-2.0
"""Connections that leave this endpoint: leases, attempts, renewals.

Warm: a live lease gives a fresh host connection at once, with its hello queued
in front of whatever the application writes. Cold: the application's own overlay
connect goes out while a host connection is prepared beside it.
"""

from __future__ import annotations

import errno
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import wire
from .loop import IN, OUT, Timer
from .peers import Lease, Location
from .row import Row
from .sockets import cookie_of, reset

if TYPE_CHECKING:
    from .shims import Shim
    from .worker import Worker

TCP_FASTOPEN_NO_COOKIE = 34  # include/uapi/linux/tcp.h
TCP_SYNCNT = 7
NOT_FOUND_S = 2.0  # how long "not a peer of ours" is believed
PLAIN_S = 0.25  # how long "listens, but not through Slim" is believed
ATTEMPTS = 4096
OFFERED = 1024  # SWAPPED without COMMITTED
MARGIN_US = 3000  # what a warm answer may take
CLOCKS_DIFFER_US = 60_000_000  # the shim lives in another time namespace
# A prepared connection is offered no later than this after its PREPARE: the other
# side, which began to hold the overlay connection at about that time, gives up only
# well after (inbound.HOLD_MAX_S), so that COMMIT never meets a reset.
OFFER_S = 1.0
LINGER_S = 150.0  # an attempt nobody asks about any more
FLAGS = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
CLOEXEC = socket.SOCK_CLOEXEC


@dataclass(slots=True, eq=False)
class Attempt:
    """A cold connect (or a renewal of admission) and its prepared host connection."""

    number: int
    owner: Shim | None
    peer: bytes
    pport: int
    family: int
    nonblock: bool
    app_cookie: int
    sport: int = 0
    location: Location | None = None
    sock: socket.socket | None = None
    nonce: int = 0
    answer: bytes = b""
    lease_ms: int = 0
    ready: bool = False
    failed: int = 0
    swap_seq: int | None = None
    swap_shim: Shim | None = None
    timer: Timer | None = None
    expiry: Timer | None = None  # of the prepared host connection
    expired: bool = False
    overlay: socket.socket | None = None  # ours, when this is a renewal
    overlay_up: bool = False
    forbidden: bool = False  # by a policy that came after it had begun


class Outbound:
    """The connecting half of a worker."""

    def __init__(self, worker: Worker, ports: tuple[int, int]) -> None:
        """*ports* is the endpoint's own ephemeral range."""
        self.worker = worker
        self.low, self.high = ports
        self.locations: dict[bytes, Location] = {}
        self.not_found: dict[bytes, tuple[int, float]] = {}
        self.plain: dict[tuple[bytes, int], float] = {}
        self.leases: dict[tuple[bytes, int], Lease] = {}
        self.attempts: dict[int, Attempt] = {}
        self.offered: dict[int, Attempt] = {}  # by cookie: SWAPPED, not committed yet
        self.located: dict[bytes, list[int]] = {}  # attempts that wait for a location

    # --- warm ------------------------------------------------------------------
    def connect(
        self,
        shim: Shim,
        seq: int,
        flags: int,
        peer: bytes,
        pport: int,
        lport: int,
        family: int,
        cookie: int,
        deadline_us: int,
    ) -> None:
        """CONNECT: answer WARM, COLD or PLAIN, without ever waiting."""
        now = time.monotonic()
        late_us = now * 1e6 + MARGIN_US - deadline_us
        # The shim is about to give up, or has: a host connection made now would
        # reach the peer's application with nobody behind it.
        late = 0 < late_us < CLOCKS_DIFFER_US
        lease = self.leases.get((peer, pport))
        if lease is not None and not late:
            # (there are leases for what the policy allows only: see purge)
            if lease.until > now:
                self._warm(shim, seq, flags, peer, pport, lport, family, cookie, lease, now)
                return
            del self.leases[(peer, pport)]
        if self.worker.gate.forbids_out(peer, pport):
            self._refuse(shim, seq, peer, lport if flags & wire.F_BOUND else 0, pport)
            return
        if late:
            self._plain(shim, seq, cookie, peer, pport, wire.R_NOT_READY, now)
            return
        reason = self._plain_reason(peer, pport, now)
        if reason:
            self._plain(shim, seq, cookie, peer, pport, reason, now)
            return
        if len(self.attempts) >= ATTEMPTS or len(self.located) >= ATTEMPTS:
            self._plain(shim, seq, cookie, peer, pport, wire.R_LIMIT, now)
            return
        attempt = Attempt(
            random.getrandbits(63), shim, peer, pport, family, bool(flags & wire.F_NONBLOCK), cookie
        )
        attempt.timer = self.worker.loop.after(LINGER_S, lambda: self.cancel(attempt))
        self.attempts[attempt.number] = attempt
        self.worker.table.begin(
            cookie, Row(True, False, wire.R_NO_ROUTER, self.worker.vip, 0, peer, pport, now)
        )
        attempt.location = self.locations.get(peer)
        if attempt.location is None:
            self._locate(attempt)
        shim.reply(wire.message(wire.COLD, seq, value=attempt.number))

    def _warm(
        self, shim: Shim, seq: int, flags: int, peer: bytes, pport: int, lport: int,
        family: int, cookie: int, lease: Lease, now: float,
    ) -> None:  # fmt: skip
        worker = self.worker
        sport = lport if flags & wire.F_BOUND else self._port(lease, peer, pport)
        if not sport:
            self._plain(shim, seq, cookie, peer, pport, wire.R_LIMIT, now)
            return
        location = lease.location
        assert location.mac is not None
        location.nonce = nonce = location.nonce + 1
        record = wire.hello(
            location.mac, wire.K_DELIVER, location.key_id, nonce, worker.vip, peer, sport, pport
        )
        kind = (
            socket.SOCK_STREAM | CLOEXEC | (socket.SOCK_NONBLOCK if flags & wire.F_NONBLOCK else 0)
        )
        try:
            sock = socket.socket(family, kind, 6)
        except OSError:
            self._plain(shim, seq, cookie, peer, pport, wire.R_LIMIT, now)
            return
        host = 0
        if worker.tag is not None:
            # Before the hello: the peer's application must not meet what nobody gets.
            host = cookie_of(sock)
            if not worker.tag(sock, host):
                sock.close()
                self._plain(shim, seq, cookie, peer, pport, wire.R_NOT_TAGGED, now)
                return
        if worker.dress is not None:
            worker.dress(sock, pport)  # the handshake belongs to it
        try:
            sock.setsockopt(6, TCP_FASTOPEN_NO_COOKIE, 1)
            sent = sock.sendto(record, FLAGS, location.target(family))
        except OSError:
            sent = 0
        if sent != wire.HELLO_SIZE:
            # No room for the hello in the handshake (no TCP Fast Open, no ports,
            # no route): the overlay serves, and proves the pair anew.
            sock.close()
            self.leases.pop((peer, pport), None)
            worker.count("connect_host_failed")
            self._plain(shim, seq, cookie, peer, pport, wire.R_HOST_FAILED, now)
            return
        host = host or int.from_bytes(sock.getsockopt(1, 57, 8), "little")
        # First: a successor of ours must know of whatever is handed over. (The lease's own
        # objects: thousands of rows need not keep copies.)
        row = Row(True, True, 0, worker.vip, sport, location.vip, lease.port, now)
        worker.table.add(host, row)
        # The application waits for this: what it need not wait for comes after.
        shim.reply(
            wire.MSG.pack(
                wire.MSG_MAGIC, 1, wire.WARM, seq, 0, 0, worker.vip, peer, sport, pport,
                family, 0, host, 0, wire.NO_COMMIT,
            ),
            sock.fileno(),
        )  # fmt: skip
        # Two SYNs, three seconds: a dead host costs no more, then the overlay.
        sock.setsockopt(6, TCP_SYNCNT, 1)
        self._named(host, row, sock, location)
        sock.close()
        worker.counters["connect_warm"] += 1
        if lease.until - now < lease.period / 2 and not lease.renewing:
            self._renew(lease, peer, pport)

    def _named(self, cookie: int, row: Row, sock: socket.socket, location: Location) -> None:
        """Keep what the host knows our connection by."""
        here: tuple[str, int] = sock.getsockname()[:2]
        there = (location.address, location.port)
        self.worker.table.set_name(cookie, here, there)
        if self.worker.flows is not None:
            self.worker.flows.opened_out(cookie, row, here, there)

    def _port(self, lease: Lease, peer: bytes, pport: int) -> int:
        """A virtual source port that no live connection to this destination has; 0: none left."""
        names = self.worker.table.names
        port = lease.next_port
        for _unused in range(self.low, self.high + 1):
            port = port + 1 if port < self.high else self.low
            if (peer, pport, port) not in names:
                lease.next_port = port
                return port
        return 0

    def prune(self) -> None:
        """Forget what has run out."""
        now = time.monotonic()
        self.leases = {key: lease for key, lease in self.leases.items() if lease.until > now}
        self.plain = {key: until for key, until in self.plain.items() if until > now}
        self.not_found = {vip: word for vip, word in self.not_found.items() if word[1] > now}

    def _plain_reason(self, peer: bytes, pport: int, now: float) -> int:
        if not self.worker.covers(peer):
            return wire.R_UNKNOWN_PEER
        if peer == self.worker.vip:
            return wire.R_OWN_ADDRESS
        missing = self.not_found.get(peer)
        if missing is not None:
            if missing[1] > now:
                return missing[0]
            del self.not_found[peer]
        until = self.plain.get((peer, pport))
        if until is not None:
            if until > now:
                return wire.R_NOT_LISTENING
            del self.plain[(peer, pport)]
        return 0

    def _plain(
        self, shim: Shim, seq: int, cookie: int, peer: bytes, pport: int, reason: int, now: float
    ) -> None:
        self.worker.count("connect_overlay_" + wire.REASONS[reason].replace("-", "_"))
        self._overlay_row(cookie, peer, pport, reason, now)
        shim.reply(wire.message(wire.PLAIN, seq, error=reason))

    def _refuse(self, shim: Shim, seq: int, peer: bytes, lport: int, pport: int) -> None:
        """The policy forbids it. (A shim of before REFUSED takes the overlay all the same.)"""
        self.worker.count("refused_egress")
        if self.worker.flows is not None:
            self.worker.flows.refused_out(peer, lport, pport)
        shim.reply(wire.message(wire.REFUSED, seq, error=errno.ECONNREFUSED))

    def purge(self, forbids: Callable[[bytes, int], bool]) -> bool:
        """A new policy *forbids* some (destination, port): what leads there ends. May an
        application be connecting to one over the overlay at this moment?"""
        for key in [key for key in self.leases if forbids(*key)]:
            del self.leases[key]
        for cookie in [c for c, a in self.offered.items() if forbids(a.peer, a.pport)]:
            del self.offered[cookie]
        under_way = False
        for attempt in [a for a in self.attempts.values() if forbids(a.peer, a.pport)]:
            if attempt.overlay is not None:  # a renewal, which is our own
                self._finish(attempt)
                continue
            under_way = True
            attempt.forbidden = True
            self._fail(attempt, wire.R_REFUSED)
        return under_way

    def _overlay_row(self, cookie: int, peer: bytes, pport: int, reason: int, now: float) -> None:
        row = self.worker.table.rows.get(cookie)
        if (row is not None and row.slim) or not self.worker.covers(peer):
            return  # the cookie is what the shim says it is
        made = Row(True, False, reason, self.worker.vip, 0, peer, pport, now)
        self.worker.table.add(cookie, made)
        if self.worker.flows is not None:
            self.worker.flows.fallback(cookie, made)

    # --- cold ------------------------------------------------------------------
    def _locate(self, attempt: Attempt) -> None:
        waiting = self.located.setdefault(attempt.peer, [])
        if len(waiting) >= ATTEMPTS:
            waiting[:] = [number for number in waiting if number in self.attempts]
        waiting.append(attempt.number)
        if len(waiting) == 1:
            self.worker.tell(op="locate", vip=wire.unpack_addr(attempt.peer))

    def on_located(self, location: Location) -> None:
        """The supervisor knows (or knows not) where a peer is."""
        vip = location.vip
        if location.found:
            self.locations[vip] = location
            self.not_found.pop(vip, None)
        else:
            self.locations.pop(vip, None)
            self._forget_leases(vip)
            if len(self.not_found) > 4096:
                self.not_found.clear()
            self.not_found[vip] = (location.reason, time.monotonic() + NOT_FOUND_S)
        for number in self.located.pop(vip, []):
            attempt = self.attempts.get(number)
            if attempt is None:
                continue
            if not location.found:
                self._fail(attempt, location.reason)
                continue
            attempt.location = location
            if attempt.sport and not attempt.forbidden:
                self._prepare(attempt)

    def on_unlocate(self, vips: list[bytes] | None) -> None:
        """Peers are elsewhere, or out of reach: what we knew of them is void."""
        for vip in list(self.locations) if vips is None else vips:
            self.locations.pop(vip, None)
            self._forget_leases(vip)
        if vips is None:
            self.not_found.clear()
        else:
            for vip in vips:
                self.not_found.pop(vip, None)

    def _forget_leases(self, vip: bytes) -> None:
        for key in [key for key in self.leases if key[0] == vip]:
            del self.leases[key]

    def on_withdraw(self, vip: bytes, port: int) -> None:
        self.leases.pop((vip, port), None)

    def begin(self, number: int, sport: int) -> None:
        """BEGIN: the overlay connect is on its way from *sport*."""
        attempt = self.attempts.get(number)
        if attempt is None or attempt.sport or not sport:
            return
        attempt.sport = sport
        if attempt.forbidden:
            self.worker.gate.watch()
            return
        if attempt.location is not None:
            self._prepare(attempt)

    def probing(self, peer: bytes, pport: int, sport: int) -> bool | None:
        """Is an attempt under way for this tuple? None: one that has no port yet."""
        unknown = False
        for attempt in self.attempts.values():
            if attempt.peer == peer and attempt.pport == pport:
                if attempt.sport == sport:
                    return not attempt.failed
                unknown = unknown or not attempt.sport
        return None if unknown else False

    def _prepare(self, attempt: Attempt) -> None:
        location = attempt.location
        assert location is not None and location.mac is not None
        kind = socket.SOCK_STREAM | CLOEXEC | (socket.SOCK_NONBLOCK if attempt.nonblock else 0)
        attempt.nonce = location.next_nonce()
        record = wire.hello(
            location.mac, wire.K_PREPARE, location.key_id, attempt.nonce,
            self.worker.vip, attempt.peer, attempt.sport, attempt.pport,
        )  # fmt: skip
        try:
            sock = attempt.sock = socket.socket(attempt.family, kind, 6)
            if self.worker.dress is not None:
                self.worker.dress(sock, attempt.pport)
            sock.setsockopt(6, TCP_FASTOPEN_NO_COOKIE, 1)
            sock.setsockopt(6, TCP_SYNCNT, 1)
            sent = sock.sendto(record, FLAGS, location.target(attempt.family))
        except OSError:
            sent = 0
        if sent != wire.HELLO_SIZE:
            self._fail(attempt, wire.R_HOST_FAILED)
            return
        self.worker.loop.add(sock.fileno(), IN, lambda mask: self._on_ack(attempt, mask))
        attempt.expiry = self.worker.loop.after(OFFER_S, lambda: self._expired(attempt))

    def _expired(self, attempt: Attempt) -> None:
        """Nobody has asked for it: the overlay's SYN is repeated, or its owner never looks."""
        if attempt.overlay is not None:
            self._renewal_over(attempt, refused=False)
        elif attempt.sock is not None:
            attempt.expired = True
            self._fail(attempt, wire.R_NOT_READY)

    def _on_ack(self, attempt: Attempt, mask: int) -> None:
        sock, location = attempt.sock, attempt.location
        assert sock is not None and location is not None and location.mac is not None
        if attempt.ready:  # the other side gave up on it
            self._fail(attempt, wire.R_REFUSED)
            return
        try:
            raw = sock.recv(wire.ACK_SIZE - len(attempt.answer), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            self._fail(attempt, wire.R_HOST_FAILED)
            return
        attempt.answer += raw
        if raw and len(attempt.answer) < wire.ACK_SIZE:
            return
        try:
            status, attempt.lease_ms = wire.parse_ack(location.mac, attempt.answer, attempt.nonce)
        except wire.WireError:
            self._fail(attempt, wire.R_REFUSED)
            return
        if status:
            self._fail(attempt, status if status in wire.REASONS else wire.R_REFUSED)
            return
        attempt.ready = True
        if attempt.swap_shim is not None:
            self._swapped(attempt)
        elif attempt.overlay_up:
            self._renewed(attempt)

    def _fail(self, attempt: Attempt, reason: int) -> None:
        """No host connection for this attempt; the overlay one goes on."""
        attempt.failed = reason
        self._close_host(attempt)
        if attempt.swap_shim is not None:
            self._keep(attempt)
        elif attempt.overlay is not None and attempt.overlay_up:
            self._renewal_over(attempt, refused=True)

    def _close_host(self, attempt: Attempt) -> None:
        if attempt.expiry is not None:
            attempt.expiry.cancel()
            attempt.expiry = None
        attempt.ready = False
        if attempt.sock is not None:
            self.worker.loop.remove(attempt.sock.fileno())
            attempt.sock.close()
            attempt.sock = None

    def swap(self, shim: Shim, seq: int, number: int, bound_us: int) -> None:
        """SWAP: the overlay connect is complete; answer within *bound_us*."""
        attempt = self.attempts.get(number)
        if attempt is None or attempt.swap_shim is not None:
            shim.reply(wire.message(wire.KEEP, seq, error=wire.R_NOT_READY))
            return
        attempt.swap_shim, attempt.swap_seq = shim, seq
        if attempt.expired and not attempt.forbidden:
            # The overlay took longer than we offer: once more, now that it is through.
            attempt.expired, attempt.failed, attempt.answer = False, 0, b""
            self._prepare(attempt)
            if attempt.number not in self.attempts:
                return
        if attempt.ready:
            self._swapped(attempt)
        elif attempt.failed:
            self._keep(attempt)
        else:
            if attempt.timer is not None:
                attempt.timer.cancel()
            bound = min(bound_us, 1_000_000) / 1e6
            attempt.timer = self.worker.loop.after(
                bound, lambda: self._fail(attempt, wire.R_NOT_READY)
            )

    def _swapped(self, attempt: Attempt) -> None:
        worker, sock, location, shim = (
            self.worker,
            attempt.sock,
            attempt.location,
            attempt.swap_shim,
        )
        assert sock is not None and location is not None and location.mac is not None
        assert shim is not None and attempt.swap_seq is not None
        cookie = cookie_of(sock)
        if worker.tag is not None and not worker.tag(sock, cookie):
            self._fail(attempt, wire.R_NOT_TAGGED)
            return
        worker.loop.remove(sock.fileno())
        now = time.monotonic()
        row = Row(True, True, 0, worker.vip, attempt.sport, attempt.peer, attempt.pport, now)
        worker.table.add(cookie, row)
        self._named(cookie, row, sock, location)
        shim.reply(
            wire.message(
                wire.SWAPPED, attempt.swap_seq, local=worker.vip, peer=attempt.peer, lport=attempt.sport,
                pport=attempt.pport, family=attempt.family, cookie=cookie,
                commit=wire.commit(location.mac, wire.C_DELIVER, attempt.nonce),
            ),
            sock.fileno(),
        )  # fmt: skip
        # The lease begins when the shim has written COMMIT: until then the other
        # side does not know this pair as admitted.
        if len(self.offered) >= OFFERED:  # by a shim that takes them and never says so
            del self.offered[next(iter(self.offered))]
        self.offered[cookie] = attempt
        worker.count("connect_cold")
        self._finish(attempt)

    def committed(self, cookie: int) -> None:
        """COMMITTED: the application talks over the host connection that we offered."""
        attempt = self.offered.pop(cookie, None)
        if attempt is None or attempt.location is None:
            return
        now = time.monotonic()
        period = attempt.lease_ms / 1000
        self.leases[(attempt.peer, attempt.pport)] = Lease(
            attempt.location, attempt.pport, now + period, period,
            random.randint(self.low, self.high),
        )  # fmt: skip

    def _keep(self, attempt: Attempt) -> None:
        assert attempt.swap_shim is not None and attempt.swap_seq is not None
        now = time.monotonic()
        if attempt.failed == wire.R_NOT_LISTENING:
            if len(self.plain) > 4096:
                self.plain.clear()
            self.plain[(attempt.peer, attempt.pport)] = now + PLAIN_S
        self.worker.count("connect_overlay_" + wire.REASONS[attempt.failed].replace("-", "_"))
        self._overlay_row(attempt.app_cookie, attempt.peer, attempt.pport, attempt.failed, now)
        attempt.swap_shim.reply(wire.message(wire.KEEP, attempt.swap_seq, error=attempt.failed))
        if attempt.forbidden:
            self.worker.gate.watch()
        self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
        self._close_host(attempt)
        if attempt.overlay is not None:
            self.worker.loop.remove(attempt.overlay.fileno())
            reset(attempt.overlay)
            attempt.overlay = None
        self.attempts.pop(attempt.number, None)
        self.worker.table.end(attempt.app_cookie)

    def cancel(self, attempt: Attempt | None) -> None:
        """Nobody wants it any more."""
        if attempt is not None:
            self._finish(attempt)

    def warm_failed(self, cookie: int) -> None:
        """CANCEL of a warm connection: the host path to that peer does not work now."""
        # The row stays until the socket is gone: what a shim says must not hide it.
        row = self.worker.table.rows.get(cookie)
        if self.offered.pop(cookie, None) is not None:
            return
        if row is not None and row.outgoing and row.slim:
            self.leases.pop((row.dst, row.dport), None)
            self.worker.count("connect_warm_failed")
            if self.worker.flows is not None:  # (which socket of its own it uses, it does not say)
                self.worker.flows.fallback(
                    0, row._replace(slim=False, why=wire.R_HOST_FAILED, since=time.monotonic())
                )

    def abandon(self, shim: Shim) -> None:
        """A shim connection is gone, and with it what it was waiting for."""
        for attempt in [a for a in self.attempts.values() if shim in (a.owner, a.swap_shim)]:
            self._finish(attempt)
        for cookie in [c for c, a in self.offered.items() if shim in (a.owner, a.swap_shim)]:
            del self.offered[cookie]

    # --- renewal of admission ----------------------------------------------------
    def prove(self, peer: bytes, pport: int) -> None:
        """Renew the admission of a pair with live connections, whether or not it has a lease;
        not before half of one would be gone."""
        lease = self.leases.get((peer, pport))
        if lease is not None:
            if not lease.renewing and lease.until - time.monotonic() < lease.period / 2:
                self._renew(lease, peer, pport)
            return
        location = self.locations.get(peer)
        if location is None:
            self.worker.tell(op="locate", vip=wire.unpack_addr(peer))
        elif self.worker.gate.forbids_out(peer, pport) or any(
            attempt.overlay is not None and (attempt.peer, attempt.pport) == (peer, pport)
            for attempt in self.attempts.values()
        ):
            return
        else:
            period = self.worker.bounds["lease_s"]
            self._renew(Lease(location, pport, 0.0, period, self.low), peer, pport)

    def _renew(self, lease: Lease, peer: bytes, pport: int) -> None:
        """Prove again, over the overlay, that the site's filters permit the pair."""
        lease.renewing = True
        overlay = self.worker.endpoint_socket(
            socket.AF_INET6 if self._is_v6(peer) else socket.AF_INET
        )
        attempt = Attempt(
            random.getrandbits(63), None, peer, pport, int(socket.AF_INET), True, 0,
            location=lease.location, overlay=overlay,
        )  # fmt: skip
        self.attempts[attempt.number] = attempt
        attempt.timer = self.worker.loop.after(
            lease.period, lambda: self._renewal_over(attempt, refused=False)
        )
        error = overlay.connect_ex((wire.unpack_addr(peer), pport))
        if error not in (0, 115):  # EINPROGRESS
            attempt.overlay_up = True
            self._renewal_over(attempt, refused=True)
            return
        attempt.sport = overlay.getsockname()[1]
        self.worker.loop.add(overlay.fileno(), OUT, lambda mask: self._on_renewal(attempt))
        self._prepare(attempt)

    @staticmethod
    def _is_v6(addr: bytes) -> bool:
        return addr[:12] != b"\0\0\0\0\0\0\0\0\0\0\xff\xff"

    def _on_renewal(self, attempt: Attempt) -> None:
        assert attempt.overlay is not None
        error = attempt.overlay.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.worker.loop.remove(attempt.overlay.fileno())
        attempt.overlay_up = True
        if error:
            self._renewal_over(attempt, refused=error != 110)  # ETIMEDOUT
        elif attempt.ready:
            self._renewed(attempt)
        elif attempt.failed:
            self._renewal_over(attempt, refused=True)

    def _renewed(self, attempt: Attempt) -> None:
        assert (
            attempt.sock is not None
            and attempt.location is not None
            and attempt.location.mac is not None
        )
        lease = self.leases.get((attempt.peer, attempt.pport))
        try:
            attempt.sock.send(
                wire.commit(attempt.location.mac, wire.C_RENEW, attempt.nonce), socket.MSG_DONTWAIT
            )
        except OSError:
            self._renewal_over(attempt, refused=False)
            return
        if lease is not None:
            lease.until = time.monotonic() + attempt.lease_ms / 1000
            lease.renewing = False
        self._finish(attempt)

    def _renewal_over(self, attempt: Attempt, refused: bool) -> None:
        """It failed. A refusal ends the lease; silence lets it run out."""
        lease = self.leases.get((attempt.peer, attempt.pport))
        self.worker.count("admission_refused" if refused else "admission_silent")
        if lease is not None:
            lease.renewing = False
            if refused:
                del self.leases[(attempt.peer, attempt.pport)]
        self._finish(attempt)
