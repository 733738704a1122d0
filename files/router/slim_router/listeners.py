# SPDX-License-Identifier: Apache-2.0
"""A listener of the application: its overlay socket, its accept channel, its queue.

The worker accepts what arrives over the overlay, and puts every connection,
overlay or host, through the accept channel that lies under the application's
file descriptor.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import wire
from .loop import HUP, IN, OUT
from .row import Row
from .sockets import RESET, cookie_of, reset

if TYPE_CHECKING:
    from .worker import Worker

HOLD_S = 1.0  # how long an overlay connection waits for its verdict at most
REMEMBER_S = 60.0  # how long we know that an overlay connection was delivered
SHARE_S = 5.0  # a recovered channel is offered to the listener's other processes
# An overlay connection that was made before a listener was recovered may be in the
# application's own hands already: no host connection may be promised for it.
RECOVERED_S = 1.0
BACKLOG = 4096  # net.core.somaxconn since Linux 5.4, whatever listen() was told
# EMFILE, ENFILE, ENOBUFS, ENOMEM: the listener stays readable, so look away for a while.
EXHAUSTED = (24, 23, 105, 12)
EXHAUSTED_S = 0.05
SLACK = 256  # host connections that may pass a full queue: their lease was good


class Listener:
    """One overlay listener and the accept channel that replaced it."""

    __slots__ = (
        "worker", "sock", "channel", "shared", "cookie", "channel_cookie", "addr", "port",
        "backlog", "queue", "paused", "blocked", "later", "ours_since",
    )  # fmt: skip

    def __init__(
        self, worker: Worker, sock: socket.socket, channel: socket.socket,
        channel_cookie: int, addr: bytes, port: int, backlog: int, shared: int | None,
    ) -> None:  # fmt: skip
        self.worker = worker
        self.sock = sock
        self.channel = channel
        self.shared = shared
        self.cookie = cookie_of(sock)
        self.channel_cookie = channel_cookie
        self.addr = addr
        self.port = port
        self.backlog = max(1, min(backlog, BACKLOG))
        self.queue: deque[tuple[bytes, socket.socket]] = deque()
        self.paused = False
        self.blocked = False
        self.later = False  # the kernel takes nothing now, whatever epoll says
        self.ours_since = time.monotonic() if shared is not None else 0.0
        if shared is not None:
            worker.loop.after(SHARE_S, self.unshare)
        channel.setblocking(False)
        sock.setblocking(False)
        # A deferring listener would never show us the empty overlay connection
        # that proves admission; the channel gives the same to the application.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        worker.loop.add(channel.fileno(), 0, self.on_channel)
        worker.loop.add(sock.fileno(), IN, self.on_overlay)

    def serves(self, dst: bytes) -> bool:
        return self.addr == dst or self.addr.strip(b"\0") in (b"", b"\xff\xff")

    @property
    def full(self) -> bool:
        return len(self.queue) >= self.backlog

    # --- towards the application -------------------------------------------
    def deliver(self, sock: socket.socket, row: Row, flags: int) -> None:
        """Hand *sock* to whoever accepts next; it is ours no more."""
        cookie = cookie_of(sock)
        if len(self.queue) >= self.backlog + SLACK:
            self.worker.count("accept_overflow")
            reset(sock)
            return
        tag = self.worker.tag
        if tag is not None and row.slim and not tag(sock, cookie):
            # Its client has been told that it is connected: all that is left is a reset.
            # The others go cold, and inbound._prepare sends those to the overlay.
            reset(sock)
            self.worker.withdraw(self.port)
            return
        message = wire.MSG.pack(
            wire.MSG_MAGIC, wire.VERSION, wire.ACCEPTED, 0, flags, 0, row.dst, row.src,
            row.dport, row.sport, 0, 0, cookie, 0, wire.NO_COMMIT,
        )  # fmt: skip
        with contextlib.suppress(OSError):  # already reset by its peer
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        # First: a successor of ours must know of whatever is handed over.
        self.worker.table.add(cookie, row._replace(family=int(self.sock.family)))
        waits = bool(self.queue) or not self._send(message, sock)
        if row.slim:
            with contextlib.suppress(OSError):  # as above, or the application is gone
                self.worker.table.set_name(cookie, sock.getsockname()[:2], sock.getpeername()[:2])
        if self.worker.flows is not None:
            self.worker.flows.opened_in(cookie, row, sock)
        if waits:
            self.queue.append((message, sock))
            self._watch()
        else:
            sock.close()

    def _send(self, message: bytes, sock: socket.socket) -> bool:
        try:
            self.channel.sendmsg(
                (message,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (sock.fileno(),))),),
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
            )  # fmt: skip
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno in (109, 105):  # ETOOMANYREFS, ENOBUFS: later
                if not self.later:
                    self.later = True
                    self.worker.loop.after(0.01, self._retry)
                return False
            # EPIPE: the application is gone; on_channel cleans up.
            self.worker.count("accept_lost")
            reset(sock)
            return True
        return True

    def _retry(self) -> None:
        self.later = False
        self._flush()

    def _watch(self) -> None:
        want = bool(self.queue) and not self.later
        if want != self.blocked and self.channel.fileno() >= 0:
            self.blocked = want
            self.worker.loop.modify(self.channel.fileno(), OUT if want else 0)
        if self.full != self.paused:
            self.paused = self.full
            # A full queue is the kernel's business again: the overlay's own
            # backlog fills, and peers lose their lease.
            self.worker.loop.modify(self.sock.fileno(), 0 if self.paused else IN)
            if self.paused:
                self.worker.withdraw(self.port)

    def _flush(self) -> None:
        queue = self.queue
        while queue:
            message, sock = queue[0]
            if not self._send(message, sock):
                break
            queue.popleft()
            sock.close()
        if self.channel.fileno() >= 0:
            self._watch()

    def purge(self, forbids: Callable[[socket.socket, bytes, int, bool], bool]) -> list[int]:
        """A new policy *forbids* some of what waits here: reset it, before it is handed over.
        Its cookies."""
        kept: deque[tuple[bytes, socket.socket]] = deque()
        dropped = []
        for message, sock in self.queue:
            fields = wire.MSG.unpack(message)
            flags, src, dport, cookie = fields[4], fields[7], fields[8], fields[12]
            if forbids(sock, src, dport, bool(flags & wire.F_OVERLAY)):
                dropped.append(cookie)
                reset(sock)
            else:
                kept.append((message, sock))
        if dropped:
            self.queue = kept
            self._watch()
        return dropped

    def on_channel(self, mask: int) -> None:
        if mask & HUP:
            self.close()
        elif mask & OUT:
            self._flush()

    # --- from the overlay ---------------------------------------------------
    def on_overlay(self, _mask: int) -> None:
        if self.sock.fileno() < 0:
            return
        for _unused in range(64):
            try:
                # The plain call: socket.accept() would ask the kernel for the
                # default timeout and build a second object.
                fd, peer = self.sock._accept()  # type: ignore[attr-defined] # in CPython, not in typeshed
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno == 22:  # EINVAL: shut down; it listens no more
                    self.close()
                elif error.errno in EXHAUSTED:
                    self.worker.count("accept_exhausted")
                    self.worker.loop.modify(self.sock.fileno(), 0)
                    self.worker.loop.after(EXHAUSTED_S, self._look_again)
                return
            sock = socket.socket(self.sock.family, socket.SOCK_STREAM, 6, fileno=fd)
            src = wire.pack_addr(peer[0].partition("%")[0])
            self.worker.inbound.overlay(self, sock, src, peer[1])
            if self.full:
                return

    def _look_again(self) -> None:
        if self.sock.fileno() >= 0 and not self.paused:
            self.worker.loop.modify(self.sock.fileno(), IN)

    def unshare(self) -> None:
        """Let the application's end go: from now on its last holder's end is seen."""
        if self.shared is not None:
            os.close(self.shared)
            self.shared = None

    def close(self) -> None:
        """The application has closed it (or died): everything that waits is reset."""
        worker = self.worker
        if self.channel.fileno() < 0:
            return
        worker.loop.remove(self.channel.fileno())
        worker.loop.remove(self.sock.fileno())
        self.channel.close()
        self.sock.close()
        self.unshare()
        while self.queue:
            reset(self.queue.popleft()[1])
        worker.listeners.remove(self)


class Listeners:
    """The endpoint's listeners by port and by their sockets' names."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.by_port: dict[int, list[Listener]] = {}
        self.by_cookie: dict[int, Listener] = {}
        self.by_channel: dict[int, Listener] = {}

    def add(self, listener: Listener) -> None:
        self.by_port.setdefault(listener.port, []).append(listener)
        self.by_cookie[listener.cookie] = listener
        self.by_channel[listener.channel_cookie] = listener

    def remove(self, listener: Listener) -> None:
        same = self.by_port.get(listener.port, [])
        if listener in same:
            same.remove(listener)
        if not same:
            self.by_port.pop(listener.port, None)
            self.worker.withdraw(listener.port)
        self.by_cookie.pop(listener.cookie, None)
        self.by_channel.pop(listener.channel_cookie, None)
        self.worker.inbound.forget(listener)

    def find(self, dst: bytes, port: int) -> Listener | None:
        """The listener for a hello; SO_REUSEPORT groups take turns."""
        same = self.by_port.get(port)
        if not same:
            return None
        if len(same) == 1:
            return same[0] if same[0].serves(dst) else None
        for index, listener in enumerate(same):
            if listener.serves(dst) and not listener.full:
                same.append(same.pop(index))
                return listener
        return None

    def report(self) -> list[dict[str, object]]:
        return [
            {"port": item.port, "address": wire.unpack_addr(item.addr), "queued": len(item.queue)}
            for item in self.by_cookie.values()
        ]


class Delivered:
    """Overlay connections that were handed over as real, for ``REMEMBER_S``."""

    def __init__(self) -> None:
        self.when: dict[tuple[bytes, int, int], float] = {}

    def add(self, key: tuple[bytes, int, int]) -> None:
        now = time.monotonic()
        self.when[key] = now
        while len(self.when) > 1024:
            oldest = next(iter(self.when))
            if now - self.when[oldest] < REMEMBER_S and len(self.when) <= 65536:
                break
            del self.when[oldest]

    def prune(self) -> None:
        """Forget the old ones, and the room that they took."""
        limit = time.monotonic() - REMEMBER_S
        if self.when and next(iter(self.when.values())) < limit:
            self.when = {key: when for key, when in self.when.items() if when >= limit}

    def discard(self, key: tuple[bytes, int, int]) -> None:
        self.when.pop(key, None)

    def __contains__(self, key: tuple[bytes, int, int]) -> bool:
        return time.monotonic() - self.when.get(key, -1e9) < REMEMBER_S
