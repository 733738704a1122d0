# SPDX-License-Identifier: Apache-2.0
"""The policy in force at one endpoint. Runs in its worker.

Our part of the list comes in pieces (slices.py), is compiled a few milliseconds a pass
(matcher.py), and takes the place of the old one between two passes. In that same step
everything that is under way and forbidden now ends, so that nothing of it is handed
over; the rows of the connection table are then judged anew, and the forbidden ones
revoked (revoker.py).

Judged is what comes from, or goes to, another address of the overlay: not what a
container says to itself, and not what reaches it on an address off the overlay.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from . import wire
from .matcher import Side, Table
from .revoker import PASS_S, Pairs, Revoker
from .row import Row
from .slices import Assembler, PieceError, Slice
from .table import describe

if TYPE_CHECKING:
    import socket

    from .sockdiag import Sock
    from .worker import Worker

ROWS = 512  # rows that are judged between two looks at the clock
PIECE = 100  # rows a message, as in worker.DUMP_PIECE
MISSING_MAX = 2000
"""Forbidden rows without a live socket that the supervisor is told of."""
YOUNG_S = 5.0
"""A row of this age may be that of a connect whose first packet is still to be sent: its
worker said "plain" or "go on" an instant before the list changed."""
SWEEPS_S = (0.02, 0.08, 0.2, 0.3, 0.3)
"""Pauses between looks for such connects; all within the second that we promise."""


class Gate:
    """Judges; holds the tables of both directions, None where everything is allowed."""

    def __init__(self, worker: Worker, *, awaited: bool) -> None:
        """*awaited*: nothing is served before the first list, so that nobody need be
        considerate of while it is compiled."""
        self.worker = worker
        self.awaited = awaited
        self.revision = -1  # in force; -1: nobody has told us of a policy
        self.egress: Table | None = None
        self.ingress: Table | None = None
        self._assembler = Assembler()
        self._steps: Generator[None, None, tuple[Table | None, Table | None]] | None = None
        self._sweep: _Sweep | None = None
        self._coming = -1  # the revision that is being compiled

    # --- judging ----------------------------------------------------------------

    def forbids_out(self, peer: bytes, dport: int) -> bool:
        """May we not connect to *peer* (16 bytes) on port *dport*?"""
        table = self.egress
        return (
            table is not None
            and not table.decide(peer, dport)[0]
            and peer != self.worker.vip
            and self.worker.covers(peer)
        )

    def forbids_in(self, src: bytes, dport: int) -> bool:
        """May *src*, another endpoint, not connect to our port *dport*?"""
        table = self.ingress
        return table is not None and not table.decide(src, dport)[0]

    def forbids_overlay(self, sock: socket.socket, src: bytes, dport: int) -> bool:
        """The same of *sock*, which the overlay listener has accepted."""
        if not self.forbids_in(src, dport):
            return False
        try:
            name: str = sock.getsockname()[0]
        except OSError:
            return True
        return self._is_judged(wire.pack_addr(name.partition("%")[0]), src)

    def _is_judged(self, local: bytes, src: bytes) -> bool:
        return src != local and self.worker.covers(local)

    def _verdict(self, row: Row) -> int | None:
        """None if *row* is allowed, else the index of the rule, -1 for the default."""
        table = self.egress if row.outgoing else self.ingress
        if table is None:
            return None
        peer = row.dst if row.outgoing else row.src
        allowed, index = table.decide(peer, row.dport)
        if allowed or peer == self.worker.vip:
            return None
        return index

    # --- a new list ---------------------------------------------------------------

    def on_piece(self, message: dict[str, Any]) -> None:
        """One message of op `policy`."""
        if message.get("same"):
            # Our part has not changed, its revision has.
            if self._steps is not None:
                self._coming = int(message["revision"])
            else:
                self.revision = int(message["revision"])
                self._tell(self.revision, [], "")
            return
        try:
            made = self._assembler.feed(message)
        except PieceError as error:
            # What we have stays in force: a worker that ends would forget its connections.
            self.worker.count("policy_malformed")
            self._tell(int(message.get("revision", -1)), [], f"policy message: {error}")
            return
        if made is None:
            return
        running = self._steps is not None
        self._coming = made.revision
        self._steps = _both(made)  # one that is still compiled is old news
        if self.awaited:
            while self._steps is not None:
                self._step()
        elif not running:
            self._step()

    def _step(self) -> None:
        end = time.monotonic() + PASS_S
        steps = self._steps
        assert steps is not None
        try:
            next(steps)
            while time.monotonic() < end:
                next(steps)
        except StopIteration as made:
            self._steps = None
            self._swap(self._coming, *made.value)
            return
        except Exception as error:
            self._steps = None
            self.worker.count("policy_failed")
            self._tell(self._coming, [], f"policy cannot be compiled: {error!r}")
            raise
        if not self.awaited:
            self.worker.loop.next_pass(self._step)

    def _swap(self, revision: int, egress: Table | None, ingress: Table | None) -> None:
        self.revision, self.egress, self.ingress = revision, egress, ingress
        worker = self.worker
        if self.awaited:
            # Nothing is under way, but what a predecessor has handed over may live. (The
            # loop, and in secure mode the backend, come later.)
            self.awaited = False
            worker.loop.next_pass(_Enforcement(self, revision, set()).start)
            return
        pairs = worker.outbound.purge(self.forbids_out)
        worker.inbound.purge(self.forbids_in)
        job = _Enforcement(self, revision, pairs)
        for listener in list(worker.listeners.by_cookie.values()):
            for cookie in listener.purge(self._forbids_queued):
                job.dropped(cookie)
        job.start()

    def _forbids_queued(self, sock: socket.socket, src: bytes, dport: int, overlay: bool) -> bool:
        if overlay:
            return self.forbids_overlay(sock, src, dport)
        return self.forbids_in(src, dport)

    def sweep(self, pair: tuple[bytes, int]) -> None:
        """An application connects to *pair* over the overlay, on our word, which the policy has
        overtaken: abort it, also if its first packet is yet to be sent."""
        self.sweep_later({pair})

    def sweep_later(self, pairs: Pairs) -> None:
        """Look for overlay connects to *pairs*, soon and for a while."""
        if self._sweep is None:
            self._sweep = _Sweep(self)
        self._sweep.add(pairs)

    def sweep_over(self) -> None:
        """It has looked often enough."""
        self._sweep = None

    # --- towards the supervisor ------------------------------------------------------

    def _tell(
        self, revision: int, rows: list[dict[str, object]], cause: str,
        missing: Sequence[dict[str, object]] = (),
    ) -> None:  # fmt: skip
        """`enforced`: *revision* is in force, *rows* were revoked. *missing* ones had ended:
        by themselves, or because the other end was quicker to revoke them."""
        for start in range(0, len(missing), PIECE):
            self.worker.tell(
                op="enforced", revision=revision, last=False, cause="", revoked=[],
                missing=missing[start : start + PIECE],
            )  # fmt: skip
        self.tell_rows(rows, cause, op="enforced", revision=revision)

    def tell_rows(self, rows: list[dict[str, object]], cause: str, **head: object) -> None:
        """*rows* that were revoked, in messages of a lawful size."""
        for start in range(0, max(1, len(rows)), PIECE):
            last = start + PIECE >= len(rows)
            self.worker.tell(
                **head, last=last, cause=cause if last else "", revoked=rows[start : start + PIECE]
            )

    def revoke(self, number: int, cookies: list[int]) -> None:
        """Take these connections of ours away, whatever the list says; answer as *number*."""
        _Order(self, number, cookies).revoke()


class _Revocation:
    """Rows that are to be revoked, and those that were."""

    ordered = False  # by the operator, whatever the list says

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.worker = gate.worker
        self._pairs: Pairs = set()
        self._began = time.monotonic()
        self._rows: dict[int, Row] = {}
        self._rules: dict[int, int] = {}
        self._revoked: dict[int, dict[str, object]] = {}

    def _note(self, row: Row, cookie: int, sock: Sock | None, rule: int | None) -> None:
        said = describe(self.worker.name, row, sock, self._began)
        self._revoked[cookie] = {**said, "cookie": cookie, "rule": -1 if rule is None else rule}
        self.worker.count("revoked")
        if self.worker.flows is not None:
            self.worker.flows.revoked(cookie, row, sock, ordered=self.ordered)

    def revoke(self) -> None:
        """Begin with the revocation; the answer comes when all are dead."""
        Revoker(self.worker, self._rows, self._pairs, self._seen, self._over).start()

    def _seen(self, cookie: int, row: Row | None, sock: Sock) -> bool:
        if row is not None and not _is_of(self.gate, row, sock):
            return False
        if cookie not in self._revoked:
            if row is None:
                rule = self.gate._verdict(made := _row_of(self.worker, sock))
                self._note(made, cookie, sock, rule)
            else:
                self._note(row, cookie, sock, self._rules.get(cookie))
        return True

    def _over(self, cause: str) -> None:
        for cookie in self._rows:
            # A socket that was not there yet keeps its row: the table finds out by itself.
            if cookie in self._revoked:
                self.worker.table.drop(cookie)
        self._end(list(self._revoked.values()), cause)

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        raise NotImplementedError


class _Order(_Revocation):
    """Connections that the operator names."""

    ordered = True

    def __init__(self, gate: Gate, number: int, cookies: list[int]) -> None:
        super().__init__(gate)
        self._number = number
        rows = self.worker.table.rows
        self._rows = {cookie: rows[cookie] for cookie in cookies if cookie in rows}

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        self.gate.tell_rows(rows, cause, op="revoked", id=self._number)


class _Enforcement(_Revocation):
    """A new list against the connections that live."""

    def __init__(self, gate: Gate, revision: int, pairs: Pairs) -> None:
        super().__init__(gate)
        self.revision = revision
        self._pairs = pairs
        self._known: dict[tuple[bool, bytes, int], int | None] = {}
        self._left = iter(list(self.worker.table.rows))

    def dropped(self, cookie: int) -> None:
        """A row whose connection was reset where it waited."""
        row = self.worker.table.drop(cookie)
        if row is not None:
            self._note(row, cookie, None, self.gate._verdict(row))

    def start(self) -> None:
        """Judge the rows, a few milliseconds a pass."""
        end = time.monotonic() + PASS_S
        rows, known = self.worker.table.rows, self._known
        while True:
            for _unused in range(ROWS):
                cookie = next(self._left, None)
                if cookie is None:
                    self._judged()
                    return
                row = rows.get(cookie)
                if row is None:
                    continue
                key = (row.outgoing, row.dst if row.outgoing else row.src, row.dport)
                if key not in known:
                    known[key] = self.gate._verdict(row)
                rule = known[key]
                if rule is not None:
                    self._rows[cookie], self._rules[cookie] = row, rule
            if time.monotonic() > end:
                break
        self.worker.loop.next_pass(self.start)

    def _judged(self) -> None:
        del self._known
        for row in self._rows.values():
            # A host connection's handshake that we abort makes the shim take the overlay.
            if row.outgoing and self._began - row.since < YOUNG_S:
                self._pairs.add((row.dst, row.dport))
        self.revoke()

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        missing = [
            {**describe(self.worker.name, row, None, self._began), "rule": self._rules[cookie]}
            for cookie, row in self._rows.items()
            if cookie not in self._revoked
        ]
        self.gate._tell(self.revision, rows, cause, missing[:MISSING_MAX])
        if self._pairs:
            self.gate.sweep_later(self._pairs)


class _Sweep:
    """Looks for overlay connects to forbidden destinations, several times: our word to go
    ahead may reach the kernel as a packet only when we have looked already."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.pairs: Pairs = set()
        self._pauses = iter(SWEEPS_S)
        self._waiting = False

    def add(self, pairs: Pairs) -> None:
        """Look for *pairs* too, as often as for the others."""
        self.pairs |= pairs
        self._pauses = iter(SWEEPS_S)
        if not self._waiting:
            self._later("")

    def _later(self, _cause: str) -> None:
        pause = next(self._pauses, None)
        self._waiting = pause is not None
        if pause is None:
            self.gate.sweep_over()
        else:
            self.gate.worker.loop.after(pause, self._look)

    def _look(self) -> None:
        # A later list may allow it.
        self.pairs = {pair for pair in self.pairs if self.gate.forbids_out(*pair)}
        if self.pairs:
            Revoker(self.gate.worker, {}, self.pairs, self._seen, self._later).start()
        else:
            self.gate.sweep_over()

    def _seen(self, cookie: int, _row: Row | None, sock: Sock) -> bool:
        worker = self.gate.worker
        worker.count("revoked")
        if worker.flows is not None:
            worker.flows.revoked(cookie, _row_of(worker, sock), sock, ordered=False)
        return True


def _row_of(worker: Worker, sock: Sock) -> Row:
    return Row(
        True, False, wire.R_NONE, worker.vip, sock.sport, sock.dst, sock.dport, time.monotonic()
    )


def _is_of(gate: Gate, row: Row, sock: Sock) -> bool:
    """Is *sock*, which has the row's cookie, what the row is about? Shims name the cookies of
    overlay sockets; what is accepted off the overlay is not judged."""
    if row.slim:
        return True
    if row.outgoing:
        return (sock.dst, sock.dport) == (row.dst, row.dport)
    return gate._is_judged(sock.src, sock.dst)


def _both(made: Slice) -> Generator[None, None, tuple[Table | None, Table | None]]:
    egress = yield from _table(made.egress, made.default)
    ingress = yield from _table(made.ingress, made.default)
    return egress, ingress


def _table(side: Side, default: bool) -> Generator[None, None, Table | None]:
    if not len(side) and default:
        return None
    return (yield from Table.compiling(side, default))
