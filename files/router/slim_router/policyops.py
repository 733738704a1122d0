# SPDX-License-Identifier: Apache-2.0
"""The admin socket's operations on the policy: acl, acl-set, revoke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from . import policy
from .admin import Admin, AdminError
from .changes import diff
from .dumps import Dump, Dumps
from .endpoints import Endpoint
from .enforcement import ROWS_MAX, WAIT_S, Enforcement, Rows
from .findings import findings
from .link import Message
from .policy import Policy
from .reader import ConfigError

WAIT_MAX_S = 25  # below admin.REPLY_S
FINDINGS_S = 5.0  # of CPU time for warnings
SHOWN = 5  # connections that a refusal names
COOKIES = 2000  # of one message: below 60,000 bytes
SELECTORS = ("endpoint", "tenant", "src", "dst", "dport", "path", "cookie")
ROW_SELECTORS = ("src", "dst", "dport", "path", "cookie")


class PolicyOps:
    """Serves the operations, one change at a time."""

    def __init__(
        self, enforcement: Enforcement, dumps: Dumps, endpoints: Callable[[], Iterable[Endpoint]]
    ) -> None:
        self.enforcement = enforcement
        self.dumps = dumps
        self.endpoints = endpoints
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._next = 0
        self._orders: dict[int, _Order] = {}

    def register(self, admin: Admin) -> None:
        """Make them known."""
        admin.register("acl", self._op_acl, "the policy in force")
        admin.register(
            "acl-set", self._op_set, "put another policy in force, and revoke what it forbids",
            rules=list, default=str, expect=int, dry_run=bool, max_revoked=int, wait=int,
        )  # fmt: skip
        admin.register(
            "revoke", self._op_revoke, "end live connections", endpoint=str, tenant=str, src=str,
            dst=str, dport=int, path=str, cookie=int, dry_run=bool, max_revoked=int,
        )  # fmt: skip

    async def _op_acl(self, _unused: dict[str, Any]) -> object:
        held = self.enforcement
        dumped = await asyncio.to_thread(policy.dump, held.policy)
        return {
            "revision": dumped["revision"], "default": dumped["default"],
            "rules": dumped["rules"], "state": held.state, "cause": held.store.cause,
        }  # fmt: skip

    async def _whole(self, work: Coroutine[Any, Any, object]) -> object:
        """Do *work* to its end, whatever becomes of who asked: half a change is none."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    # --- acl-set --------------------------------------------------------------------

    async def _op_set(self, request: dict[str, Any]) -> object:
        _check(request, "acl-set", "wait", 0, WAIT_MAX_S)
        _check(request, "acl-set", "max_revoked", 0, 2**31)
        return await self._whole(self._set(request, time.monotonic()))

    async def _set(self, request: dict[str, Any], began: float) -> object:
        async with self._lock:
            held = self.enforcement
            old = held.policy
            expect = request.get("expect")
            if expect is not None and expect != old.revision:
                raise AdminError(
                    f"acl-set: expect: revision {expect}, but revision {old.revision} is in"
                    " force; read it (acl) and decide anew"
                )
            new = await asyncio.to_thread(_parse, request, old.revision + 1)
            dry = bool(request.get("dry_run"))
            # (a list that did not reach everybody may be pushed again)
            if old.same_as(new) and not held.store.cause and not held.incomplete:
                return await self._answer(old, old, changed=False, dry_run=dry)
            limit = request.get("max_revoked")
            if dry or limit is not None:
                doomed, silent = await self._foresee(new)
                if limit is not None:
                    _guard("acl-set", doomed, limit, silent)
                if dry:
                    return await self._answer(
                        old, new, dry_run=True, revoked=doomed[:ROWS_MAX],
                        revoked_total=len(doomed), incomplete=_causes(silent),
                    )  # fmt: skip
            try:
                done = await held.put(new, float(request.get("wait", WAIT_S)), began)
            except OSError as error:
                raise AdminError(
                    f"acl-set: {held.store.path}: {error.strerror or error}; revision"
                    f" {old.revision} stays in force; make room, or correct what the disk has"
                ) from error
            return await self._answer(
                old, new, revoked=done.revoked, revoked_total=done.number,
                seconds=round(done.seconds, 6),
                incomplete=_causes(done.incomplete),
            )  # fmt: skip

    @staticmethod
    async def _answer(
        old: Policy, new: Policy, *, changed: bool = True, dry_run: bool = False, **more: object
    ) -> dict[str, object]:
        def make() -> dict[str, object]:
            differs = diff(old, new)
            found = findings(new, FINDINGS_S)
            warnings = [str(each) for each in found.found]
            if not found.complete:
                warnings.append("not all pairs of rules were compared: there are too many")
            return {"diff": differs.to_json(), "lines": differs.lines(), "warnings": warnings}

        return {
            "revision": new.revision, "changed": changed, "dry_run": dry_run,
            "revoked": [], "revoked_total": 0, "incomplete": [], "seconds": 0.0,
            **await asyncio.to_thread(make), **more,
        }  # fmt: skip

    async def _foresee(self, new: Policy) -> tuple[Rows, dict[str, str]]:
        """(what *new* would revoke, endpoints that did not tell what they have, and why)."""
        dumped = await self.dumps.collect(self.endpoints())
        silent = _silent(dumped)
        rows = [(dump.endpoint, dump.connections) for dump in dumped]
        doomed = await asyncio.to_thread(self.enforcement.forbidden, new, rows)
        return doomed, silent

    # --- revoke ----------------------------------------------------------------------

    async def _op_revoke(self, request: dict[str, Any]) -> object:
        if not any(request.get(name) is not None for name in SELECTORS):
            raise AdminError(f"revoke: no selector; give one or more of {', '.join(SELECTORS)}")
        if request.get("path") not in (None, "slim", "overlay"):
            raise AdminError(f"revoke: path {request['path']!r} is neither slim nor overlay")
        _check(request, "revoke", "max_revoked", 0, 2**31)
        return await self._whole(self._revoke(request))

    async def _revoke(self, request: dict[str, Any]) -> object:
        async with self._lock:
            name, tenant = request.get("endpoint"), request.get("tenant")
            chosen = [
                ep
                for ep in self.endpoints()
                if name in (None, ep.spec.name) and tenant in (None, ep.spec.tenant)
            ]
            dumped = await self.dumps.collect(chosen)
            wanted = {key: request[key] for key in ROW_SELECTORS if request.get(key) is not None}
            found = [
                (dump.endpoint, row)
                for dump in dumped
                for row in dump.connections
                if all(row.get(key) == value for key, value in wanted.items())
            ]
            silent = _silent(dumped)
            rows = [{**row, **ep.names, "rule": None} for ep, row in found]
            if request.get("max_revoked") is not None:
                _guard("revoke", rows, request["max_revoked"], silent)
            dry = bool(request.get("dry_run"))
            if not dry:
                rows = await self._order(found, silent)
            return {
                "revoked": rows[:ROWS_MAX], "revoked_total": len(rows), "dry_run": dry,
                "incomplete": _causes(silent),
            }  # fmt: skip

    async def end(self, found: list[tuple[Endpoint, dict[str, Any]]]) -> Rows:
        """End these connections, whatever the policy says of them; those that were ended."""
        async with self._lock:
            return await self._order(found, {})

    async def _order(
        self, found: list[tuple[Endpoint, dict[str, Any]]], silent: dict[str, str]
    ) -> Rows:
        """Have the workers revoke them; what they say they did."""
        cookies: dict[Endpoint, list[int]] = {}
        for ep, row in found:
            cookies.setdefault(ep, []).append(row["cookie"])
        orders = []
        for ep, numbers in cookies.items():
            for start in range(0, len(numbers), COOKIES):
                self._next += 1
                order = self._orders[self._next] = _Order(ep)
                orders.append((self._next, order))
                piece = numbers[start : start + COOKIES]
                if not ep.tell({"op": "revoke", "id": self._next, "cookies": piece}):
                    order.news.set()
        try:
            async with asyncio.timeout(WAIT_S):
                for _unused, order in orders:
                    await order.news.wait()
        except TimeoutError:
            pass
        rows: Rows = []
        for number, order in orders:
            del self._orders[number]
            rows += order.rows
            if not order.complete:
                silent[order.endpoint.spec.name] = "no full answer"
            elif order.cause:
                silent[order.endpoint.spec.name] = order.cause
        return rows

    def on_revoked(self, ep: Endpoint, message: Message) -> None:
        """A piece of a worker's answer. Raises KeyError, TypeError."""
        order = self._orders.get(message["id"])
        if order is None or order.endpoint is not ep:
            return
        for row in message["revoked"]:
            order.rows.append({**row, **ep.names, "rule": None})
        if message["last"]:
            order.complete, order.cause = True, str(message["cause"])
            order.news.set()

    def on_gone(self, ep: Endpoint) -> None:
        """A worker has ended: nobody need wait for it."""
        for order in self._orders.values():
            if order.endpoint is ep:
                order.news.set()


class _Order:
    """Connections that one worker was told to revoke."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.rows: Rows = []
        self.complete = False
        self.cause = ""
        self.news = asyncio.Event()


def _parse(request: dict[str, Any], revision: int) -> Policy:
    given: dict[str, Any] = {"version": 1, "revision": revision}
    given |= {name: request[name] for name in ("default", "rules") if name in request}
    try:
        return policy.parse(given, "acl-set")
    except ConfigError as error:
        raise AdminError(str(error)) from error


def _check(request: dict[str, Any], op: str, name: str, low: int, high: int) -> None:
    value = request.get(name)
    if value is not None and not low <= value <= high:
        raise AdminError(f"{op}: {name}: {value} is not from {low} to {high}; correct it")


def _silent(dumped: Iterable[Dump]) -> dict[str, str]:
    return {dump.endpoint.spec.name: dump.cause for dump in dumped if not dump.complete}


def _guard(op: str, doomed: Rows, limit: int, silent: dict[str, str]) -> None:
    """Refuse what is above the limit, or may be: whoever sets one wants to know before."""
    if len(doomed) > limit:
        some = "; ".join(
            f"{row['endpoint']} {row['src']}:{row['sport']} to {row['dst']}:{row['dport']}"
            + (f" ({row['rule']})" if row.get("rule") else "")
            for row in doomed[:SHOWN]
        )
        more = " ..." if len(doomed) > SHOWN else ""
        raise AdminError(
            f"{op}: {len(doomed)} connection{'s' * (len(doomed) != 1)} would be revoked, max_revoked"
            f" is {limit}: {some}{more}; nothing was done; raise max_revoked, or correct the request"
        )
    if silent:
        some = "; ".join(f"{name}: {cause}" for name, cause in list(silent.items())[:SHOWN])
        raise AdminError(
            f"{op}: max_revoked is {limit}, and what would be revoked is not wholly known: {some};"
            " nothing was done; ask again when its worker answers, or leave max_revoked out"
        )


def _causes(named: dict[str, str]) -> list[dict[str, str]]:
    return [{"endpoint": name, "cause": cause} for name, cause in named.items()]
