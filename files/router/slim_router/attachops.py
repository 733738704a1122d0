# SPDX-License-Identifier: Apache-2.0
"""The admin socket's operations on attached endpoints, and what keeps them true.

attach, detach and attached are what slim-cni and the OCI hook ask for. Beside them, once a
second: files that were left here or taken away while no router ran, and namespaces that went
without a word. A vip that turns up on another host is given up here, and the connections
with where it was end.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from . import log
from .admin import Admin, AdminError
from .attachments import (
    AttachError,
    Attachment,
    Attachments,
    Name,
    cookie_at,
    now_us,
    parse,
)
from .config import FleetMap, Key, RouterConfig
from .directory import Directory
from .dumps import Dumps
from .endpoints import Endpoint, Registry
from .policyops import PolicyOps
from .ports import PortsError
from .reader import ConfigError

WATCH_S = 1.0
SERVED_S = 3.0
"""How long attach waits for the worker; the container starts then all the same."""

Rows = list[tuple[Endpoint, dict[str, Any]]]
Moves = dict[Key, tuple[str, int]]
"""Where vips of pools are now, and since when (born)."""
Membership = Callable[[], AbstractAsyncContextManager[tuple[RouterConfig, FleetMap]]]


class AttachOps:
    """Serves the operations and watches over what they made."""

    def __init__(
        self,
        attachments: Attachments,
        registry: Registry,
        directory: Directory,
        policy_ops: PolicyOps,
        dumps: Dumps,
        membership: Membership,
        spawn: Callable[[Coroutine[Any, Any, object], str], None],
    ) -> None:
        self.attachments = attachments
        self.registry = registry
        self.directory = directory
        self.policy_ops = policy_ops
        self.dumps = dumps
        self.membership = membership
        self.spawn = spawn
        self._moved: Moves = {}
        self._moving = False

    def register(self, admin: Admin) -> None:
        """Make them known."""
        admin.register(
            "attach", self._op_attach, "serve a container that has just been given its address",
            network=str, container=str, ifname=str, name=str, tenant=str, netns=str,
            addresses=list, once=bool,
        )  # fmt: skip
        admin.register(
            "detach", self._op_detach, "serve it no more, and end its connections",
            network=str, container=str, ifname=str,
        )  # fmt: skip
        admin.register(
            "attached", self._op_attached, "what is attached", network=str, container=str
        )

    def report(self) -> dict[str, object]:
        """For `status`."""
        held = self.attachments
        refused = [
            {"network": name[0], "container": name[1], "ifname": name[2], "cause": cause}
            for name, cause in sorted(held.refused.items())
        ]
        return {
            "count": len(held.records),
            "refused": refused,
            "unreadable": sorted(held.unreadable.values()),
        }

    # --- what is there at start, and once a second --------------------------------------

    def load(self, config: RouterConfig, fleet: FleetMap) -> None:
        """Take up what a router before this one had, and what came without one."""
        new, _unused = self.attachments.scan()
        for record in sorted(new, key=lambda each: each.born or now_us()):
            self._adopt(record, config, fleet)

    def _adopt(self, record: Attachment, config: RouterConfig, fleet: FleetMap) -> bool:
        """Take up the file of *record*; one without its namespace goes."""
        held = self.attachments
        try:
            cookie = cookie_at(record.netns)
        except OSError as error:
            cookie, cause = 0, error.strerror or str(error)
        else:
            cause = "another namespace is there"
        try:
            if not cookie or record.cookie not in (0, cookie):
                held.drop(record.id)
                log.info("attached-gone", container=record.container, cause=cause)
                return False
            known = held.records.get(record.id)
            if known is not None and known.cookie == cookie:
                # Left by one that had no answer in time: it is served already.
                held.keep(known)
                return False
            fit = held.admit(record, config, fleet, self._names(record.id))
            born = record.born or max(now_us(), self.directory.claimed(fit.key) + 1)
            held.keep(replace(fit, cookie=cookie, born=born))
        except (AttachError, OSError) as error:
            if held.refused.get(record.id) != str(error):
                log.error(
                    "attached-refused", container=record.container, cause=error,
                    next="it has the plain overlay until then",
                )  # fmt: skip
            held.refused[record.id] = str(error)
            return False
        log.info("attached-found", container=fit.container, vip=fit.vip)
        return True

    async def watch(self) -> None:
        """Find what was missed, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                await self._reconcile()
            except (OSError, PortsError) as error:
                log.error("attached-watch", cause=error, next="will try again")

    async def _reconcile(self) -> None:
        held = self.attachments
        new, taken = held.scan()
        gone = [record for record in held.records.values() if held.is_gone(record)]
        if not new and not gone and not taken:
            return
        async with self.membership() as (config, fleet):
            changed = False
            for record in (*gone, *taken):
                if held.records.get(record.id) is record:
                    held.drop(record.id)
                    changed = True
                    log.info(
                        "attached-gone", container=record.container, vip=record.vip,
                        cause="nobody detached it: its namespace or its file is gone",
                    )  # fmt: skip
            for record in new:
                if held.has_file(record.id):
                    changed |= self._adopt(record, config, fleet)
            if changed:
                await self.registry.apply(config, fleet)

    def _names(self, but: Name) -> set[str]:
        """Of this host's other endpoints."""
        own = self.attachments.records.get(but)
        return {
            ep.spec.name
            for ep in self.registry.endpoints.values()
            if own is None or ep.key != own.key
        }

    # --- attach -----------------------------------------------------------------------------

    async def _op_attach(self, request: dict[str, Any]) -> object:
        began = time.monotonic()
        once = bool(request.pop("once", False))
        try:
            asked = parse({"version": 1, **request}, "attach")
        except ConfigError as error:
            raise AdminError(str(error)) from error
        try:
            async with self.membership() as (config, fleet):
                record, changed = self._attach(asked, config, fleet, once)
                if changed:
                    try:
                        await self.registry.apply(config, fleet)
                    except BaseException:
                        self.attachments.drop(record.id)
                        raise
        except (AttachError, PortsError) as error:
            raise AdminError(f"attach: {error}") from error
        except OSError as error:
            cause = error.strerror or str(error)
            raise AdminError(
                f"attach: {self.attachments.directory}: {cause}; make room there, and try again"
            ) from error
        return {**record.report(), "changed": changed, **await self._served(record, began)}

    def _attach(
        self, asked: Attachment, config: RouterConfig, fleet: FleetMap, once: bool
    ) -> tuple[Attachment, bool]:
        """(what is attached, whether that is new). Raises AttachError, OSError."""
        held = self.attachments
        try:
            cookie = cookie_at(asked.netns)
        except OSError as error:
            cause = error.strerror or str(error)
            raise AttachError(
                f"netns {asked.netns}: {cause}; give the path of a network namespace"
            ) from error
        if cookie == self.registry.own_cookie:
            raise AttachError(
                f"netns {asked.netns} is the host's own; containers of the host's network need"
                " no endpoint: leave slim out for them"
            )
        for record in list(held.records.values()):
            if record.id != asked.id and held.is_gone(record):
                held.drop(record.id)
            elif record.cookie == cookie and (record.id == asked.id or once):
                same = record.tenant == asked.tenant and (
                    not asked.addresses or record.vip in asked.addresses
                )
                if once or same:
                    return record, False
            elif record.cookie == cookie:
                raise AttachError(
                    f"netns {asked.netns} is already that of {record.name}, by network"
                    f" {record.network}; chain slim into one network of a container only"
                )
        holder = self.registry.by_cookie.get(cookie)
        if holder is not None and not holder.spec.born:
            raise AttachError(
                f"netns {asked.netns} is that of endpoint {holder.spec.label} of the map;"
                " leave slim out for this container, or take the endpoint out of slim_endpoints"
            )
        fit = held.admit(
            replace(asked, vip=""), config, fleet, self._names(asked.id)
        )  # fmt: skip
        # Later than whoever has the vip, though that one's clock be ahead of ours.
        born = max(now_us(), self.directory.claimed(fit.key) + 1)
        made = replace(fit, cookie=cookie, born=born)
        held.keep(made)
        log.info("attached", container=made.container, name=made.name, vip=made.vip)
        return made, True

    async def _served(self, record: Attachment, began: float) -> dict[str, object]:
        """The endpoint's state, when it is up or enough time has passed."""
        while True:
            ep = self.registry.endpoints.get(record.key)
            if ep is None:
                return {"state": "absent", "detail": self.attachments.refused.get(record.id, "")}
            if ep.state != "starting" or time.monotonic() - began > SERVED_S:
                return {"state": ep.state, "detail": ep.detail}
            await asyncio.sleep(0.01)

    # --- detach -----------------------------------------------------------------------------

    async def _op_detach(self, request: dict[str, Any]) -> object:
        missing = [name for name in ("network", "container", "ifname") if not request.get(name)]
        if missing:
            raise AdminError(f"detach: {missing[0]}: missing; give network, container and ifname")
        name = (request["network"], request["container"], request["ifname"])
        return {"detached": await self._detach(name)}

    async def _detach(self, name: Name) -> bool:
        """Attached no more, with its connections ended; was it? Raises AdminError."""
        record = self.attachments.records.get(name)
        try:
            if record is None:
                self.attachments.drop(name)  # a file that could not be served
                return False
            ep = self.registry.endpoints.get(record.key)
            if ep is not None and ep.up:
                # Nobody is left to answer for them; the other ends must not wait.
                dumped = await self.dumps.collect([ep])
                await self.policy_ops.end([(ep, row) for d in dumped for row in d.connections])
            async with self.membership() as (config, fleet):
                if self.attachments.records.get(name) is not record:
                    return False
                self.attachments.drop(name)
                await self.registry.apply(config, fleet)
        except (OSError, PortsError) as error:
            raise AdminError(f"detach: {error}; ask again") from error
        log.info("detached", container=record.container, name=record.name, vip=record.vip)
        return True

    async def _op_attached(self, request: dict[str, Any]) -> object:
        held = self.attachments
        rows = []
        for record in sorted(held.records.values(), key=lambda each: each.id):
            if request.get("network") in (None, record.network) and request.get("container") in (
                None,
                record.container,
            ):
                ep = self.registry.endpoints.get(record.key)
                refused = held.refused.get(record.id, "")
                rows.append(
                    {
                        **record.report(),
                        "state": ep.state if ep is not None and not refused else "refused",
                        "detail": ep.detail if ep is not None and not refused else refused,
                    }
                )
        return {"attached": rows, **self.report()}

    # --- moves --------------------------------------------------------------------------------

    def on_moved(self, key: Key, host: str, born: int) -> None:
        """The vip of a pool is on *host* now, and was not before."""
        self._moved[key] = (host, born)
        if not self._moving:
            self._moving = True
            self.spawn(self._follow(), "moved")

    async def _follow(self) -> None:
        """What moved, all of it at once: a host that moves many costs no more than one."""
        try:
            while self._moved:
                batch, self._moved = self._moved, {}
                await self._give_up(batch)
                await self._end_old(batch)
        except AdminError as error:
            log.error("moved", cause=error)
        finally:
            self._moving = False

    async def _give_up(self, batch: Moves) -> None:
        """What is attached here, and later elsewhere."""
        for record in list(self.attachments.records.values()):
            host, born = batch.get(record.key, (self.directory.config.host, 0))
            if host != self.directory.config.host and record.born <= born:
                log.warning(
                    "attached-elsewhere", container=record.container, vip=record.vip,
                    cause=f"host {host} attached the same vip later",
                    next="end the container here, or give one of them another address",
                )  # fmt: skip
                await self._detach(record.id)

    async def _end_old(self, batch: Moves) -> None:
        """Connections of our endpoints with where the vips were: nobody else may be left to."""
        rows: Rows = []
        for dump in await self.dumps.collect(self.registry.endpoints.values()):
            for row in dump.connections:
                peer = row.get("dst" if row.get("direction") == "out" else "src")
                host, born = batch.get((dump.endpoint.spec.tenant, str(peer)), ("", 0))
                spec = self.directory.fleet.hosts.get(host)
                if spec is not None and _before(row, spec.address, born):
                    rows.append((dump.endpoint, row))
        if rows:
            ended = await self.policy_ops.end(rows)
            log.info("moved-ended", vips=len(batch), connections=len(ended))


def _before(row: dict[str, Any], address: str, born: int) -> bool:
    """Was this connection made with the vip's host before the one at *address*?"""
    if row.get("path") == "slim" and row.get("hdst"):
        return bool(row["hdst"] != address)
    return float(row.get("age_s") or 0) > max(0.0, (now_us() - born) / 1e6)
