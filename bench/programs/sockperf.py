# SPDX-License-Identifier: Apache-2.0
"""sockperf, ping-pong over TCP."""

from __future__ import annotations

import re

from bench.case import Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode


def parse(text: str) -> dict[str, float]:
    """Percentiles of the round trip in microseconds.

    Raises:
        BenchError: there are none.
    """
    found = {
        percent: float(value)
        for percent, value in re.findall(r"percentile (50|99)\.000\s*=\s*([\d.]+)", text)
    }
    if len(found) != 2:
        raise BenchError(f"sockperf: no percentiles in {text[-300:]!r}")
    return {"p50_us": found["50"], "p99_us": found["99"]}


class Sockperf(Case):
    """Round trip of 32 bytes as sockperf sees it."""

    name = "sockperf"
    title = "sockperf, ping-pong"
    needs = ("sockperf",)
    metrics = (
        Metric("p50_us", "round trip p50", "us", "lower"),
        Metric("p99_us", "round trip p99", "us", "lower"),
    )

    def conditions(self) -> str:
        """What is sent."""
        return "32 bytes, TCP, one connection, full round trip"

    def start(self, mode: Mode) -> None:
        """Start the server."""
        port = self.port(mode)
        self.serve(mode, ["sockperf", "server", "--tcp", "-i", self.address(mode), "-p", str(port)])
        self.wait_ready(mode, port)

    def measure(self, mode: Mode) -> Sample:
        """One ping-pong."""
        (port,) = self.ports[mode.name]
        seconds = max(1, round(self.site.seconds))
        text = self.load(
            mode,
            [
                *("sockperf", "ping-pong", "--tcp", "--full-rtt", "-i", self.address(mode)),
                *("-p", str(port), "-m", "32", "-t", str(seconds)),
            ],
            seconds + 30,
        )
        for process in self.processes[mode.name]:
            process.drain()
        return Sample(parse(text))


CASES = (Sockperf,)
