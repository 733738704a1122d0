# SPDX-License-Identifier: Apache-2.0
"""The policy in force at one endpoint. Runs in its worker.

Our part of the list comes in pieces (slices.py), is compiled a few milliseconds a pass
(matcher.py), and takes the place of the old one between two passes. In that same step
everything that is under way and forbidden now ends, so that nothing of it is handed
over; the rows of the connection table are then judged anew, and the forbidden ones
revoked (revoker.py). Connections over the overlay that nobody asked us about are looked
for (overlay.py) with each list, for a while after it and after our start, and each time
that the table is compared with the kernel.

Judged is what comes from, or goes to, another address of the overlay: not what a
container says to itself, and not what reaches it on an address off the overlay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import wire
from .loop import PASS_S
from .matcher import Side, Table
from .revoker import Revoker
from .row import Row
from .slices import Assembler, PieceError, Slice
from .table import describe

if TYPE_CHECKING:
    import socket

    from .overlay import Found
    from .sockdiag import Sock
    from .worker import Worker

ROWS = 512  # rows that are judged between two looks at the clock
PIECE = 100  # rows a message, as in worker.DUMP_PIECE
MISSING_MAX = 2000
"""Forbidden rows without a live socket that the supervisor is told of."""
YOUNG_S = 5.0
"""A row of this age may be that of a connect whose first packet is still to be sent: its
worker said "plain" or "go on" an instant before the list changed."""
LOOKS_S = (0.02, 0.08, 0.2, 0.3, 0.4, 0.5, 0.5, 0.5, 0.5)
"""Pauses between looks at the overlay's connections: what a list overtook is found within the
second that we promise; what shims do without us until they know that we are there, in three,
and none of that has a second."""


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
        self._pauses: Iterator[float] = iter(())
        self._watching = False  # a look is under way or to come
        self._asked = False  # for another watch, while there is one
        self._coming = -1  # the revision that is being compiled

    # --- judging ----------------------------------------------------------------

    @property
    def judges(self) -> bool:
        """Is there anything that the list could forbid?"""
        return self.egress is not None or self.ingress is not None

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
            worker.loop.next_pass(_Enforcement(self, revision, overtaken=True).start)
            return
        overtaken = worker.outbound.purge(self.forbids_out)
        worker.inbound.purge(self.forbids_in)
        job = _Enforcement(self, revision, overtaken=overtaken)
        for listener in list(worker.listeners.by_cookie.values()):
            for cookie in listener.purge(self._forbids_queued):
                job.dropped(cookie)
        job.start()

    def _forbids_queued(self, sock: socket.socket, src: bytes, dport: int, overlay: bool) -> bool:
        if overlay:
            return self.forbids_overlay(sock, src, dport)
        return self.forbids_in(src, dport)

    # --- what nobody asked us about -----------------------------------------------------

    def watch(self) -> None:
        """Look for forbidden connections over the overlay, soon and for a while: a connect that
        the list has overtaken may reach the kernel as a packet only then."""
        self._pauses = iter(LOOKS_S)
        if not self._watching and self.judges:
            self.next_look()

    def watch_on_demand(self) -> None:
        """The same on the word of a shim, which may be hostile: never oftener than that."""
        if self._watching:
            self._asked = self.judges
        else:
            self.watch()

    def look(self) -> None:
        """Once, now."""
        if not self._watching and self.judges:
            self._watching = True
            _Look(self).start()

    def next_look(self) -> None:
        """One has ended, or a watch begins."""
        pause = next(self._pauses, None)
        if pause is None and self._asked:
            self._asked, self._pauses = False, iter(LOOKS_S)
            pause = next(self._pauses)
        self._watching = pause is not None
        if pause is not None:
            self.worker.loop.after(pause, lambda: _Look(self).start())

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

    def tell_late(self, rows: list[dict[str, object]]) -> None:
        """*rows* that a look has found and revoked."""
        for start in range(0, len(rows), PIECE):
            self.worker.tell(
                op="enforced", revision=self.revision, last=False, cause="",
                revoked=rows[start : start + PIECE],
            )  # fmt: skip

    def revoke(self, number: int, cookies: list[int]) -> None:
        """Take these connections of ours away, whatever the list says; answer as *number*."""
        _Order(self, number, cookies).start()


class _Revocation:
    """Rows that are to be revoked, and those that were."""

    ordered = False  # by the operator, whatever the list says

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.worker = gate.worker
        self._began = time.monotonic()
        self._cause = ""
        self._stages = iter(self._finds())
        self._meant: dict[int, Row] = {}  # of this stage
        self._rows: dict[int, Row] = {}  # of all
        self._rules: dict[int, int] = {}
        self._known: dict[tuple[bool, bytes, int], int | None] = {}
        self._revoked: dict[int, dict[str, object]] = {}

    def start(self) -> None:
        """Find what is meant and revoke it, in steps; one way to find it after the other."""
        find = next(self._stages, None)
        if find is not None:
            self.worker.loop.in_steps(find(), self._found)
            return
        for cookie in self._revoked:
            # A socket that was not there yet keeps its row: the table finds out by itself.
            self.worker.table.drop(cookie)
        self._end(list(self._revoked.values()), self._cause)

    def _finds(self) -> Sequence[Callable[[], Generator[None, None, None]]]:
        """What fills in the rows that are meant."""
        raise NotImplementedError

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        """All are dead that could be."""
        raise NotImplementedError

    def _ask(self, found: Generator[None, None, Found]) -> Generator[None, None, Found]:
        """What Overlay finds; nothing if the kernel does not answer."""
        try:
            return (yield from found)
        except OSError as error:
            self.worker.count("look_failed")
            self._cause = f"sock_diag: {error.strerror or error}"
            return []

    def _judge(self, cookie: int, row: Row) -> None:
        """Take it if the list forbids it."""
        key = (row.outgoing, row.dst if row.outgoing else row.src, row.dport)
        if key not in self._known:
            self._known[key] = self.gate._verdict(row)
        rule = self._known[key]
        if rule is not None and cookie not in self._rows:
            self._meant[cookie], self._rules[cookie] = row, rule

    def _note(self, row: Row, cookie: int, sock: Sock | None, rule: int | None) -> None:
        said = describe(self.worker.name, row, sock, self._began)
        self._revoked[cookie] = {**said, "cookie": cookie, "rule": -1 if rule is None else rule}
        self.worker.count("revoked")
        if self.worker.flows is not None:
            self.worker.flows.revoked(cookie, row, sock, ordered=self.ordered)

    def _found(self, _none: None) -> None:
        meant, self._meant = self._meant, {}
        self._rows |= meant
        Revoker(self.worker, meant, self._seen, self._over).start()

    def _seen(self, cookie: int, row: Row, sock: Sock) -> bool:
        if not _is_of(self.gate, row, sock):
            return False
        if cookie not in self._revoked:
            self._note(row, cookie, sock, self._rules.get(cookie))
        return True

    def _over(self, cause: str) -> None:
        self._cause = cause or self._cause
        self.start()


class _Order(_Revocation):
    """Connections that the operator names."""

    ordered = True

    def __init__(self, gate: Gate, number: int, cookies: list[int]) -> None:
        super().__init__(gate)
        self._number = number
        self._cookies = cookies

    def _finds(self) -> Sequence[Callable[[], Generator[None, None, None]]]:
        return (self._named,)

    def _named(self) -> Generator[None, None, None]:
        rows = dict(self.worker.table.rows)
        for row, sock in (yield from self._ask(self.worker.overlay.unasked())):
            rows[sock.cookie] = row
        self._meant = {cookie: rows[cookie] for cookie in self._cookies if cookie in rows}

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        self.gate.tell_rows(rows, cause, op="revoked", id=self._number)


class _Enforcement(_Revocation):
    """A new list against the connections that live."""

    def __init__(self, gate: Gate, revision: int, *, overtaken: bool) -> None:
        """*overtaken*: applications may be connecting where they must not any more."""
        super().__init__(gate)
        self.revision = revision
        self._overtaken = overtaken

    def dropped(self, cookie: int) -> None:
        """A row whose connection was reset where it waited."""
        row = self.worker.table.drop(cookie)
        if row is not None:
            self._note(row, cookie, None, self.gate._verdict(row))

    def _finds(self) -> Sequence[Callable[[], Generator[None, None, None]]]:
        # The kernel takes its time to say what nobody asked us about.
        return (self._known_rows, self._unasked) if self.gate.judges else ()

    def _known_rows(self) -> Generator[None, None, None]:
        rows = self.worker.table.rows
        for number, cookie in enumerate(list(rows), 1):
            known = rows.get(cookie)
            if known is not None:
                self._judge(cookie, known)
            if number % ROWS == 0:
                yield

    def _unasked(self) -> Generator[None, None, None]:
        for row, sock in (yield from self._ask(self.worker.overlay.unasked())):
            self._judge(sock.cookie, row)

    def _end(self, rows: list[dict[str, object]], cause: str) -> None:
        missing = [
            {**describe(self.worker.name, row, None, self._began), "rule": self._rules[cookie]}
            for cookie, row in self._rows.items()
            if cookie not in self._revoked
        ]
        # A host connection's handshake that we abort makes the shim take the overlay.
        if self._overtaken or any(
            row.outgoing and self._began - row.since < YOUNG_S for row in self._rows.values()
        ):
            self.gate.watch()
        self.gate._tell(self.revision, rows, cause, missing[:MISSING_MAX])


class _Look(_Revocation):
    """The list in force against what the kernel knows of the overlay."""

    def _finds(self) -> Sequence[Callable[[], Generator[None, None, None]]]:
        return (self._walk,) if self.gate.judges else ()

    def _walk(self) -> Generator[None, None, None]:
        for row, sock in (yield from self._ask(self.worker.overlay.walk())):
            self._judge(sock.cookie, row)

    def _end(self, rows: list[dict[str, object]], _cause: str) -> None:
        self.gate.tell_late(rows)
        self.gate.next_look()


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
