# SPDX-License-Identifier: Apache-2.0
"""The bars that the project holds itself to, and which figures meet them.

A bar is printed beside the figure; a missed one does not change the exit status,
because speed on a shared machine is no test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.model import Report


@dataclass(frozen=True)
class Bar:
    """`slim` over `against` (or slim's own value, if `against` is empty) compared with `limit`."""

    text: str
    series: str
    against: str
    comparison: str  # ">=" or "<="
    limit: float
    unit: str = ""
    every: bool = False  # judged by the worst round, not by the median


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured; `met` is None if there is no figure."""

    text: str
    series: str
    against: str
    comparison: str
    limit: float
    unit: str
    value: float | None
    low: float | None
    high: float | None
    met: bool | None


BARS = (
    Bar("throughput, one stream, across hosts", "stream.gbps/across/one", "host", ">=", 0.97),
    Bar("throughput, one stream, within a host", "stream.gbps/within/one", "host", ">=", 0.97),
    Bar("CPU per GB, across hosts", "stream.cpu_per_gb/across/one", "host", "<=", 1.03),
    Bar("CPU per GB, within a host", "stream.cpu_per_gb/within/one", "host", "<=", 1.03),
    Bar("round trip 32 B p50, across hosts", "roundtrip.p50_us/across/one", "host", "<=", 1.05),
    Bar("round trip 32 B p50, within a host", "roundtrip.p50_us/within/one", "host", "<=", 1.05),
    Bar("connect p50, warm", "connect.p50_us/across/one", "overlay", "<=", 4.5),
    Bar("set-ups per second, 16 clients", "setups16.rate/across/two", "overlay", ">=", 0.40),
    Bar("set-ups that failed of 100,000", "setups16.errors/across/two", "", "<=", 0, every=True),
    Bar("nginx, a connection per request", "nginx-close.rate/across/free", "overlay", ">=", 0.35),
    Bar(
        "cold blocking connects on the host path",
        "cold-block.host_share/across/free",
        "",
        ">=",
        99.0,
        "%",
    ),
    Bar(
        "cold polled connects on the host path",
        "cold-poll.host_share/across/free",
        "",
        ">=",
        99.0,
        "%",
    ),
    Bar("idle worker, private memory", "memory.worker_mb/across/free", "", "<=", 4.0, "MB"),
    Bar("shim, private memory per process", "memory.shim_mb/across/free", "", "<=", 1.0, "MB"),
)


def judge(report: Report) -> list[Verdict]:
    """Compare the medians, or the worst rounds, with every bar whose case was run."""
    verdicts = []
    for wanted in BARS:
        series = report.find(wanted.series)
        if series is None:
            continue
        spread = series.ratio("slim", wanted.against) if wanted.against else series.spread("slim")
        value: float | None = None
        met: bool | None = None
        if spread is not None:
            value = spread.median
            if wanted.every:
                value = spread.low if wanted.comparison == ">=" else spread.high
            met = value >= wanted.limit if wanted.comparison == ">=" else value <= wanted.limit
        verdicts.append(
            Verdict(
                wanted.text,
                wanted.series,
                wanted.against,
                wanted.comparison,
                wanted.limit,
                wanted.unit,
                value,
                spread.low if spread else None,
                spread.high if spread else None,
                met,
            )
        )
    return verdicts
