# SPDX-License-Identifier: Apache-2.0
"""Trunks: the authenticated control connections to the routers of other hosts.

Mutual TLS 1.3; who a peer is, its certificate's DNS name says, and that name
must be in the map. An address proves nothing. Frames are handled as they come,
without a task per trunk, since a QUERY lies on the path of every cold connect;
a budget per trunk keeps one peer from stalling the others.

What the frames mean is directory.py's business; it is told through
:class:`TrunkEvents`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import secrets
import socket
import ssl
import time
from collections import Counter
from typing import NamedTuple, Protocol

from . import frames, log
from .bucket import Bucket
from .config import FleetMap, HostSpec, Key, RouterConfig, Tls
from .frames import (
    Announce,
    Answer,
    Bye,
    Frame,
    FrameError,
    Idle,
    Open,
    Ping,
    Pong,
    Query,
    Withdraw,
)
from .wire import WireError, unpack_addr

EAGER_HOSTS = 64  # maps of up to this many hosts are dialled at start
EAGER_WAIT_S = 0.25  # head start of the side whose connection would be kept
REDIAL_FIRST_S, REDIAL_MAX_S = 0.05, 5.0
STEADY_S = 5.0  # a trunk that lived this long starts the pauses anew
HANDSHAKE_S = 5.0
OPEN_S = 5.0
CONNECT_S = 5.0
CLOSE_S = 1.0
UNPAIR_GRACE_S = 1.0  # hellos that were under way when their trunk ended are still good
PENDING_MAX, PENDING_PER_ADDRESS = 128, 8  # connections that have not shown who they are
FRAME_RATE, FRAME_BURST = 50_000.0, 20_000.0  # frames a second from one peer
FRAME_BATCH = 256  # frames in one go before others get their turn
CLAIMS_MAX = 65536  # endpoints that one host may announce
BUFFER_HIGH = 1 << 20  # bytes: above this, what may be dropped is dropped
BUFFER_MAX = 8 << 20  # bytes: above this the peer is given up


class TlsError(ValueError):
    """Certificates that cannot be used; the text is for the operator."""


class Claim(NamedTuple):
    """What a peer announced of an endpoint that is up."""

    port: int
    generation: int
    born: int = 0  # of an endpoint of a pool: when it was attached


class TrunkEvents(Protocol):
    """What trunks tell the directory."""

    def on_trunk_up(self, trunk: Trunk) -> None:
        """A trunk is open; the peer is who it says."""

    def on_trunk_down(self, trunk: Trunk) -> None:
        """It is gone."""

    def on_unpair(self, key_id: int) -> None:
        """Hellos under this key of ours are no longer good."""

    def on_frame(self, trunk: Trunk, frame: Announce | Withdraw | Query | Answer) -> None:
        """A frame that is not the trunk's own business."""

    def wants(self, host: str) -> bool:
        """Did anybody here have a use for a trunk to *host* lately?"""


def contexts(tls: Tls) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(for accepting, for dialling). Raises TlsError."""
    made = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Names are compared in Trunk: exactly, on both sides, never as an address.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=tls.ca)
        except (OSError, ssl.SSLError) as error:
            raise TlsError(
                f"tls: ca {tls.ca}: {_cause(error)}; deploy the CA certificate"
            ) from error
        try:
            # An encrypted key would ask the terminal: it is an error here.
            context.load_cert_chain(tls.cert, tls.key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TlsError(
                f"tls: cert {tls.cert} with key {tls.key}: {_cause(error)};"
                " deploy the host's certificate and its unencrypted key"
            ) from error
        made.append(context)
    made[0].num_tickets = 0  # every trunk is a full handshake: nothing to resume
    return made[0], made[1]


def _no_password() -> bytes:
    raise ValueError("the key is encrypted")


def _cause(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate of the other side: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return error.reason or "not a PEM file of the right kind"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # asyncio puts words of its own into strerror
    return str(error)


def certificate_names(transport: asyncio.BaseTransport) -> frozenset[str]:
    """The DNS names of the peer's verified certificate."""
    found = transport.get_extra_info("peercert") or {}
    return frozenset(value for kind, value in found.get("subjectAltName", ()) if kind == "DNS")


class Trunk(asyncio.Protocol):
    """One connection, from the end of its TLS handshake on."""

    def __init__(self, trunks: Trunks, expected: str | None) -> None:
        self.trunks = trunks
        self.expected = expected  # whom we dialled, None if we accepted
        self.host = ""
        self.key_id, self.key = trunks.new_key()
        self.peer_key_id = 0
        self.peer_key = b""
        self.claims: dict[Key, Claim] = {}  # what the peer announced as up
        self.adopted = False  # the peer is who it says, and we chose this connection
        self.live = False  # and so did the peer: it may be used
        self.closed = False
        self.since = time.time()
        self.opened = 0.0  # monotonic
        self.rtt_us: int | None = None
        self.settled: asyncio.Future[bool] = trunks.loop.create_future()
        self.why = ""  # it ended
        self._transport: asyncio.Transport | None = None
        self._decoder = frames.Decoder()
        self._budget = Bucket(FRAME_RATE, FRAME_BURST)
        self._congested = False
        self._paused = False
        self._heard = 0.0
        self._misses = 0
        self._ping_at: dict[bytes, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def dialler(self) -> str:
        """Name of the host that dialled."""
        return self.trunks.me if self.expected is not None else self.host

    # --- asyncio.Protocol ------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up: tell who we are, and wait a bounded time for the peer's word."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=BUFFER_HIGH)
        self._timer = self.trunks.loop.call_later(OPEN_S, self.close, "no OPEN in time")
        self._write(Open(self.key_id, self.key, self.trunks.me))

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer."""
        self._heard = time.monotonic()
        self._misses = 0
        self._decoder.feed(data)
        if not self._paused:
            self._drain()

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self._congested = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._congested = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._finish(f"connection lost: {exc}" if exc else "the peer closed")

    # --- in -------------------------------------------------------------------

    def _drain(self) -> None:
        for _unused in range(FRAME_BATCH):
            if self.closed:
                return
            if not self._budget.take():
                self.trunks.counters["trunk_throttled"] += 1
                self._pause(0.02)
                return
            try:
                frame = self._decoder.next()
                if frame is None:
                    return
                self._frame(frame)
            except (FrameError, WireError) as error:
                self.trunks.counters["trunk_bad_frame"] += 1
                self.close(f"protocol error: {error}")
                return
        self._pause(0.0)

    def _pause(self, seconds: float) -> None:
        """Stop reading and go on later: others get their turn."""
        assert self._transport is not None
        self._paused = True
        with contextlib.suppress(RuntimeError):
            self._transport.pause_reading()
        self.trunks.loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = False
        if self.closed or self._transport is None:
            return
        self._drain()
        if not self._paused and not self.closed:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def _frame(self, frame: Frame) -> None:
        if not self.adopted:
            if isinstance(frame, Open):
                self._opened(frame)
            else:
                assert isinstance(frame, Bye)  # the decoder lets nothing else through
                self.close(f"the peer refused: {frame.reason!r}")
            return
        if not self.live and not isinstance(frame, Bye):
            self._confirmed()
        self.trunks.counters[f"trunk_in_{type(frame).__name__.lower()}"] += 1
        match frame:
            case Ping(opaque):
                self.send(Pong(opaque), droppable=True)
            case Pong(opaque):
                sent = self._ping_at.pop(opaque, None)
                if sent is not None:
                    self.rtt_us = int((time.monotonic() - sent) * 1e6)
            case Open():
                raise FrameError("a second OPEN")
            case Bye(reason):
                self.close(f"the peer said goodbye: {reason!r}")
            case Idle():
                # It closes when neither side needs it; a side that does says nothing.
                if not self.trunks.needs(self.host):
                    self.close("idle")
            case Announce(tenant, vip, port, up, generation, born):
                key = (tenant, unpack_addr(vip))
                if not up:
                    self.claims.pop(key, None)
                elif key in self.claims or len(self.claims) < CLAIMS_MAX:
                    self.claims[key] = Claim(port, generation, born)
                else:
                    self.trunks.counters["trunk_claims_full"] += 1
                    return
                self.trunks.events.on_frame(self, frame)
            case _:
                self.trunks.events.on_frame(self, frame)

    def _opened(self, frame: Open) -> None:
        assert self._transport is not None
        names = certificate_names(self._transport)
        name = frame.name
        wrong = None
        if name not in names:
            wrong = f"calls itself {name!r}, its certificate is for {sorted(names)}"
        elif self.expected is not None and name != self.expected:
            wrong = f"{name!r} answered where the map has {self.expected!r}"
        elif name == self.trunks.me:
            wrong = f"calls itself {name!r}, which is our own name"
        elif name not in self.trunks.fleet.hosts:
            wrong = f"{name!r} is not in our map"
        if wrong is not None:
            self.trunks.counters["trunk_refused"] += 1
            log.warning("trunk-refused", peer=self.expected or name, cause=wrong)
            self.close(wrong)
            return
        self.host, self.peer_key_id, self.peer_key = name, frame.key_id, frame.key
        if not self.trunks.adopt(self):
            self.close("there is a trunk already")
            return
        self._decoder.open_only = False
        self.adopted = True
        # The peer may still prefer another connection. Its first frame after OPEN
        # says that it does not; our PING says so to the peer.
        self.ask()

    def _confirmed(self) -> None:
        self.live = True
        self.since, self.opened = time.time(), time.monotonic()
        if self._timer is not None:
            self._timer.cancel()
        self._schedule_ping()
        if not self.settled.done():
            self.settled.set_result(True)
        self.trunks.up(self)

    # --- out ------------------------------------------------------------------

    def send(self, frame: Frame, *, droppable: bool = False) -> bool:
        """Write one frame; False when it was not written. *droppable* ones give
        way when the peer reads slowly."""
        return self.send_many([frame], droppable=droppable)

    def send_many(self, batch: list[Frame], *, droppable: bool = False) -> bool:
        """The same for several frames in one write."""
        if self.closed or not self.adopted:
            return False
        if self._congested and droppable:
            self.trunks.counters["trunk_congested"] += 1
            return False
        for frame in batch:
            self.trunks.counters[f"trunk_out_{type(frame).__name__.lower()}"] += 1
        self._write(*batch)
        return True

    def _write(self, *batch: Frame) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(map(frames.encode, batch)))
        if self._transport.get_write_buffer_size() > BUFFER_MAX:
            self.close("the peer does not read", abort=True)

    def _schedule_ping(self) -> None:
        self._timer = self.trunks.loop.call_later(self.trunks.config.bounds.ping_s, self._ping)

    def _ping(self) -> None:
        bounds = self.trunks.config.bounds
        if time.monotonic() - self._heard >= bounds.ping_s * 0.5:
            if self._misses >= bounds.ping_misses:
                self.trunks.counters["trunk_silent"] += 1
                self.close(f"silent for {bounds.ping_misses} pings", abort=True)
                return
            self._misses += 1
        self.ask()
        if not self.trunks.needs(self.host):
            self.send(Idle(), droppable=True)
        self._schedule_ping()

    def ask(self) -> None:
        """Send a PING now."""
        opaque = secrets.token_bytes(8)
        if len(self._ping_at) >= 16:
            self._ping_at.clear()
        self._ping_at[opaque] = time.monotonic()
        self.send(Ping(opaque))

    # --- end ------------------------------------------------------------------

    def close(self, reason: str, *, abort: bool = False) -> None:
        """End the trunk, saying why."""
        if self.closed:
            return
        transport = self._transport
        if transport is not None:
            if not abort:
                with contextlib.suppress(FrameError, RuntimeError):
                    transport.write(frames.encode(Bye(reason)))
                transport.close()
                # A peer that does not read must not keep the descriptor.
                self.trunks.loop.call_later(CLOSE_S, transport.abort)
            else:
                transport.abort()
        self._finish(reason)

    def _finish(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        self.why = reason
        if self._timer is not None:
            self._timer.cancel()
        if not self.settled.done():
            self.settled.set_result(False)
        self.trunks.lost(self, reason)

    def report(self) -> dict[str, object]:
        """For the admin socket."""
        return {
            "since_s": round(time.time() - self.since, 3),
            "dialled_by": self.dialler,
            "rtt_us": self.rtt_us,
            "endpoints": len(self.claims),
        }


class Peer:
    """Another host of the map, as far as trunks are concerned."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self.trunk: Trunk | None = None
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.error = ""
        self.lived = 0.0  # seconds that the last trunk held


class Trunks:
    """All trunks of this host."""

    def __init__(
        self, config: RouterConfig, fleet: FleetMap, events: TrunkEvents, counters: Counter[str]
    ) -> None:
        self.config = config
        self.fleet = fleet
        self.events = events
        self.counters = counters
        self.loop = asyncio.get_running_loop()
        self.me = config.host
        self.peers: dict[str, Peer] = {}
        self.grace_s = UNPAIR_GRACE_S
        self._keys: dict[int, tuple[str, bytes]] = {}  # ours, of open and of just ended trunks
        self.self_key_id, self.self_key = self.new_key()
        self._keys[self.self_key_id] = (self.me, self.self_key)
        self._accept_context, self._dial_context = contexts(config.tls)
        self._listener: socket.socket | None = None
        self._acceptor: asyncio.Task[None] | None = None
        self._unproven: Counter[str] = Counter()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._strangers = Bucket(20.0, 40.0)
        self._trunks: set[Trunk] = set()
        self._stopping = False

    def new_key(self) -> tuple[int, bytes]:
        """A fresh (key_id, key); no other key of ours has this id."""
        while True:
            key_id = secrets.randbits(32)
            if key_id and key_id not in self._keys:
                return key_id, secrets.token_bytes(frames.KEY_SIZE)

    def key(self, key_id: int) -> tuple[str, bytes] | None:
        """(host that makes hellos under it, key) of a key of ours."""
        return self._keys.get(key_id)

    def keys_of(self, hosts: set[str]) -> list[int]:
        """The ids of the keys under which *hosts* make hellos to us."""
        return [key_id for key_id, (host, _unused) in self._keys.items() if host in hosts]

    def get(self, host: str) -> Trunk | None:
        """The trunk to *host*, if there is one that may be used."""
        peer = self.peers.get(host)
        trunk = peer.trunk if peer is not None else None
        return trunk if trunk is not None and trunk.live else None

    def all(self) -> list[Trunk]:
        """The trunks that may be used."""
        return [p.trunk for p in self.peers.values() if p.trunk is not None and p.trunk.live]

    @property
    def eager(self) -> bool:
        """Is the fleet small enough to connect every pair of hosts?"""
        return len(self.fleet.hosts) <= EAGER_HOSTS

    def needs(self, host: str) -> bool:
        """May the trunk to *host* not be closed for want of use?"""
        return self.eager or self.events.wants(host)

    # --- start, change, stop ----------------------------------------------------

    async def start(self, patience_s: float = 5.0) -> None:
        """Listen and dial. Raises OSError when the trunk port cannot be had."""
        address, port = self.config.address, self.config.trunk_port
        end = time.monotonic() + patience_s
        while True:
            try:
                self._listener = _trunk_listener(address, port)
                break
            except OSError as error:
                # A predecessor on its way out, or an address that is just being set.
                waitable = error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
                if not waitable or time.monotonic() > end:
                    raise OSError(
                        error.errno,
                        f"trunk port {address}:{port}: {error.strerror}; free the port, or give"
                        " the host this address",
                    ) from error
            await asyncio.sleep(0.1)
        self._acceptor = asyncio.create_task(self._accept(self._listener), name="trunk-accept")
        self._set_peers()

    def apply(
        self,
        config: RouterConfig,
        fleet: FleetMap,
        made: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    ) -> None:
        """A new map, new bounds, new certificates for trunks that are made from now on."""
        self.config, self.fleet = config, fleet
        if made is not None:
            self._accept_context, self._dial_context = made
        self._set_peers()

    def _set_peers(self) -> None:
        for name, peer in list(self.peers.items()):
            spec = self.fleet.hosts.get(name)
            if spec is None or spec != peer.spec:
                if peer.task is not None:
                    peer.task.cancel()
                    peer.task = None
                if peer.trunk is not None:
                    peer.trunk.close("the map changed" if spec else "no longer in the map")
                if spec is None:
                    del self.peers[name]
                else:
                    peer.spec = spec
        for name, spec in self.fleet.hosts.items():
            if name != self.me and name not in self.peers:
                self.peers[name] = Peer(spec)
        if self.eager:
            for peer in self.peers.values():
                self._start_dialling(peer, wait=self.me > peer.spec.name)

    def demand(self, host: str) -> None:
        """Somebody wants to reach *host*: see to it that there is a trunk."""
        peer = self.peers.get(host)
        if peer is not None and peer.trunk is None:
            self._start_dialling(peer, wait=False)

    def _start_dialling(self, peer: Peer, *, wait: bool) -> None:
        if not self._stopping and (peer.task is None or peer.task.done()):
            name = f"dial-{peer.spec.name}"
            peer.task = asyncio.create_task(self._dial_for_ever(peer, wait), name=name)

    async def stop(self) -> None:
        """Say goodbye everywhere."""
        self._stopping = True
        tasks = [peer.task for peer in self.peers.values() if peer.task] + list(self._handshakes)
        if self._acceptor is not None:
            tasks.append(self._acceptor)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for trunk in list(self._trunks):
            trunk.close("router stops")
        await asyncio.sleep(0.02)  # let the goodbyes leave

    # --- dialling ---------------------------------------------------------------

    async def _dial_for_ever(self, peer: Peer, wait: bool) -> None:
        if wait:
            await asyncio.sleep(EAGER_WAIT_S * random.uniform(1.0, 2.0))
        pause, first = REDIAL_FIRST_S, True
        while True:
            peer.changed.clear()
            if peer.trunk is not None:
                await peer.changed.wait()
                continue
            if not first:
                if not self.needs(peer.spec.name):
                    return
                if peer.lived > STEADY_S:
                    pause, peer.lived = REDIAL_FIRST_S, 0.0
                with contextlib.suppress(TimeoutError):
                    wait_s = pause * random.uniform(0.5, 1.0)
                    pause = min(pause * 2, REDIAL_MAX_S)
                    await asyncio.wait_for(peer.changed.wait(), wait_s)
                    continue
            first = False
            try:
                cause = await self._dial(peer.spec)
            except (OSError, ssl.SSLError, TimeoutError) as error:
                cause = _cause(error) or type(error).__name__
            if not cause:
                continue
            self.counters["trunk_dial_failed"] += 1
            level = log.warning if cause != peer.error else log.debug
            level(
                "trunk-dial", peer=peer.spec.name, address=peer.spec.address,
                port=peer.spec.trunk_port, cause=cause, next="the overlay serves meanwhile",
            )  # fmt: skip
            peer.error = cause

    async def _dial(self, spec: HostSpec) -> str:
        """One attempt; why no trunk came of it, else "". Raises OSError, TimeoutError."""
        async with asyncio.timeout(CONNECT_S + HANDSHAKE_S):
            _unused, trunk = await self.loop.create_connection(
                lambda: self._make(spec.name),
                spec.address,
                spec.trunk_port,
                ssl=self._dial_context,
                server_hostname="",
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
                local_addr=(self.config.address, 0),
            )
        return "" if await trunk.settled else trunk.why

    def _make(self, expected: str | None) -> Trunk:
        trunk = Trunk(self, expected)
        self._trunks.add(trunk)
        return trunk

    # --- accepting --------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, where = await self.loop.sock_accept(listener)
            except OSError as error:
                # Out of descriptors or of memory: wait, do not spin.
                self.counters["trunk_accept_failed"] += 1
                log.warning("trunk-accept", cause=error)
                await asyncio.sleep(0.1)
                continue
            address = where[0].removeprefix("::ffff:")
            known = any(spec.address == address for spec in self.fleet.hosts.values())
            if (
                sum(self._unproven.values()) >= PENDING_MAX
                or self._unproven[address] >= PENDING_PER_ADDRESS
                or (not known and not self._strangers.take())
            ):
                self.counters["trunk_crowded"] += 1
                sock.close()
                continue
            self._unproven[address] += 1
            task = asyncio.create_task(self._greet(sock, address))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _greet(self, sock: socket.socket, address: str) -> None:
        """From an accepted connection to a trunk, or its end; all bounded in time."""
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _unused, trunk = await self.loop.connect_accepted_socket(
                lambda: self._make(None),
                sock,
                ssl=self._accept_context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=CLOSE_S,
            )
            await trunk.settled
        except (OSError, ssl.SSLError, TimeoutError) as error:
            self.counters["trunk_handshake_failed"] += 1
            log.debug("trunk-handshake", address=address, cause=_cause(error))
            sock.close()
        finally:
            self._unproven[address] -= 1
            if self._unproven[address] <= 0:
                del self._unproven[address]

    # --- called by Trunk --------------------------------------------------------

    def adopt(self, trunk: Trunk) -> bool:
        """Is *trunk* to be the one of its host?

        Of two that are alive, both sides keep the one that the lexically smaller
        host dialled. Of two that the same side dialled, the newer: nobody dials
        while it believes in its trunk.
        """
        peer = self.peers.get(trunk.host)
        if peer is None or self._stopping:
            return False
        old = peer.trunk
        if old is not None:
            kept = min(self.me, trunk.host)
            if old.dialler == kept and trunk.dialler != kept:
                # Unless the old one is dead and we have not heard yet: find out.
                old.ask()
                return False
            self.counters["trunk_replaced"] += 1
            old.close("replaced by another trunk")
        self._keys[trunk.key_id] = (trunk.host, trunk.key)
        peer.trunk = trunk
        return True

    def up(self, trunk: Trunk) -> None:
        """*trunk* was chosen by both sides and may be used."""
        peer = self.peers[trunk.host]
        peer.error = ""
        peer.changed.set()
        log.info("trunk-up", peer=trunk.host, dialled_by=trunk.dialler)
        self.events.on_trunk_up(trunk)

    def lost(self, trunk: Trunk, reason: str) -> None:
        """*trunk* has ended."""
        self._trunks.discard(trunk)
        if not trunk.adopted:
            return
        peer = self.peers.get(trunk.host)
        if peer is not None and peer.trunk is trunk:
            peer.trunk = None
            peer.changed.set()
            if trunk.live:
                peer.error = reason
                peer.lived = time.monotonic() - trunk.opened
        if not trunk.live:
            self._forget(trunk.key_id)
            return
        trunk.live = False
        log.info("trunk-down", peer=trunk.host, cause=reason)
        self.events.on_trunk_down(trunk)
        self.loop.call_later(self.grace_s, self._forget, trunk.key_id)

    def _forget(self, key_id: int) -> None:
        if self._keys.pop(key_id, None) is not None:
            self.events.on_unpair(key_id)

    def report(self) -> list[dict[str, object]]:
        """For the admin socket: one row per other host."""
        rows: list[dict[str, object]] = []
        for name, peer in sorted(self.peers.items()):
            row: dict[str, object] = {
                "host": name,
                "address": peer.spec.address,
                "state": "idle",
                "detail": peer.error,
            }
            if peer.trunk is not None and peer.trunk.live:
                row.update(peer.trunk.report(), state="up")
            elif peer.task is not None and not peer.task.done():
                row["state"] = "dialling"
            rows.append(row)
        return rows


def _trunk_listener(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(256)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
