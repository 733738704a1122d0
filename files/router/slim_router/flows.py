# SPDX-License-Identifier: Apache-2.0
"""What a worker notes for the flow log: small tuples, sent to the supervisor in batches.

    set-up path -- opened, fallback, refused, revoked --> queue (bounded; what overflows is
    counted) -- a batch now and then, between other work --> supervisor (flowbook.py)

Nothing is formatted on the set-up path, and no batch is sent while the supervisor is
behind. The ends of connections are not the worker's business: the kernel tells the
supervisor (ends.py).
"""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from . import wire
from .row import Row

if TYPE_CHECKING:
    from .matcher import Table
    from .sockdiag import Sock
    from .worker import Worker

QUEUE = 8192
BATCH = 64  # a message; about 0.3 ms of the loop's time
FIRST_S = 0.05  # from the first note to its batch
NEXT_S = 0.002  # between batches: others have their turn
RULES = 4096  # (direction, peer, port) whose rule is remembered

OPEN, FALLBACK, REFUSE, REVOKE = range(4)
"""Kinds of notes; flowbook.py has their names."""

Names = tuple[str, int, str, int]
"""Host addresses and ports of a host connection: source, then destination."""


class Flows:
    """The worker's notes that have not been sent yet."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.queue: deque[tuple[Any, ...]] = deque()
        self.dropped = 0
        self._waiting = False
        self._tables: tuple[Table | None, Table | None] = (None, None)
        self._rules: dict[tuple[bool, bytes, int], int] = {}

    # --- notes ----------------------------------------------------------------------

    def opened_out(
        self, cookie: int, row: Row, here: tuple[str, int], there: tuple[str, int]
    ) -> None:
        """A host connection of ours, to the data port *there*."""
        self._note(OPEN, row.since, cookie, row, (*here, *there))

    def opened_in(self, cookie: int, row: Row, sock: socket.socket) -> None:
        """A connection that goes to an application here, over either path."""
        self._note(OPEN, row.since, cookie, row, self._host_names(sock) if row.slim else None)

    def fallback(self, cookie: int, row: Row) -> None:
        """A connect of ours takes the overlay; row.why says why, cookie 0: whose is not known."""
        self._note(FALLBACK, row.since, cookie, row, None)

    def refused_out(self, peer: bytes, lport: int, pport: int) -> None:
        """The policy forbids a connect of ours."""
        row = Row(True, True, 0, self.worker.vip, lport, peer, pport, time.monotonic())
        self._note(REFUSE, row.since, 0, row, None)

    def refused_in(
        self, sock: socket.socket, src: bytes, sport: int, dport: int, *, slim: bool
    ) -> None:
        """The policy forbids a connection that has come to us as *sock*."""
        row = Row(False, slim, 0, src, sport, self.worker.vip, dport, time.monotonic())
        self._note(REFUSE, row.since, 0, row, self._host_names(sock) if slim else None)

    def revoked(self, cookie: int, row: Row, sock: Sock | None, *, ordered: bool) -> None:
        """A live connection is taken away: *ordered* by the operator, or by the policy."""
        host: Names | None = None
        if row.slim and sock is not None:
            ours = (wire.unpack_addr(sock.src), sock.sport)
            theirs = (wire.unpack_addr(sock.dst), sock.dport)
            host = (*ours, *theirs) if row.outgoing else (*theirs, *ours)
        elif row.outgoing and sock is not None:
            row = row._replace(sport=sock.sport)
        self._note(REVOKE, time.monotonic(), cookie, row, host, int(ordered))

    def _host_names(self, sock: socket.socket) -> Names | None:
        """Of an accepted host connection, as its opener has them."""
        try:
            name = sock.getpeername()
        except OSError:
            return None  # reset meanwhile
        return (name[0], name[1], *self.worker.data_name)

    def _note(
        self, kind: int, when: float, cookie: int, row: Row, host: Names | None, more: int = 0
    ) -> None:
        if len(self.queue) >= QUEUE:
            self.dropped += 1
            return
        gate = self.worker.gate
        self.queue.append((kind, when, cookie, row, host, self._rule(row), gate.revision, more))
        if not self._waiting:
            self._waiting = True
            self.worker.loop.after(FIRST_S, self._send)

    def _rule(self, row: Row) -> int:
        """Index of the rule that decides about *row*, -1 for the default."""
        gate = self.worker.gate
        tables = (gate.egress, gate.ingress)
        if tables[0] is not self._tables[0] or tables[1] is not self._tables[1]:
            self._tables, self._rules = tables, {}
        table = tables[0] if row.outgoing else tables[1]
        if table is None:
            return -1
        peer = row.dst if row.outgoing else row.src
        key = (row.outgoing, peer, row.dport)
        index = self._rules.get(key)
        if index is None:
            if len(self._rules) >= RULES:
                self._rules.clear()
            index = self._rules[key] = table.decide(peer, row.dport)[1]
        return index

    # --- towards the supervisor --------------------------------------------------------

    def _send(self) -> None:
        worker, queue = self.worker, self.queue
        self._waiting = False
        if worker.flows is not self:
            return  # switched off meanwhile
        if worker.pending:
            self._later(FIRST_S)  # the supervisor is behind: what matters more goes first
            return
        notes = [_plain(*queue.popleft()) for _unused in range(min(BATCH, len(queue)))]
        dropped, self.dropped = self.dropped, 0
        if notes or dropped:
            worker.tell(op="flows", notes=notes, dropped=dropped)
        if queue:
            self._later(NEXT_S)

    def finish(self) -> None:
        """Send what there is, as far as the supervisor takes it: the worker ends."""
        while self.queue and not self.worker.pending:
            self._send()

    def _later(self, seconds: float) -> None:
        self._waiting = True
        self.worker.loop.after(seconds, self._send)


def _plain(
    kind: int, when: float, cookie: int, row: Row, host: Names | None, rule: int, revision: int,
    more: int,
) -> list[object]:  # fmt: skip
    """A note as JSON carries it: flowbook.py reads it back."""
    return [
        kind, round(when, 6), cookie, row.outgoing, row.slim, row.why,
        wire.unpack_addr(row.src), row.sport, wire.unpack_addr(row.dst), row.dport,
        host, rule, revision, more,
    ]  # fmt: skip
