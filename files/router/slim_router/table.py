# SPDX-License-Identifier: Apache-2.0
"""The table of live connections of one endpoint, keyed by SO_COOKIE.

Nobody tells the worker when a connection closes: the applications' processes
hold it alone. Dead rows are therefore found by asking the kernel (sock_diag)
now and then, and whenever the table has grown by ``GROWTH`` rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from . import sockdiag, wire
from .row import HostName, Row
from .rowfile import RowFile

GROWTH = 8192
PERIOD = 15.0  # seconds between looks at the kernel while rows exist


class Table:
    """Rows by cookie, and the virtual 5-tuples that are in use."""

    def __init__(
        self,
        live: Callable[[bool], Iterator[sockdiag.Sock]],
        soon: Callable[[Callable[[], None]], None] = lambda call: call(),
        parts: Callable[[], list[Iterator[sockdiag.Sock]]] | None = None,
        kept: RowFile | None = None,
    ) -> None:
        """*live* yields every live TCP socket of both namespaces (sockdiag.Sock), *parts*
        the same in several pieces; *soon* runs something outside of the set-up path. The
        rows that are *kept* were a predecessor's."""
        self.rows: dict[int, Row] = {}
        self.names: dict[tuple[bytes, int, int], int] = {}  # how many rows have it
        self._live = live
        self._soon = soon
        self._parts = parts or (lambda: [live(False)])
        self._reaping = False
        self._limit = GROWTH
        self.unkept = 0  # rows that a successor will not find, for want of room
        self._kept: RowFile | None = None
        if kept is not None:
            for cookie, row in kept.load():
                self.add(cookie, row)
            self._kept = kept

    def add(self, cookie: int, row: Row) -> None:
        if cookie in self.rows:  # a shim may call anything the socket's cookie
            self._forget(cookie)
        self.rows[cookie] = row
        if self._kept is not None and not self._kept.put(cookie, row):
            self.unkept += 1
        if row.outgoing and row.slim:
            name = (row.dst, row.dport, row.sport)
            self.names[name] = self.names.get(name, 0) + 1
        if len(self.rows) > self._limit:
            # Not here: asking the kernel takes longer than whoever connects may wait.
            self._limit = 2 * len(self.rows)
            self._soon(self.reap)

    def set_name(self, cookie: int, ours: tuple[str, int], theirs: tuple[str, int]) -> None:
        """The names of a row's host connection, which spare a revocation the search for it."""
        if self._kept is not None:
            self._kept.set_name(
                cookie,
                HostName(wire.pack_addr(ours[0]), ours[1], wire.pack_addr(theirs[0]), theirs[1]),
            )

    def name(self, cookie: int) -> HostName | None:
        """The names of a row's host connection, if they are known."""
        return None if self._kept is None else self._kept.name(cookie)

    def drop(self, cookie: int) -> Row | None:
        if self._kept is not None:
            self._kept.remove(cookie)
        return self._forget(cookie)

    def begin(self, cookie: int, row: Row) -> None:
        """A connect over the overlay is under way that has no row yet: should we end, a
        successor has one."""
        if self._kept is not None and cookie not in self.rows:
            self._kept.put(cookie, row)

    def end(self, cookie: int) -> None:
        """It is not under way any more; a row stays."""
        if self._kept is not None and cookie not in self.rows:
            self._kept.remove(cookie)

    def _forget(self, cookie: int) -> Row | None:
        row = self.rows.pop(cookie, None)
        if row is not None and row.outgoing and row.slim:
            name = (row.dst, row.dport, row.sport)
            # A program that binds its port has the name again before the dead row is reaped.
            self.names[name] -= 1
            if not self.names[name]:
                del self.names[name]
        return row

    def reap(self) -> None:
        """Forget the rows whose socket is gone, one piece a pass: the kernel walks all of
        its hash table for each, which takes milliseconds, and applications wait."""
        if self._reaping or not self.rows:
            return
        self._reaping = True
        known, alive, parts = list(self.rows), set[int](), iter(self._parts())

        def step() -> None:
            part = next(parts, None)
            if part is None:
                self._reaping = False
                self._bury(known, alive)
                return
            try:
                alive.update(sock.cookie for sock in part)
            except OSError:  # no answer: nothing is known to be dead
                self._reaping = False
                return
            self._soon(step)

        step()

    def _bury(self, known: list[int], alive: set[int]) -> None:
        """Of the rows in *known*, drop those that are not *alive*."""
        if self.rows:
            # A socket that was handed over a moment ago may still be in its
            # handshake; sock_diag lists those too, so absence means death.
            before = len(self.rows)
            for cookie in known:
                if cookie not in alive:
                    self.drop(cookie)
            if before > GROWTH // 8 and len(self.rows) < before // 2:
                # A dict keeps the room that it once needed.
                self.rows, self.names = dict(self.rows), dict(self.names)
        self._limit = 2 * len(self.rows) + GROWTH

    def report(self, endpoint: str) -> list[dict[str, object]]:
        """Rows joined with the kernel's figures, as docs/architecture.md lists them."""
        now = time.monotonic()
        found: list[dict[str, object]] = []
        alive: set[int] = set()
        for sock in self._live(True):
            row = self.rows.get(sock.cookie)
            if row is None:
                continue
            if row.outgoing and not row.slim and (sock.dst, sock.dport) != (row.dst, row.dport):
                continue  # the shim called a stranger's socket its own
            alive.add(sock.cookie)
            found.append(describe(endpoint, row, sock, now))
        for cookie in [c for c in self.rows if c not in alive]:
            self.drop(cookie)
        return found


def describe(endpoint: str, row: Row, sock: sockdiag.Sock | None, now: float) -> dict[str, object]:
    """A line of the connection table (docs/architecture.md): *row* with the kernel's figures,
    where its socket is known; *now* is monotonic."""
    ours: tuple[str | None, int | None] = (None, None)
    theirs = ours
    if sock is not None:
        ours = (wire.unpack_addr(sock.src), sock.sport)
        theirs = (wire.unpack_addr(sock.dst), sock.dport)
    real = (*ours, *theirs)
    names = (wire.unpack_addr(row.src), row.sport, wire.unpack_addr(row.dst), row.dport)
    if sock is not None and not row.slim and row.outgoing:
        names = real  # type: ignore[assignment] # all four are known
    host = real if row.slim else (None, None, None, None)
    return {
        "endpoint": endpoint,
        "direction": "out" if row.outgoing else "in",
        "src": names[0], "sport": names[1], "dst": names[2], "dport": names[3],
        "hsrc": host[0], "hsport": host[1], "hdst": host[2], "hdport": host[3],
        "path": "slim" if row.slim else "overlay",
        "why": wire.REASONS.get(row.why, str(row.why)),
        "age_s": round(now - row.since, 3),
        "bytes_sent": sock.bytes_acked if sock is not None else 0,
        "bytes_received": sock.bytes_received if sock is not None else 0,
        "state": sockdiag.STATES.get(sock.state, str(sock.state)) if sock is not None else "close",
        "cookie": sock.cookie if sock is not None else 0,
    }  # fmt: skip
