# SPDX-License-Identifier: Apache-2.0
"""iperf3, one stream."""

from __future__ import annotations

import json

from bench.case import Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode


def parse(text: str) -> tuple[dict[str, float], str]:
    """Figures and the congestion control from iperf3 -J.

    Raises:
        BenchError: iperf3 reported an error or something else than JSON.
    """
    try:
        answer = json.loads(text)
    except ValueError:
        raise BenchError(f"iperf3: no JSON in {text[-300:]!r}") from None
    if "error" in answer:
        raise BenchError(f"iperf3: {answer['error']}")
    end = answer["end"]
    cpu = end["cpu_utilization_percent"]
    received = end["sum_received"]
    gigabytes = received["bytes"] / 1e9
    values = {
        "gbps": received["bits_per_second"] / 1e9,
        "cpu_per_gb": (cpu["host_total"] + cpu["remote_total"]) / 100 * received["seconds"]
        / gigabytes,
    }  # fmt: skip
    return values, str(end.get("sender_tcp_congestion", ""))


class Iperf3(Case):
    """Throughput as iperf3 sees it; its control connection is one more connection."""

    name = "iperf3"
    title = "iperf3"
    needs = ("iperf3",)
    metrics = (
        Metric("gbps", "throughput", "Gbit/s", "higher"),
        Metric("cpu_per_gb", "CPU of both ends", "s/GB", "lower", 4),
    )

    def conditions(self) -> str:
        """What is sent."""
        return "one stream, 128 KiB writes"

    def start(self, mode: Mode) -> None:
        """Start the server."""
        port = self.port(mode)
        self.serve(
            mode, ["iperf3", "-s", "-B", self.address(mode), "-p", str(port), "--forceflush"]
        )
        self.wait_ready(mode, port)

    def measure(self, mode: Mode) -> Sample:
        """One test."""
        (port,) = self.ports[mode.name]
        seconds = max(1, round(self.site.seconds))
        text = self.load(
            mode,
            ["iperf3", "-J", "-c", self.address(mode), "-p", str(port), "-t", str(seconds)],
            seconds + 30,
            check=False,
        )
        values, congestion = parse(text)
        for process in self.processes[mode.name]:
            process.drain()
        return Sample(values, congestion=congestion)


CASES = (Iperf3,)
