# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics, served by the supervisor alone.

The names are stable. prometheus_client is used where it is installed; without
it the router works and says so once. The page is built from a snapshot that the
supervisor makes on its own loop, so that no thread looks at live state.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import log

if TYPE_CHECKING:
    from prometheus_client.core import Metric

REQUEST_MAX = 8192
REQUEST_S = 5.0
CLIENTS_MAX = 16
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


def render(shot: Snapshot) -> bytes:
    """The page in Prometheus' text format. Raises ImportError without prometheus_client."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Once(Collector):
        def collect(self) -> Iterable[Metric]:
            return families(shot)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    return generate_latest(registry)


class MetricsServer:
    """A small HTTP server: GET /metrics, nothing else."""

    def __init__(
        self, address: tuple[str, int], snapshot: Callable[[], Awaitable[Snapshot]]
    ) -> None:
        self.address = address
        self.snapshot = snapshot
        self._server: asyncio.Server | None = None
        self._clients = 0

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
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = await asyncio.start_server(
                self._client, host, port, family=family, limit=REQUEST_MAX, reuse_address=True
            )
        except OSError as error:
            log.warning(
                "no-metrics", address=host, port=port, cause=error.strerror,
                next="free the port or change metrics in router.json",
            )  # fmt: skip

    async def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.close()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            async with asyncio.timeout(REQUEST_S * 2):
                status, body = await self._one(reader)
                head = (
                    f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4;"
                    f" charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                )
                writer.write(head.encode() + body)
                await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        if self._clients > CLIENTS_MAX:
            return "503 Service Unavailable", b"too many clients\n"
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, asyncio.IncompleteReadError):
            return "400 Bad Request", b"not a request\n"
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or words[0] != b"GET":
            return "405 Method Not Allowed", b"GET only\n"
        if words[1].split(b"?")[0] not in (b"/metrics", b"/"):
            return "404 Not Found", b"the metrics are at /metrics\n"
        return "200 OK", render(await self.snapshot())
