# SPDX-License-Identifier: Apache-2.0
"""What is measured and what comes out, as plain data; `to_json` gives the schema on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bench import SCHEMA
from bench.stats import Spread, ratios


@dataclass(frozen=True)
class Mode:
    """One way for the bytes to go.

    `run` is what `slimlab exec --mode` is told; `address` says whether the server
    is reached by its virtual or its host address. A further baseline (macvlan, a
    veth pair on a bridge) is one more Mode that the lab can run.
    """

    name: str
    run: str
    address: str  # "virtual" or "host"


HOST = Mode("host", "host", "host")
OVERLAY = Mode("overlay", "overlay", "virtual")
SLIM = Mode("slim", "slim", "virtual")
MODES = {mode.name: mode for mode in (HOST, OVERLAY, SLIM)}


@dataclass(frozen=True)
class Pair:
    """Which two endpoints talk."""

    name: str
    title: str
    client: str
    server: str


ACROSS = Pair("across", "across two hosts", "c1", "c2")
WITHIN = Pair("within", "within one host", "c1", "c3")
PAIRS = {pair.name: pair for pair in (ACROSS, WITHIN)}


@dataclass(frozen=True)
class Placement:
    """Which CPUs client and server run on; None: wherever the scheduler puts them."""

    name: str
    title: str
    client_cpu: int | None = None
    server_cpu: int | None = None
    pin_workers: bool = False


ONE_CORE = Placement("one", "both ends and the SlimRouter workers on CPU 0", 0, 0, True)
TWO_CORES = Placement("two", "client on CPU 0, server on CPU 1, SlimRouter not pinned", 0, 1)
FREE = Placement("free", "nothing pinned")
PLACEMENTS = {placement.name: placement for placement in (ONE_CORE, TWO_CORES, FREE)}


@dataclass(frozen=True)
class Metric:
    """One number that a case yields; `better` is "higher" or "lower"."""

    name: str
    title: str
    unit: str
    better: str
    digits: int = 2


@dataclass
class Series:
    """One metric of one case, round by round: each round maps a mode's name to its value."""

    case: str
    title: str
    kind: str  # "micro" or "program"
    pair: str
    placement: str
    conditions: str
    metric: Metric
    rounds: list[dict[str, float]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Name by which bars and readers find the series."""
        return f"{self.case}.{self.metric.name}/{self.pair}/{self.placement}"

    def values(self, mode: str) -> list[float]:
        """This mode's value in every round that has one."""
        return [one[mode] for one in self.rounds if mode in one]

    def spread(self, mode: str) -> Spread | None:
        """Median and range over the rounds."""
        return Spread.of(self.values(mode))

    def ratio(self, above: str, below: str) -> Spread | None:
        """Median and range of the quotient, taken round by round."""
        return Spread.of(ratios(self.rounds, above, below))


@dataclass
class Proof:
    """Evidence of the way that a case's bytes took in slim mode.

    The connection table (what lives at the moments of looking) and the counters of
    connects (all of them) are the router's word. The device counters of the client's
    container are the kernel's: what went past the overlay is not counted there.
    """

    case: str
    pair: str
    placement: str
    table_slim: int = 0
    table_overlay: int = 0
    table_bytes: int = 0
    connects_slim: int = 0
    connects_overlay: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    """Why a connection stayed on the overlay, and how often."""
    probe_host_path: int | None = None
    probe_connections: int | None = None
    device_slim_bytes: int | None = None
    device_overlay_bytes: int | None = None
    problem: str = ""

    DEVICE_SHARE = 0.02
    """Above this share of the overlay run's device bytes the bytes did not go past the overlay."""
    LATE_SHARE = 0.01
    """Share of the connects that may have missed their bound and stayed on the overlay.

    One may where the device was counted: of a few dozen, one says nothing about the bytes.
    """

    @property
    def device_share(self) -> float | None:
        """Device bytes in slim mode over device bytes in overlay mode."""
        if self.device_slim_bytes is None or not self.device_overlay_bytes:
            return None
        return self.device_slim_bytes / self.device_overlay_bytes

    @property
    def proven(self) -> bool:
        """True if every source that spoke says host path, and SlimRouter or the probe did."""
        if self.problem:
            return False
        if self.probe_connections:
            if (self.probe_host_path or 0) < 0.99 * self.probe_connections:
                return False
        elif self.table_slim + self.connects_slim == 0:
            return False
        # The routers count every connect; rows of the table are some of them, seen once more.
        slim, overlay = self.connects_slim, self.connects_overlay
        if not slim + overlay:
            slim, overlay = self.table_slim, self.table_overlay
        one = 0 if self.device_share is None else 1
        if overlay > max(one, self.LATE_SHARE * (slim + overlay)):
            return False
        return self.device_share is None or self.device_share <= self.DEVICE_SHARE

    def text(self) -> str:
        """One line for a table."""
        if self.problem:
            return self.problem
        parts = [f"table: {self.table_slim} slim, {self.table_overlay} overlay"]
        if self.table_bytes:
            parts[0] += f", {human_bytes(self.table_bytes)}"
        if self.connects_slim or self.connects_overlay:
            parts.append(
                f"connects: {self.connects_slim:,} slim, {self.connects_overlay:,} overlay"
            )
        if self.reasons:
            parts.append(", ".join(f"{why} x{n}" for why, n in sorted(self.reasons.items())))
        if self.probe_connections is not None:
            parts.append(f"sockets: {self.probe_host_path} of {self.probe_connections} host")
        if self.device_share is not None:
            parts.append(f"overlay device {100 * self.device_share:.1f} % of overlay mode")
        return "; ".join(parts)


@dataclass(frozen=True)
class Problem:
    """An error in a run: failed connects, wrong data, a program that did not work."""

    case: str
    pair: str
    placement: str
    mode: str
    round: int
    text: str


@dataclass
class Report:
    """Everything that one run of the bench or the demo found."""

    title: str
    started: str
    seconds: float = 0.0
    conditions: dict[str, Any] = field(default_factory=dict)
    series: list[Series] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, key: str) -> Series | None:
        """The series of this key, or None."""
        return next((one for one in self.series if one.key == key), None)

    def proof(self, case: str, pair: str, placement: str) -> Proof | None:
        """The proof of this case, or None."""
        wanted = (case, pair, placement)
        return next((p for p in self.proofs if (p.case, p.pair, p.placement) == wanted), None)

    def to_json(self) -> dict[str, Any]:
        """The schema on disk: raw rounds, and the summaries that follow from them."""
        from bench.bars import judge

        def summary(one: Series) -> dict[str, Any]:
            modes = sorted({mode for values in one.rounds for mode in values})
            result: dict[str, Any] = {
                "medians": {m: s.median for m in modes if (s := one.spread(m))},
                "ratios": {},
            }
            for above, below in (("slim", "host"), ("slim", "overlay"), ("overlay", "host")):
                if spread := one.ratio(above, below):
                    result["ratios"][f"{above}/{below}"] = asdict(spread)
            return result

        return {
            "schema": SCHEMA,
            "title": self.title,
            "started": self.started,
            "seconds": round(self.seconds, 1),
            "conditions": self.conditions,
            "series": [{"key": s.key, **asdict(s), **summary(s)} for s in self.series],
            "proofs": [{**asdict(p), "proven": p.proven} for p in self.proofs],
            "bars": [asdict(v) for v in judge(self)],
            "problems": [asdict(p) for p in self.problems],
            "notes": self.notes,
        }


def human_bytes(count: float) -> str:
    """12.3 MB and the like (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
