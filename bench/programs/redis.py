# SPDX-License-Identifier: Apache-2.0
"""redis, loaded by redis-benchmark (50 clients, one thread)."""

from __future__ import annotations

import csv

from bench.case import Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode


def parse(text: str) -> dict[str, float]:
    """Requests per second and p99 of SET and GET from redis-benchmark --csv.

    Raises:
        BenchError: a test is missing.
    """
    values: dict[str, float] = {}
    for row in csv.DictReader(line for line in text.splitlines() if line.startswith('"')):
        name = str(row.get("test", "")).lower()
        if name in ("set", "get"):
            values[name] = float(row["rps"])
            values[f"{name}_p99_ms"] = float(row["p99_latency_ms"])
    if len(values) != 4:
        raise BenchError(f"redis-benchmark: SET or GET is missing in {text[-300:]!r}")
    return values


class Redis(Case):
    """SET and GET of 3 bytes."""

    name = "redis"
    title = "redis"
    pairs = ("across", "within")
    needs = ("redis-server", "redis-benchmark")
    metrics = (
        Metric("get", "GET", "1/s", "higher", 0),
        Metric("set", "SET", "1/s", "higher", 0),
        Metric("get_p99_ms", "GET p99", "ms", "lower", 3),
    )

    def conditions(self) -> str:
        """What is sent."""
        return f"redis-benchmark, 50 connections, no pipeline, {self.requests} requests a test"

    @property
    def requests(self) -> int:
        """Requests of each test; about a second at 60,000 a second."""
        return 30_000 * max(1, round(self.site.seconds))

    def start(self, mode: Mode) -> None:
        """Start redis-server without persistence."""
        port = self.port(mode)
        self.serve(
            mode,
            [
                *("redis-server", "--bind", self.address(mode), "--port", str(port)),
                *("--protected-mode", "no", "--save", "", "--appendonly", "no"),
                *("--dir", str(self.node_directory(mode))),
            ],
        )
        self.wait_ready(mode, port)

    def measure(self, mode: Mode) -> Sample:
        """Run both tests."""
        (port,) = self.ports[mode.name]
        text = self.load(
            mode,
            [
                *("redis-benchmark", "-h", self.address(mode), "-p", str(port), "--csv"),
                *("-t", "set,get", "-n", str(self.requests), "-c", "50"),
            ],
        )
        return Sample(parse(text))


CASES = (Redis,)
