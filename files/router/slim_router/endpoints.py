# SPDX-License-Identifier: Apache-2.0
"""The endpoints of this host: from a line of the map to a serving worker.

Each endpoint has one task that walks through its states::

    absent ---> starting ---> up
      ^            |           |
      +------------+-- wait <--+     (worker ended: same port, growing pauses)

*absent*: nothing at the netns path. *refused*: the namespace is the host's own
or another endpoint's, or secure mode cannot be kept. A namespace that disappears or is replaced ends the
worker; the path is looked at every SCAN_S seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from hashlib import blake2s
from pathlib import Path
from typing import Protocol

from . import blockade, log, netns, rowfile
from .bucket import Bucket
from .config import EndpointSpec, FleetMap, Key, RouterConfig
from .link import Message, WorkerLink
from .nursery import Child, Nursery, NurseryError
from .ports import PortsError, PortTable
from .secure import SecureError

SCAN_S = 0.5
READY_S = 10.0
RESPAWN_FIRST_S, RESPAWN_MAX_S = 0.05, 5.0
STEADY_S = 10.0
"""A worker that lived this long starts its successor's pauses anew."""
STOP_S = 2.0
LISTEN_BACKLOG = 4096
DEFER_ACCEPT_S = 5
SHIM_RATE, SHIM_BURST = 10_000.0, 10_000.0
"""New shim connections per second and at once from one container."""
BIND_PATIENCE = 20
"""Tries, 0.1 s apart, before a port that somebody else holds is given up."""


class Events(Protocol):
    """What the registry tells the rest of the supervisor."""

    def on_worker_message(self, endpoint: Endpoint, message: Message) -> None:
        """A message of the endpoint's worker."""

    def on_endpoint_changed(self, endpoint: Endpoint) -> None:
        """The endpoint came up or went down."""


class Endpoint:
    """One endpoint of this host."""

    def __init__(self, spec: EndpointSpec, port: int) -> None:
        self.spec = spec
        self.port = port
        self.state = "starting"
        self.detail = ""
        self.since = time.time()
        self.restarts = 0
        self.generation = 0  # random for each worker; part of the keys of hellos to it
        self.cookie = 0
        self.identity: netns.Identity | None = None
        self.link: WorkerLink | None = None
        self.child: Child | None = None
        self.asked: dict[str, None] = {}  # vips whose location the worker wants, oldest first
        self.shims = Bucket(SHIM_RATE, SHIM_BURST)
        self.barred = ""  # secure mode: a process that is refused, why, and what to do
        self.cut_off: bool | None = None  # from the overlay (secure_fallback); None: not known
        self.complained = ""  # the last that was said of it in the log
        self.policy_revision = -1  # of the list that its worker was sent
        self.policy_lock = asyncio.Lock()  # who sends a list sends all of it
        self.wake = asyncio.Event()
        self.removed = False
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> Key:
        """(tenant, vip)."""
        return self.spec.key

    @property
    def names(self) -> dict[str, str]:
        """What a row of an answer says of whose it is."""
        return {"endpoint": self.spec.name, "tenant": self.spec.tenant}

    @property
    def up(self) -> bool:
        """Is there a worker that serves?"""
        return self.state == "up"

    def tell(self, message: Message) -> bool:
        """A message to the worker; False if there is none."""
        return self.link is not None and self.up and self.link.send(message)

    def report(self) -> dict[str, object]:
        """For the admin socket."""
        return {
            "name": self.spec.name,
            "tenant": self.spec.tenant,
            "vip": self.spec.vip,
            "netns": self.spec.netns,
            "state": self.state,
            "detail": self.detail or self.barred,
            "since_s": round(time.time() - self.since, 3),
            "data_port": self.port,
            "pid": self.child.pid if self.child else None,
            "restarts": self.restarts,
            "netns_cookie": self.cookie or None,
            "attached": bool(self.spec.born),
            "cut_off": bool(self.cut_off),
        }


def make_listener(address: str, port: int) -> socket.socket:
    """The data listener on a host address: dual-stack, so that a container's
    IPv6 program gets the family that it expects. Raises OSError."""
    mapped = address if ":" in address else f"::ffff:{address}"
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT or ":" in address:
            raise
        return _listen(socket.socket(socket.AF_INET, socket.SOCK_STREAM), address, port)
    try:
        return _listen(sock, mapped, port)
    except OSError as error:
        # EADDRNOTAVAIL also means ipv6.disable_ipv6; IPv4 then decides.
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) or ":" in address:
            raise
    return _listen(socket.socket(socket.AF_INET, socket.SOCK_STREAM), address, port)


def _listen(sock: socket.socket, address: str, port: int) -> socket.socket:
    try:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A host connection without a hello is of no interest to the worker.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT_S)
        sock.bind((address, port))
        sock.listen(LISTEN_BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Registry:
    """All endpoints of this host, by key and by namespace cookie."""

    def __init__(
        self,
        config: RouterConfig,
        nursery: Nursery,
        ports: PortTable,
        events: Events,
        counters: Counter[str],
        scan_s: float = SCAN_S,
    ) -> None:
        self.config = config
        self.nursery = nursery
        self.ports = ports
        self.events = events
        self.counters = counters
        self.scan_s = scan_s
        self.endpoints: dict[Key, Endpoint] = {}
        self.by_cookie: dict[int, Endpoint] = {}
        self.own_cookie = netns.own_cookie()
        self.greet: Callable[[Endpoint, WorkerLink], Awaitable[None]] | None = None
        """Sends a new worker the policy, before anybody is passed to it."""
        self.rows_dir: Path | None = None
        """Where the workers keep their connection tables for their successors."""
        self.limits: Callable[[EndpointSpec], Message | None] = lambda _spec: None
        """What a worker sets on host connections (limits.py)."""
        self.attached: Callable[[RouterConfig, FleetMap], list[EndpointSpec]] = lambda *_unused: []
        """What container runtimes attached here (attachments.py)."""
        self.unsafe = ""  # why secure mode cannot be kept: no endpoint is served then
        self._held: set[int] = set()  # data ports that strangers hold
        self._scanner: asyncio.Task[None] | None = None

    # --- membership -----------------------------------------------------------

    async def apply(self, config: RouterConfig, fleet: FleetMap) -> None:
        """Make the endpoints what the map says; workers that it leaves alone go on.

        Raises PortsError or OSError before anything is changed.
        """
        listed = [*fleet.of_host(config.host), *self.attached(config, fleet)]
        wanted = {spec.key: spec for spec in listed}
        assigned = self._assign(wanted)
        restart_all = _worker_view(config) != _worker_view(self.config)
        logs = config.flow_log is not None
        if logs != (self.config.flow_log is not None):
            for ep in self.endpoints.values():
                if ep.child is not None and ep.link is not None:
                    ep.link.send({"op": "flow_log", "on": logs})
        self.config = config
        gone = [ep for key, ep in self.endpoints.items() if key not in wanted]
        for key, ep in list(self.endpoints.items()):
            new = wanted.get(key)
            if new is not None and (new != ep.spec or restart_all):
                gone.append(ep)
        await asyncio.gather(*(self._remove(ep) for ep in gone))
        for ep in gone:
            if ep.spec.born and ep.key not in wanted and self.rows_dir is not None:
                # Of a container that will not come back; the next one may have its vip.
                _row_path(self.rows_dir, ep.key).unlink(missing_ok=True)
            if ep.cut_off and ep.key not in wanted:  # no longer ours to cut off
                with contextlib.suppress(OSError):
                    fd, _unused = netns.open_path(ep.spec.netns or "")
                    self._let_in(ep, fd)
                    os.close(fd)
        for key, spec in wanted.items():
            if key not in self.endpoints:
                self._add(spec, assigned[_name(key)])
        if self._scanner is None:
            self._scanner = asyncio.create_task(self._scan(), name="netns-scan")
        for ep in self.endpoints.values():
            ep.wake.set()

    def _assign(self, wanted: dict[Key, EndpointSpec]) -> dict[str, int]:
        return self.ports.assign([_name(key) for key in wanted], frozenset(self._held))

    def _add(self, spec: EndpointSpec, port: int) -> None:
        ep = Endpoint(spec, port)
        self.endpoints[spec.key] = ep
        ep.task = asyncio.create_task(self._live(ep), name=f"endpoint-{spec.name}")

    async def _remove(self, ep: Endpoint) -> None:
        ep.removed = True
        ep.wake.set()
        if ep.task is not None:
            await asyncio.wait([ep.task])
        if self.endpoints.get(ep.key) is ep:
            del self.endpoints[ep.key]

    def secure(self, cause: str) -> None:
        """Serve no endpoint while there is a *cause* not to; "" is none."""
        if cause != self.unsafe:
            self.unsafe = cause
            for ep in self.endpoints.values():
                ep.wake.set()

    async def stop(self) -> None:
        """Stop every worker, bounded in time."""
        if self._scanner is not None:
            self._scanner.cancel()
        await asyncio.gather(*(self._remove(ep) for ep in list(self.endpoints.values())))

    async def settled(self, timeout: float) -> None:
        """Wait until no endpoint is on its way up, at most *timeout* seconds."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if all(ep.state != "starting" for ep in self.endpoints.values()):
                return
            await asyncio.sleep(0.02)

    def worker_exited(self, pid: int, status: int) -> None:
        """The zygote saw a worker end; the end of its link does the rest."""
        (log.warning if status else log.debug)("worker-exit", pid=pid, how=_status(status))

    # --- one endpoint's life --------------------------------------------------

    async def _scan(self) -> None:
        """Wake each endpoint whose namespace file is not what it was."""
        while True:
            await asyncio.sleep(self.scan_s)
            for ep in self.endpoints.values():
                if netns.identify(ep.spec.netns or "") != ep.identity:
                    ep.wake.set()

    async def _live(self, ep: Endpoint) -> None:
        pause = RESPAWN_FIRST_S
        listener: socket.socket | None = None
        try:
            while not ep.removed:
                ep.wake.clear()
                fd = self._enter(ep)
                if fd < 0:
                    # Peers get a refusal, not a queue that nobody reads.
                    if listener is not None:
                        listener.close()
                        listener = None
                    await ep.wake.wait()
                    continue
                began = time.monotonic()
                pausing = "wait"
                try:
                    self._set(ep, "starting", ep.detail)
                    if listener is None:
                        listener = await self._listener(ep)
                    await self._serve(ep, listener, fd)
                except SecureError as error:
                    pausing, ep.detail = "refused", str(error)
                    if ep.complained != ep.detail:
                        ep.complained = ep.detail
                        log.error(
                            "endpoint-not-secure", endpoint=ep.spec.label, cause=error,
                            next=f"{self.config.secure_fallback} until it is; will try again",
                        )  # fmt: skip
                    self._cut_off(ep, fd)
                except (NurseryError, PortsError, OSError) as error:
                    ep.detail = str(error)
                    log.warning(
                        "endpoint-failed",
                        endpoint=ep.spec.label,
                        cause=error,
                        next="will try again",
                    )
                except Exception as error:
                    # A defect of ours; the endpoint must not be lost to it.
                    ep.detail = repr(error)
                    log.error("endpoint-defect", endpoint=ep.spec.label, cause=ep.detail)
                finally:
                    self.by_cookie.pop(ep.cookie, None)
                    ep.cookie, ep.identity = 0, None
                    os.close(fd)
                if ep.removed or self.unsafe or netns.identify(ep.spec.netns or "") is None:
                    continue
                if time.monotonic() - began > STEADY_S:
                    pause = RESPAWN_FIRST_S
                self._set(ep, pausing, ep.detail)
                await self._pause(ep, pause * random.uniform(0.75, 1.25))
                pause = min(pause * 2, RESPAWN_MAX_S)
        finally:
            if listener is not None:
                listener.close()
            self._set(ep, "absent", "stopped")

    @staticmethod
    async def _pause(ep: Endpoint, seconds: float) -> None:
        """Wait, whatever else happens, unless the endpoint is to go."""
        end = time.monotonic() + seconds
        while not ep.removed and (left := end - time.monotonic()) > 0:
            ep.wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ep.wake.wait(), left)

    def _enter(self, ep: Endpoint) -> int:
        """A descriptor of the endpoint's namespace, known by its cookie; -1 if none is fit."""
        path = ep.spec.netns or ""
        ep.identity = netns.identify(path)
        if ep.identity is None:
            self._set(ep, "absent", f"no network namespace at {path}")
            return -1
        try:
            fd, ep.identity = netns.open_path(path)
        except OSError as error:
            ep.identity = None
            self._set(ep, "absent", str(error))
            return -1
        try:
            cookie = netns.cookie_of_fd(fd)
            if cookie == self.own_cookie:
                raise PermissionError("it is the host's own network namespace")
            if ep.spec.cookie not in (0, cookie):
                raise PermissionError("it is another namespace than the one that was attached")
            holder = self.by_cookie.get(cookie)
            if holder is not None:
                # Look again when the holder may have gone.
                ep.identity = None
                raise PermissionError(f"it is the network namespace of {holder.spec.label}")
        except OSError as error:
            os.close(fd)
            if ep.state != "refused":
                log.error("endpoint-refused", endpoint=ep.spec.label, netns=path, cause=error)
            self._set(ep, "refused", str(error))
            return -1
        if self.unsafe:
            self._set(ep, "refused", self.unsafe)
            self._cut_off(ep, fd)
            os.close(fd)
            return -1
        if self.config.secure == "none" or self.config.secure_fallback != "down":
            self._let_in(ep, fd)  # else not before its worker has proved itself
        ep.cookie = cookie
        self.by_cookie[cookie] = ep
        return fd

    def _cut_off(self, ep: Endpoint, fd: int) -> None:
        """Secure mode cannot be kept for *ep*: down, if that is wanted."""
        if self.config.secure_fallback != "down":
            self._let_in(ep, fd)
            return
        try:
            blockade.block(fd, self.config.overlay)
        except OSError as error:
            log.error(
                "endpoint-not-down", endpoint=ep.spec.label, cause=error,
                next="stop the container, or set secure_fallback to overlay",
            )  # fmt: skip
            return
        if not ep.cut_off:
            ep.cut_off = True
            log.error(
                "endpoint-down", endpoint=ep.spec.label, cause=ep.detail,
                next="its overlay is cut off (secure_fallback down) until secure mode is in force",
            )  # fmt: skip

    def _let_in(self, ep: Endpoint, fd: int) -> None:
        """Undo :meth:`_cut_off`, whoever did it."""
        if ep.cut_off is False:
            return
        try:
            blockade.unblock(fd)
        except OSError as error:
            log.error(
                "endpoint-not-let-in", endpoint=ep.spec.label, cause=error,
                next=f"remove the rules with preference {blockade.PREFERENCE} in its namespace",
            )  # fmt: skip
            return
        if ep.cut_off:
            log.info("endpoint-let-in", endpoint=ep.spec.label)
        ep.cut_off = False

    async def _listener(self, ep: Endpoint) -> socket.socket:
        """The data listener; a port that a stranger holds is exchanged. Raises OSError."""
        for _unused in range(BIND_PATIENCE):
            try:
                return make_listener(self.config.address, ep.port)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise OSError(
                        error.errno,
                        f"data port {self.config.address}:{ep.port}: {error.strerror};"
                        " give the host this address or correct router.json",
                    ) from error
            # A predecessor's worker may be on its way out.
            await asyncio.sleep(0.1)
        self._held.add(ep.port)
        old = ep.port
        names = [_name(key) for key in self.endpoints]
        ep.port = self.ports.assign(names, frozenset(self._held))[_name(ep.key)]
        log.warning(
            "data-port-held", endpoint=ep.spec.label, port=old,
            cause="another program listens there",
            next=f"port {ep.port} is used instead; keep the range free",
        )  # fmt: skip
        self.counters["data_port_exchanged"] += 1
        raise OSError(errno.EADDRINUSE, f"data port {old} was held by another program")

    def _row_file(self, ep: Endpoint) -> list[int]:
        """The endpoint's connection table, open; none where that is not possible."""
        if self.rows_dir is None:
            return []
        path = _row_path(self.rows_dir, ep.key)
        try:
            self.rows_dir.mkdir(mode=0o700, exist_ok=True)
            return [os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)]
        except OSError as error:
            log.warning(
                "rows-not-kept", endpoint=ep.spec.label, cause=f"{path}: {error.strerror}",
                next="a worker that is restarted will not know its predecessor's connections",
            )  # fmt: skip
            return []

    def unheard(self, ep: Endpoint) -> str:
        """Why nobody can say what *ep* has: its last worker kept rows, and there is no other.
        Empty where a worker can be asked, or there is nothing to ask for."""
        if ep.up or ep.state == "absent" or self.rows_dir is None:
            return ""
        number = rowfile.kept(_row_path(self.rows_dir, ep.key))
        if not number:
            return ""
        why = f"{ep.state}: {ep.detail or ep.barred}" if ep.detail or ep.barred else ep.state
        rows = f"{number} connection{'s' * (number != 1)}"
        return f"no worker ({why}), and {rows} of its last one may live"

    async def _serve(self, ep: Endpoint, listener: socket.socket, fd: int) -> None:
        """One worker from fork to end. Raises NurseryError, OSError."""
        ended = asyncio.Event()
        ready = asyncio.Event()
        reason = insecure = ""

        def closed(why: str) -> None:
            nonlocal reason
            reason = why
            ended.set()
            ep.wake.set()

        def message(what: Message) -> None:
            nonlocal insecure
            if what.get("op") == "ready":
                ready.set()
                ep.wake.set()
            elif what.get("op") == "insecure" and not ready.is_set():
                insecure = str(what.get("cause"))
                ended.set()
                ep.wake.set()
            elif ep.link is link or (ep.link is None and ready.is_set()):
                # (what follows "ready" at once comes before we have had our turn)
                try:
                    self.events.on_worker_message(ep, what)
                except (KeyError, TypeError, ValueError) as error:
                    link.close(f"sent a malformed {what.get('op')!r}: {error!r}")

        ep.generation = secrets.randbits(32)
        ep.child = child = await self.nursery.spawn(ep.spec.name)
        link = WorkerLink(child.link, message, closed)
        rows: list[int] = []
        try:
            config = self.config
            rows += self._row_file(ep)
            link.send(
                {
                    "op": "config", "name": ep.spec.name, "tenant": ep.spec.tenant,
                    "vip": ep.spec.vip, "host": config.host, "address": config.address,
                    "data_port": ep.port, "overlay": [str(net) for net in config.overlay],
                    "bounds": config.bounds.for_worker(), "secure": config.secure,
                    "policy": self.greet is not None, "flow_log": config.flow_log is not None,
                    "limits": self.limits(ep.spec),
                },
                (listener.fileno(), fd, *rows),
            )  # fmt: skip
            for kept in rows:
                os.close(kept)  # the lock on it is the worker's alone
            rows.clear()
            if self.greet is not None:
                await self.greet(ep, link)
            deadline = time.monotonic() + READY_S
            while not (ready.is_set() or ended.is_set() or ep.removed):
                ep.wake.clear()
                left = deadline - time.monotonic()
                try:
                    await asyncio.wait_for(ep.wake.wait(), max(0.0, left))
                except TimeoutError:
                    raise NurseryError(f"worker not ready within {READY_S:g} s") from None
            if insecure:
                raise SecureError(errno.EPERM, insecure)
            if ready.is_set() and not ended.is_set():
                ep.link = link
                self._let_in(ep, fd)
                self._set(ep, "up", "")
                log.info("endpoint-up", endpoint=ep.spec.label, vip=ep.spec.vip, pid=child.pid)
                self.events.on_endpoint_changed(ep)
                await self._watch(ep, ended)
        finally:
            for kept in rows:
                os.close(kept)
            was_up = ep.up
            orderly = not ended.is_set() or bool(insecure)
            ep.barred = ""
            self._set(ep, "starting", reason)
            if orderly:
                link.send({"op": "stop"})
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), STOP_S)
            ep.link = None
            link.close("given up")
            child.kill()
            child.release()
            ep.child = None
            if was_up:
                self.events.on_endpoint_changed(ep)
            if not orderly:
                ep.restarts += 1
                self.counters["worker_ended"] += 1
                log.warning("worker-ended", endpoint=ep.spec.label, pid=child.pid, cause=reason)

    async def _watch(self, ep: Endpoint, ended: asyncio.Event) -> None:
        """Return when the worker ended, its namespace changed or it is to go."""
        while not ended.is_set() and not ep.removed and not self.unsafe:
            ep.wake.clear()
            if netns.identify(ep.spec.netns or "") != ep.identity:
                log.info("endpoint-netns-gone", endpoint=ep.spec.label, netns=ep.spec.netns)
                return
            if not ended.is_set():
                await ep.wake.wait()

    def _set(self, ep: Endpoint, state: str, detail: str) -> None:
        if state != ep.state:
            ep.since = time.time()
            log.debug("endpoint-state", endpoint=ep.spec.label, state=state, detail=detail)
        ep.state, ep.detail = state, detail


def _row_path(rows_dir: Path, key: Key) -> Path:
    return rows_dir / blake2s(_name(key).encode(), digest_size=16).hexdigest()


def _name(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _worker_view(config: RouterConfig) -> tuple[object, ...]:
    """What of the configuration a worker has been told."""
    bounds = tuple(config.bounds.for_worker().items())
    return (config.host, config.address, config.overlay, bounds, config.secure)


def _status(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return f"status {os.waitstatus_to_exitcode(status)}"
