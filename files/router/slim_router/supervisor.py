# SPDX-License-Identifier: Apache-2.0
"""The supervisor: owns configuration, map, endpoints, trunks, admin and metrics.

Nothing of it lies on the path of a warm connect, and no established connection
needs it: it may be killed and started again at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from . import __version__, config, log, netns, notify, trunk
from .admin import Admin, AdminError
from .attachments import Attachments
from .attachops import AttachOps
from .config import FleetMap, RouterConfig
from .directory import Directory
from .dumps import Dumps
from .endpoints import Endpoint, Registry
from .enforcement import Enforcement
from .flowbook import FlowBook
from .guard import CHECK_S, Guard
from .limits import Limits
from .link import Message
from .metrics import MetricsServer, Snapshot
from .nursery import Nursery, NurseryError
from .paths import Paths
from .policyops import PolicyOps
from .policystore import PolicyStore
from .ports import PortsError, PortTable
from .reader import ConfigError
from .shimdoor import ShimDoor
from .trunk import TlsError, Trunks

SETTLE_S = 5.0  # READY waits this long for the endpoints whose namespaces exist
COUNTERS_AGE_S = 2.0  # a scrape does not ask the workers more often
CONNECTIONS_MAX = 100_000  # rows of one reply on the admin socket


class AlreadyRunning(RuntimeError):
    """Another router holds the state directory."""


class StartError(RuntimeError):
    """The host does not let us start; the text is for the operator."""


class Supervisor:
    """One router."""

    def __init__(
        self,
        paths: Paths,
        *,
        worker_module: str = "slim_router.worker",
        worker_search: tuple[Path, ...] = (),
        scan_s: float | None = None,
    ) -> None:
        self.paths = paths
        self.started = time.time()
        self.counters: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter()
        self.last_reload = ""
        self.stopping = asyncio.Event()
        self.dumps = Dumps()
        self.guard = Guard()
        self._worker_module = worker_module
        self._worker_search = worker_search
        self._scan_s = scan_s
        self._lock_fd = -1
        self._pid_file_written = False
        self._reload_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._undo: list[Callable[[], Awaitable[None] | None]] = []
        self._counters_at = 0.0
        self._worker_counters: list[tuple[str, str, dict[str, int]]] = []
        self.config: RouterConfig
        self.fleet: FleetMap
        self.registry: Registry
        self.trunks: Trunks
        self.directory: Directory
        self.nursery: Nursery
        self.enforcement: Enforcement
        self.policy_ops: PolicyOps
        self.attach_ops: AttachOps
        self.flows: FlowBook
        self.limits: Limits
        self.door: ShimDoor
        self.admin: Admin

    # --- start and stop -----------------------------------------------------------

    async def start(self) -> None:
        """Serve. Raises ConfigError, TlsError, AlreadyRunning, StartError."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        self.config, self.fleet = await asyncio.to_thread(
            config.load, self.paths.config, self.paths.map
        )
        try:
            self._take_lock()
            nursery = self.nursery = Nursery(
                self._worker_exited, self._worker_module, self._worker_search
            )
            self._undo.append(nursery.stop)
            await nursery.start()
            # (stopped after the workers: their last notes are still to come)
            self.flows = FlowBook(self.config.host, self.config.data_ports)
            self._undo.append(lambda: asyncio.to_thread(self.flows.stop))
            self.flows.use(self.config.flow_log)
            ports = PortTable(self.paths.ports, self.config.data_ports)
            self.directory = Directory(self.config, self.fleet, self.counters)
            self.trunks = Trunks(self.config, self.fleet, self.directory, self.counters)
            self.registry = Registry(self.config, nursery, ports, self, self.counters)
            if self._scan_s is not None:
                self.registry.scan_s = self._scan_s
            # Read before there is a worker: what a list forbids is never let through first.
            self.enforcement = await asyncio.to_thread(Enforcement, PolicyStore(self.paths.policy))
            self.enforcement.endpoints = self.registry.endpoints.values
            self.enforcement.unheard = self.dumps.unheard = self.registry.unheard
            self.policy_ops = PolicyOps(
                self.enforcement, self.dumps, self.registry.endpoints.values
            )
            self.registry.greet = self.enforcement.greet
            self.registry.rows_dir = self.paths.rows
            self.limits = await asyncio.to_thread(Limits, self.paths.qos)
            self.registry.limits = self.limits.of
            self.directory.registry, self.directory.trunks = self.registry, self.trunks
            self.attach_ops = AttachOps(
                Attachments(self.paths.attached), self.registry, self.directory, self.policy_ops,
                self.dumps, self._membership, self._spawn,
            )  # fmt: skip
            self.registry.attached = self.attach_ops.attachments.specs
            self.directory.on_moved = self.attach_ops.on_moved
            self.attach_ops.load(self.config, self.fleet)
            self._undo.append(self.guard.close)
            self._undo.append(self.registry.stop)
            self.registry.secure(self.guard.use(self.config.secure))
            await self.registry.apply(self.config, self.fleet)
            self._undo.append(self.trunks.stop)
            await self.trunks.start()
            self.admin = Admin(self.paths.admin_socket)
            self._register()
            await self.admin.start()
            self._undo.append(self.admin.stop)
            if self.config.metrics is not None:
                server = MetricsServer(self.config.metrics, self.snapshot)
                await server.start()
                self._undo.append(server.stop)
            # Shims wait briefly for a router: let them meet one that can serve.
            await self.registry.settled(SETTLE_S)
            self.door = ShimDoor(self.paths.shim_socket, self.registry, self.counters)
            self.door.start()
            self._undo.append(self.door.stop)
        except (OSError, NurseryError, PortsError) as error:
            raise StartError(str(error)) from error
        self._spawn(self._watchdog(), "watchdog")
        self._spawn(self._watch_secure(), "secure")
        self._spawn(self.attach_ops.watch(), "attached")
        notify.ready()
        log.info(
            "started", version=__version__, host=self.config.host, revision=self.fleet.revision,
            endpoints=len(self.registry.endpoints), secure=self.config.secure,
        )  # fmt: skip
        if self.config.secure == "none":
            log.warning(
                "not-secure", cause="secure is none: containers are trusted with host sockets",
                next="set secure to bpf or kmod where they are not",
            )  # fmt: skip

    def _take_lock(self) -> None:
        for directory in (self.paths.runtime_dir, self.paths.state_dir):
            directory.mkdir(parents=True, exist_ok=True)
        # Programs without a mount namespace of their own go through here to the shim socket.
        self.paths.runtime_dir.chmod(0o755)
        self.paths.state_dir.chmod(0o700)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._lock_fd = os.open(self.paths.state_dir / "router.lock", flags, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise AlreadyRunning(
                f"state directory {self.paths.state_dir}: another router uses it; stop that one"
            ) from None
        if not os.environ.get("NOTIFY_SOCKET"):
            self.paths.pid_file.write_text(f"{os.getpid()}\n")
            self._pid_file_written = True

    async def stop(self) -> None:
        """Orderly end, bounded in time: last started, first stopped."""
        self.stopping.set()
        notify.stopping()
        for task in self._tasks:
            task.cancel()
        for undo in reversed(self._undo):
            try:
                pending = undo()
                if pending is not None:
                    async with asyncio.timeout(10):
                        await pending
            except Exception as error:
                log.error("stop", cause=repr(error))
        self._undo.clear()
        if self._pid_file_written:
            self.paths.pid_file.unlink(missing_ok=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    async def run(self) -> None:
        """Start, serve until SIGTERM or SIGINT, stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        await self.start()
        await self.stopping.wait()
        log.info("stopping")
        await self.stop()

    def _on_hangup(self) -> None:
        if hasattr(self, "directory"):
            self._spawn(self._reload_logged(), "reload")

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watchdog(self) -> None:
        interval = notify.watchdog_interval()
        while interval is not None:
            notify.alive()
            await asyncio.sleep(interval)

    async def _watch_secure(self) -> None:
        """Stop serving when the backend goes, begin when it comes."""
        while True:
            await asyncio.sleep(CHECK_S)
            self.registry.secure(self.guard.check())

    # --- reload ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _membership(self) -> AsyncIterator[tuple[RouterConfig, FleetMap]]:
        """Nobody else changes who the endpoints are meanwhile."""
        async with self._reload_lock:
            yield self.config, self.fleet

    async def _reload_logged(self) -> None:
        with contextlib.suppress(AdminError):  # it has been logged
            await self.reload()

    async def reload(self) -> dict[str, object]:
        """Read the files again and apply what changed. Raises AdminError, changing nothing."""
        async with self._reload_lock:
            notify.reloading()
            try:
                result = await self._reload()
                self.reloads["applied"] += 1
                self.last_reload = ""
                return result
            except (ConfigError, TlsError, PortsError, OSError) as error:
                self.reloads["refused"] += 1
                self.last_reload = str(error)
                log.error("reload-refused", cause=error, next="the old configuration stays in use")
                raise AdminError(f"{error} (the old configuration stays in use)") from error
            finally:
                notify.ready()

    async def _reload(self) -> dict[str, object]:
        new, fleet = await asyncio.to_thread(config.load, self.paths.config, self.paths.map)
        for name in ("host", "address", "trunk_port", "data_ports", "metrics"):
            if getattr(new, name) != getattr(self.config, name):
                raise ConfigError(
                    f"{self.paths.config}: {name} changed, which a running router cannot follow;"
                    " restart it"
                )
        contexts = await asyncio.to_thread(trunk.contexts, new.tls)
        before = set(self.registry.endpoints)
        # Endpoints first: it is the step that can fail, before anything is changed.
        self.registry.secure(self.guard.use(new.secure))
        try:
            await self.registry.apply(new, fleet)
        except BaseException:
            self.registry.secure(self.guard.use(self.config.secure))
            raise
        self._limit_again()
        self.directory.apply(new, fleet)
        self.trunks.apply(new, fleet, contexts)
        began = not self.flows.on
        self.flows.use(new.flow_log)
        if began:
            for ep in self.registry.endpoints.values():
                self._watch_ends(ep)
        self.config, self.fleet = new, fleet
        after = set(self.registry.endpoints)
        log.info(
            "reloaded", revision=fleet.revision, added=len(after - before),
            removed=len(before - after),
        )  # fmt: skip
        return {
            "revision": fleet.revision,
            "hosts": len(fleet.hosts),
            "endpoints": len(fleet.endpoints),
            "added": sorted("/".join(key) for key in after - before),
            "removed": sorted("/".join(key) for key in before - after),
        }

    # --- rates and classes of service -----------------------------------------------

    def _limit_again(self) -> int:
        """Read qos.json and tell every worker; how many. What cannot be read changes nothing."""
        with contextlib.suppress(ConfigError):  # it has been logged, and status says it
            self.limits.read()
        return sum(
            ep.tell({"op": "limits", "limits": self.limits.of(ep.spec)})
            for ep in self.registry.endpoints.values()
        )

    async def _op_limits(self, _unused: dict[str, Any]) -> object:
        async with self._reload_lock:
            told = self._limit_again()
        if self.limits.cause:
            raise AdminError(f"{self.limits.cause} (what was in force stays)")
        return {**self.limits.report(), "told": told}

    # --- events of the registry --------------------------------------------------------

    def on_worker_message(self, endpoint: Endpoint, message: Message) -> None:
        """A worker said something."""
        op = message.get("op")
        if op == "dumped":
            self.dumps.on_dumped(endpoint, message)
        elif op == "barred":
            self._on_barred(endpoint, message)
        elif op == "enforced":
            self.enforcement.on_enforced(endpoint, message)
        elif op == "revoked":
            self.policy_ops.on_revoked(endpoint, message)
        elif op == "flows":
            self.flows.take(endpoint.key, endpoint.spec.name, message, self.enforcement.rule_of)
        elif op == "untagged":
            log.error(
                "socket-not-tagged", endpoint=endpoint.spec.label, cause=message["cause"],
                next="its connections take the overlay; see slimctl status",
            )  # fmt: skip
        else:
            self.directory.on_worker_message(endpoint, message)

    @staticmethod
    def _on_barred(endpoint: Endpoint, message: Message) -> None:
        """A process of the container is refused by secure mode; or, without cause, has ended."""
        who, cause, step = (str(message[name]) for name in ("who", "cause", "next"))
        endpoint.barred = f"refused: {who} {cause}; {step}" if cause else ""
        if cause and endpoint.complained != cause:
            endpoint.complained = cause
            log.error(
                "shim-refused", endpoint=endpoint.spec.label, process=who, cause=cause, next=step
            )

    def on_endpoint_changed(self, endpoint: Endpoint) -> None:
        """A worker came or went."""
        if endpoint.up:
            self.enforcement.on_up(endpoint)
        else:
            self.dumps.on_gone(endpoint)
            self.enforcement.on_gone(endpoint)
            self.policy_ops.on_gone(endpoint)
        self._watch_ends(endpoint)
        self.directory.on_endpoint_changed(endpoint)

    def _watch_ends(self, ep: Endpoint) -> None:
        """Flow log: hear of the ends of the endpoint's sockets as long as its namespace is there,
        whether or not a worker is."""
        path = ep.spec.netns or ""
        if ep.up and self.flows.on:
            with contextlib.suppress(OSError):  # gone again; its task sees that, too
                self.flows.watch(ep.key, netns.open_path(path)[0])
        elif not ep.up and not self.stopping.is_set():
            gone = netns.identify(path) != ep.identity
            if gone or ep.removed:
                self.flows.unwatch(ep.key, gone=gone)

    def _worker_exited(self, pid: int, status: int) -> None:
        self.registry.worker_exited(pid, status)

    # --- admin ----------------------------------------------------------------------------

    def _register(self) -> None:
        admin = self.admin
        admin.register("ping", self._op_ping, "is a router there?")
        admin.register("version", self._op_ping, "the same")
        admin.register("status", self._op_status, "the router as a whole")
        admin.register("endpoints", self._op_endpoints, "the endpoints of this host")
        admin.register(
            "connections", self._op_connections, "live connections",
            endpoint=str, tenant=str, path=str, limit=int,
        )  # fmt: skip
        admin.register("metrics", self._op_metrics, "counters as JSON")
        admin.register("limits", self._op_limits, "read qos.json again")
        admin.register("reload", self._op_reload, "read router.json and map.json again")
        self.policy_ops.register(admin)
        self.attach_ops.register(admin)

    async def _op_ping(self, _unused: dict[str, Any]) -> object:
        return {"version": __version__, "host": self.config.host, "pid": os.getpid()}

    async def _op_status(self, _unused: dict[str, Any]) -> object:
        endpoints = list(self.registry.endpoints.values())
        return {
            "version": __version__,
            "host": self.config.host,
            "address": self.config.address,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self.started, 3),
            "revision": self.fleet.revision,
            "hosts": len(self.fleet.hosts),
            "fleet_endpoints": len(self.fleet.endpoints),
            "secure": self.config.secure,
            "secure_state": self.guard.report(),
            "reloads": dict(self.reloads),
            "last_reload_error": self.last_reload,
            "zygote": {"pid": self.nursery.pid, "starts": self.nursery.starts},
            "endpoints": dict(Counter(ep.state for ep in endpoints)),
            "attached": self.attach_ops.report(),
            "policy": self.enforcement.report(),
            "flow_log": self.flows.report(),
            "qos": self.limits.report(),
            "trunks": self.trunks.report(),
            "events": dict(sorted(self.counters.items())),
        }

    async def _op_endpoints(self, _unused: dict[str, Any]) -> object:
        dumps = {
            dump.endpoint.key: dump
            for dump in await self.dumps.collect(
                self.registry.endpoints.values(), connections=False
            )
        }
        rows = []
        for key, ep in sorted(self.registry.endpoints.items()):
            row = ep.report()
            dump = dumps.get(key)
            row["listeners"] = dump.listeners if dump else []
            row["counters"] = dump.counters if dump else {}
            rows.append(row)
        return {"endpoints": rows}

    async def _op_connections(self, request: dict[str, Any]) -> object:
        name, tenant = request.get("endpoint"), request.get("tenant")
        path, limit = request.get("path"), request.get("limit", CONNECTIONS_MAX)
        if path not in (None, "slim", "overlay"):
            raise AdminError(f"path {path!r} is neither slim nor overlay")
        chosen = [
            ep
            for ep in self.registry.endpoints.values()
            if name in (None, ep.spec.name) and tenant in (None, ep.spec.tenant)
        ]
        if name is not None and not chosen:
            raise AdminError(f"endpoint {name}: not on host {self.config.host}; ask its own host")
        rows: list[dict[str, Any]] = []
        incomplete, truncated = [], False
        for dump in await self.dumps.collect(chosen):
            if not dump.complete:
                incomplete.append(dump.endpoint.spec.name)
            for row in dump.connections:
                if path is not None and row.get("path") != path:
                    continue
                if len(rows) >= max(0, min(limit, CONNECTIONS_MAX)):
                    truncated = True
                    break
                rows.append({**row, **dump.endpoint.names})
        return {"connections": rows, "incomplete": incomplete, "truncated": truncated}

    async def _op_metrics(self, _unused: dict[str, Any]) -> object:
        shot = await self.snapshot()
        return {
            "events": shot.events,
            "reloads": shot.reloads,
            "trunks": [{"peer": peer, "up": up, "rtt_us": rtt} for peer, up, rtt in shot.trunks],
            "workers": [
                {"endpoint": name, "tenant": tenant, "counters": counters}
                for name, tenant, counters in shot.workers
            ],
        }

    async def _op_reload(self, _unused: dict[str, Any]) -> object:
        return await self.reload()

    async def snapshot(self) -> Snapshot:
        """The state that the metrics are made from; workers are asked at most every
        COUNTERS_AGE_S."""
        now = time.monotonic()
        if now - self._counters_at > COUNTERS_AGE_S:
            self._counters_at = now
            self._worker_counters = [
                (dump.endpoint.spec.name, dump.endpoint.spec.tenant, dump.counters)
                for dump in await self.dumps.collect(
                    self.registry.endpoints.values(), connections=False, timeout=1.0
                )
            ]
        trunks = []
        for row in self.trunks.report():
            rtt = row.get("rtt_us")
            up = row["state"] == "up"
            trunks.append((str(row["host"]), up, rtt if isinstance(rtt, int) else None))
        return Snapshot(
            version=__version__,
            host=self.config.host,
            revision=self.fleet.revision,
            uptime_s=time.time() - self.started,
            reloads=dict(self.reloads),
            endpoints=[
                (ep.spec.name, ep.spec.tenant, ep.state, ep.restarts)
                for ep in self.registry.endpoints.values()
            ],
            trunks=trunks,
            events=dict(self.counters),
            workers=self._worker_counters,
            secure=(self.guard.mode, not self.guard.cause and self.guard.mode != "none"),
            policy=self.enforcement.report(),
            flow_log=self.flows.report(),
        )
