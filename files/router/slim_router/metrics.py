# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, served by the supervisor alone.

The names are stable. prometheus_client is used where it is installed; without
it the router works and says so once. Its server's threads ask the supervisor's
loop for a snapshot, so that no thread looks at live state.
"""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from . import log

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from prometheus_client.core import Metric

REQUEST_S = 5.0
CLIENTS_MAX = 16
FLOW_LOG = {
    "lines": "Lines of the flow log.",
    "dropped": "Lines of the flow log that were lost, wherever.",
    "overruns": "Times that the kernel reported more ends of sockets than were read.",
    "unknown_ends": "Connections too many to be remembered: no close is logged.",
}
STATES = ("up", "starting", "wait", "absent", "refused")


@dataclass(slots=True)
class Snapshot:
    """What the metrics are made from."""

    version: str
    host: str
    revision: int
    uptime_s: float
    reloads: dict[str, int]  # outcome -> how often
    endpoints: list[tuple[str, str, str, int]]  # (endpoint, tenant, state, worker restarts)
    trunks: list[tuple[str, bool, int | None]]  # (peer, up, round trip in microseconds)
    events: dict[str, int]  # the supervisor's counters
    workers: list[tuple[str, str, dict[str, int]]] = field(default_factory=list)
    """(endpoint, tenant, counters)."""
    secure: tuple[str, bool] = ("none", False)
    """(mode, its backend is there)."""
    policy: dict[str, Any] = field(default_factory=dict)
    """Enforcement.report()."""
    flow_log: dict[str, Any] = field(default_factory=dict)
    """FlowBook.report()."""


def available() -> bool:
    """Is prometheus_client installed?"""
    return importlib.util.find_spec("prometheus_client") is not None


def families(shot: Snapshot) -> Iterable[Metric]:
    """The metric families of one snapshot."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    info = GaugeMetricFamily("slim_build_info", "The router's version.", labels=["version", "host"])
    info.add_metric([shot.version, shot.host], 1)
    yield info
    yield GaugeMetricFamily("slim_map_revision", "Revision of the map in use.", shot.revision)
    yield GaugeMetricFamily("slim_uptime_seconds", "Age of the supervisor.", shot.uptime_s)
    reloads = CounterMetricFamily("slim_reloads", "Reloads by outcome.", labels=["outcome"])
    for outcome, count in sorted(shot.reloads.items()):
        reloads.add_metric([outcome], count)
    yield reloads
    secure = GaugeMetricFamily(
        "slim_secure_in_force", "1 if the backend of secure mode is there.", labels=["mode"]
    )
    secure.add_metric([shot.secure[0]], float(shot.secure[1]))
    yield secure
    if shot.policy:
        yield GaugeMetricFamily(
            "slim_policy_revision", "Revision of the policy in force.", shot.policy["revision"]
        )
        yield GaugeMetricFamily("slim_policy_rules", "Its rules.", shot.policy["rules"])
        yield GaugeMetricFamily(
            "slim_policy_readable", "0 if policy.json cannot be used: all that is new is denied.",
            float(shot.policy["state"] == "in-force"),
        )  # fmt: skip
        yield GaugeMetricFamily(
            "slim_policy_enforcement_seconds",
            "From the receipt of the last list to the last worker's answer.",
            shot.policy["seconds"],
        )
        yield CounterMetricFamily(
            "slim_policy_revoked", "Connections that lists have revoked.", shot.policy["revoked"]
        )
    if shot.flow_log:
        for name, what in FLOW_LOG.items():
            yield CounterMetricFamily(f"slim_flow_log_{name}", what, shot.flow_log[name])
        yield GaugeMetricFamily(
            "slim_flow_log_writable", "0 if the flow log is wanted and cannot be written.",
            float(not shot.flow_log["cause"]),
        )  # fmt: skip
    by_state = GaugeMetricFamily("slim_endpoints", "Endpoints by state.", labels=["state"])
    for state in STATES:
        count = sum(row[2] == state for row in shot.endpoints)
        by_state.add_metric([state], count)
    yield by_state
    up = GaugeMetricFamily(
        "slim_endpoint_up", "1 if a worker serves the endpoint.", labels=["endpoint", "tenant"]
    )
    restarts = CounterMetricFamily(
        "slim_worker_restarts", "Workers that ended unasked.", labels=["endpoint", "tenant"]
    )
    for name, tenant, state, number in shot.endpoints:
        up.add_metric([name, tenant], float(state == "up"))
        restarts.add_metric([name, tenant], number)
    yield up
    yield restarts
    trunk = GaugeMetricFamily("slim_trunk_up", "1 if the trunk is open.", labels=["peer"])
    rtt = GaugeMetricFamily(
        "slim_trunk_rtt_seconds", "Last round trip of a PING on the trunk.", labels=["peer"]
    )
    for peer, is_up, rtt_us in shot.trunks:
        trunk.add_metric([peer], float(is_up))
        if rtt_us is not None:
            rtt.add_metric([peer], rtt_us / 1e6)
    yield trunk
    yield rtt
    events = CounterMetricFamily(
        "slim_router_events", "What the supervisor counted, by event.", labels=["event"]
    )
    for event, count in sorted(shot.events.items()):
        events.add_metric([event], count)
    yield events
    workers = CounterMetricFamily(
        "slim_worker_events",
        "What the endpoint's worker counted, by event.",
        labels=["endpoint", "tenant", "event"],
    )
    for name, tenant, counters in shot.workers:
        for event, count in sorted(counters.items()):
            workers.add_metric([name, tenant, event], count)
    yield workers


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_S

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a scrape is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], application: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._room = threading.BoundedSemaphore(CLIENTS_MAX)
        super().__init__(address, _Handler)
        self.socket.setblocking(False)  # a client may be gone when we accept
        self.set_app(application)

    def server_bind(self) -> None:
        # Not the base's: it asks for the address's name, which may take a name server's time.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a router that stops: nothing to tell."""


class MetricsServer:
    """prometheus_client's page on a port: its threads serve, the router's loop answers."""

    def __init__(
        self, address: tuple[str, int], snapshot: Callable[[], Coroutine[Any, Any, Snapshot]]
    ) -> None:
        self.address = address
        self.snapshot = snapshot
        self._server: _Server | None = None

    async def start(self) -> None:
        """Listen; a port that cannot be had is a warning, not the router's end."""
        if not available():
            log.warning(
                "no-metrics", cause="prometheus_client is not installed",
                next="install python3-prometheus-client, or set metrics to null in router.json",
            )  # fmt: skip
            return
        host, port = self.address
        try:
            self._server = _Server(self.address, self._application(asyncio.get_running_loop()))
        except OSError as error:
            log.warning(
                "no-metrics", address=host, port=port, cause=error.strerror,
                next="free the port or change metrics in router.json",
            )  # fmt: skip
            return
        asyncio.get_running_loop().add_reader(self._server, self._server.handle_request)

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            asyncio.get_running_loop().remove_reader(self._server)
            self._server.server_close()

    def _application(self, loop: asyncio.AbstractEventLoop) -> WSGIApplication:
        from prometheus_client import CollectorRegistry, make_wsgi_app
        from prometheus_client.registry import Collector

        snapshot = self.snapshot

        class Live(Collector):
            def collect(self) -> Iterable[Metric]:
                shot = asyncio.run_coroutine_threadsafe(snapshot(), loop)
                return families(shot.result(REQUEST_S))

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Live())
        return make_wsgi_app(registry)
