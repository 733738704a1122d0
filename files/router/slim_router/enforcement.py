# SPDX-License-Identifier: Apache-2.0
"""The policy of this host, from the admin socket to the workers. Part of the supervisor.

A new list is read, written to disk (policystore.py), cut for each endpoint (slices.py)
and sent. A worker that has it in force, and has revoked what it forbids, says so and
names the connections; one that does not in time is named instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import blake2s
from typing import Any

from . import log
from .config import Key
from .endpoints import Endpoint
from .link import Message, WorkerLink
from .matcher import Table
from .policy import Policy
from .policystore import PolicyStore
from .slices import Slicer
from .wire import pack_addr

WAIT_S = 5.0
SERVED = ("up", "starting", "wait")
"""States of endpoints that have a worker, or soon have one."""
ROWS_MAX = 100_000
"""Revoked connections that one answer names."""

_LOOPBACK_V6 = pack_addr("::1")
_LOOPBACK_V4 = pack_addr("127.0.0.0")[:13]

Rows = list[dict[str, Any]]


@dataclass(slots=True)
class Round:
    """One revision on its way to the workers, and what they say of it."""

    policy: Policy
    waiting: set[Endpoint]
    revoked: Rows = field(default_factory=list)
    missing: list[tuple[Endpoint, dict[str, Any]]] = field(default_factory=list)
    number: int = 0  # of revoked connections, those that are not named included
    failed: dict[str, str] = field(default_factory=dict)  # endpoint: cause
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def done(self, ep: Endpoint, cause: str = "") -> None:
        """*ep* need not be waited for any more."""
        if ep in self.waiting:
            self.waiting.discard(ep)
            if cause:
                self.failed[ep.spec.name] = cause
            if not self.waiting:
                self.news.set()


@dataclass(slots=True)
class Outcome:
    """What :meth:`Enforcement.put` did."""

    revoked: Rows
    number: int
    incomplete: dict[str, str]  # endpoint: cause
    seconds: float


class Enforcement:
    """Holds the policy in force and sees that every worker has its part of it."""

    def __init__(self, store: PolicyStore) -> None:
        """Reads the file, which takes its time if the list is long."""
        self.store = store
        self.policy = store.load()
        self.slicer = Slicer(self.policy)
        self.seconds = 0.0  # that the last list took, from its receipt to the last answer
        self.revoked = 0
        self.endpoints: Callable[[], Iterable[Endpoint]] = lambda: ()
        self.unheard: Callable[[Endpoint], str] = lambda _unused: ""  # Registry.unheard
        self._round: Round | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._sent: dict[Key, tuple[WorkerLink, bytes]] = {}  # to whom, and what in short
        self.incomplete: dict[str, str] = {}  # endpoints that the last list did not reach, and why
        self._before: tuple[int, list[str]] = (-1, [])  # the list before: revision, rules' ids
        if store.cause:
            log.error(
                "policy-unreadable", cause=store.cause,
                next="every new connection is denied until a list is pushed (slimctl acl-set)",
            )  # fmt: skip

    @property
    def state(self) -> str:
        """in-force, or unreadable: then everything new is denied."""
        return "unreadable" if self.store.cause else "in-force"

    def report(self) -> dict[str, object]:
        """For status."""
        return {
            "revision": self.policy.revision,
            "default": self.policy.default,
            "rules": len(self.policy.rules),
            "state": self.state,
            "cause": self.store.cause,
            "seconds": round(self.seconds, 6),
            "revoked": self.revoked,
            "incomplete": [
                {"endpoint": name, "cause": cause} for name, cause in self.incomplete.items()
            ],
        }

    # --- to the workers -----------------------------------------------------------

    async def greet(self, ep: Endpoint, link: WorkerLink) -> None:
        """The first list of a new worker, behind its configuration: nobody else has the link
        yet, so that nothing comes between."""
        slicer = None
        while slicer is not self.slicer:
            slicer = self.slicer
            await self._send(ep, link, slicer)

    async def _send(self, ep: Endpoint, link: WorkerLink, slicer: Slicer) -> None:
        """*ep*'s part of the list, whole, or the word that it has not changed. Must not be
        cancelled: the pieces of a list follow each other."""
        ep.policy_revision = slicer.policy.revision
        kept = blake2s()
        pieces = []
        for piece in slicer.pieces(ep.spec.tenant, pack_addr(ep.spec.vip)):
            kept.update(piece.partition(b',"part":')[2])  # all but its revision
            pieces.append(piece)
            await asyncio.sleep(0)
        short = kept.digest()
        if self._sent.get(ep.key) == (link, short):
            link.send({"op": "policy", "revision": ep.policy_revision, "same": True})
            return
        self._sent.pop(ep.key, None)
        for piece in pieces:
            if not link.send_encoded(piece):
                return
            await asyncio.sleep(0)
        self._sent[ep.key] = (link, short)

    async def _tell(self, ep: Endpoint) -> None:
        """The list in force, to a worker that is up and has another."""
        async with ep.policy_lock:
            if ep.link is not None and ep.policy_revision != self.policy.revision:
                await self._send(ep, ep.link, self.slicer)

    def _tell_all(self, endpoints: Iterable[Endpoint]) -> None:
        async def work() -> None:
            for ep in endpoints:
                await self._tell(ep)

        task = asyncio.create_task(work(), name="policy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_up(self, ep: Endpoint) -> None:
        """A worker has come up, with the list that it was greeted with."""
        self._tell_all([ep])

    def on_gone(self, ep: Endpoint) -> None:
        """A worker has ended; its successor, if there will be one, judges what lives."""
        if self._round is not None and ep.removed:
            self._round.done(ep)

    # --- a new list -----------------------------------------------------------------

    async def put(self, new: Policy, wait_s: float = WAIT_S, began: float = 0.0) -> Outcome:
        """Write *new*, whose revision is the next, to disk; enforce it; gather what was revoked.

        *began* is when the list came, of the monotonic clock; now, if not given. Raises
        OSError when it cannot be written: then nothing has changed. The caller sees to it
        that there is one at a time.
        """
        began = began or time.monotonic()
        slicer = await asyncio.to_thread(Slicer, new)
        await asyncio.to_thread(self.store.save, new)
        self._before = (self.policy.revision, [rule.id for rule in self.policy.rules])
        self.policy, self.slicer = new, slicer
        # (A worker that is about to come up is told then, and finds its predecessor's rows.)
        targets = [ep for ep in self.endpoints() if ep.state in SERVED]
        this = self._round = Round(new, set(targets))
        if targets:
            self._tell_all(targets)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(this.news.wait(), wait_s)
        self.seconds = time.monotonic() - began
        self._add_other_ends(this)
        incomplete = dict(this.failed)
        for ep in this.waiting:
            incomplete[ep.spec.name] = f"no answer within {wait_s:g} s"
        for ep in set(self.endpoints()).difference(targets):
            if cause := self.unheard(ep):
                incomplete[ep.spec.name] = cause
        self.incomplete = incomplete
        for name, cause in incomplete.items():
            log.error(
                "policy-incomplete", endpoint=name, revision=new.revision, cause=cause,
                next="push the list again, or restart the endpoint's worker",
            )  # fmt: skip
        log.info(
            "policy", revision=new.revision, rules=len(new.rules), default=new.default,
            revoked=this.number, incomplete=len(incomplete), seconds=round(self.seconds, 4),
        )  # fmt: skip
        return Outcome(this.revoked, this.number, incomplete, self.seconds)

    def on_enforced(self, ep: Endpoint, message: Message) -> None:
        """A worker's word on a revision. Raises KeyError, TypeError, ValueError."""
        revision, cause, rows = message["revision"], str(message["cause"]), message["revoked"]
        if not isinstance(rows, list) or not isinstance(revision, int):
            raise TypeError("revoked or revision")
        self.revoked += len(rows)
        this = self._round
        if this is None or revision != this.policy.revision:
            return
        if ep in this.waiting:  # and not what is found later
            for row in rows:
                self._add(this, ep, row)
        for row in message.get("missing", ()):
            this.missing.append((ep, row))
        if message["last"]:
            if cause:
                self._sent.pop(ep.key, None)  # the same list again is worth a second try
            elif ep in this.waiting:
                self.incomplete.pop(ep.spec.name, None)  # nobody waited so long; whole after all
            this.done(ep, cause)

    def _add(self, this: Round, ep: Endpoint, row: dict[str, Any]) -> None:
        if len(this.revoked) < ROWS_MAX:
            this.revoked.append({**row, **ep.names, **self._rule(row)})
        this.number += 1

    def _add_other_ends(self, this: Round) -> None:
        """A connection within this host has two rows. Whoever revokes first resets the other
        end, whose worker then finds nothing: that row was revoked as well."""
        ends: dict[tuple[object, ...], Rows] = {}
        for row in this.revoked:
            for sport in (row["sport"], 0):  # an outgoing overlay row may not know its port
                ends.setdefault((row["tenant"], *_name_of(row, sport)), []).append(row)
        for ep, row in this.missing:
            other = "in" if row["direction"] == "out" else "out"
            same = ends.get((ep.spec.tenant, *_name_of({**row, "direction": other}, row["sport"])))
            if same:
                first = same.pop()
                self.revoked += 1
                self._add(this, ep, {**row, "sport": first["sport"], **_swapped(first)})

    def _rule(self, row: dict[str, Any]) -> dict[str, object]:
        index = row["rule"]
        rules = self.policy.rules
        return {"rule": rules[index].id if 0 <= index < len(rules) else None}

    def rule_of(self, index: int, revision: int) -> str | None:
        """The id of rule *index* of the list in force, or of the one before, from which a
        worker may still speak. None: the default, or a list longer ago. For any thread."""
        held = self.policy
        if revision == held.revision:
            return held.rules[index].id if 0 <= index < len(held.rules) else None
        before, ids = self._before
        return ids[index] if revision == before and 0 <= index < len(ids) else None

    # --- foresight --------------------------------------------------------------------

    def forbidden(self, new: Policy, dumps: Iterable[tuple[Endpoint, Rows]]) -> Rows:
        """The rows of the workers' tables that *new* would revoke. Takes its time: for a
        thread."""
        slicer = Slicer(new)
        found: Rows = []
        for ep, rows in dumps:
            vip = pack_addr(ep.spec.vip)
            cut = slicer.slice_for(ep.spec.tenant, vip)
            out, into = (Table(side, cut.default) for side in (cut.egress, cut.ingress))
            for row in rows:
                outgoing = row["direction"] == "out"
                peer = pack_addr(row["dst" if outgoing else "src"])
                allowed, index = (out if outgoing else into).decide(peer, row["dport"])
                if not allowed and peer != vip and not _is_loopback(peer):
                    rule = new.rules[index].id if index >= 0 else None
                    found.append({**row, **ep.names, "rule": rule})
        return found


def _name_of(row: dict[str, Any], sport: int) -> tuple[object, ...]:
    return (row["path"], row["direction"], row["src"], sport, row["dst"], row["dport"])


def _swapped(row: dict[str, Any]) -> dict[str, object]:
    """What the kernel said of the other end, as this end would have had it."""
    return {
        "hsrc": row["hdst"], "hsport": row["hdport"], "hdst": row["hsrc"], "hdport": row["hsport"],
        "bytes_sent": row["bytes_received"], "bytes_received": row["bytes_sent"],
    }  # fmt: skip


def _is_loopback(address: bytes) -> bool:
    return address == _LOOPBACK_V6 or address[:13] == _LOOPBACK_V4
