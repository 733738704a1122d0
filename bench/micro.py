# SPDX-License-Identifier: Apache-2.0
"""Micro benchmarks: throughput, round trip, connection set-up, memory."""

from __future__ import annotations

import json
from typing import Any

from bench.build import compile_program
from bench.case import Case, Sample, Site
from bench.lab import BenchError, Process
from bench.model import ONE_CORE, Metric, Mode

READY_SECONDS = 10.0


class Micro(Case):
    """A case whose two ends are one of our own programs."""

    kind = "micro"
    program: str

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.binary = str(compile_program(self.program, site.scratch))
        self.lab.push(site.scratch)
        self.servers: dict[str, Process] = {}
        self.ready: dict[str, list[str]] = {}

    def start_probe(self, mode: Mode, *words: str) -> None:
        """Start `program serve ...` and read the ports that it listens on."""
        process = self.serve(mode, [self.binary, "serve", *words], what=f"{self.program} serve")
        line = process.read_line(READY_SECONDS).split()
        if not line or line[0] != "READY":
            raise BenchError(f"{self.program}: said {' '.join(line)!r} instead of READY")
        self.servers[mode.name] = process
        self.ready[mode.name] = line[1:]
        self.ports[mode.name] = {int(port) for port in line[1:]}

    def ask(self, mode: Mode, *words: str, seconds: float = 130.0) -> dict[str, Any]:
        """Run the client; its errors are in the object (`errors`) or raised."""
        text = self.load(mode, [self.binary, *words], seconds, check=False)
        try:
            answer = json.loads(text.strip().splitlines()[-1])
        except (ValueError, IndexError):
            # Once more with check: the client's own words belong into the error.
            self.load(mode, [self.binary, *words], seconds)
            raise BenchError(
                f"{self.program} {words[0]}: failed once without a word, then worked"
            ) from None
        if not isinstance(answer, dict):
            raise BenchError(f"{self.program} {words[0]}: said {text[:100]!r}")
        return answer


class Stream(Micro):
    """Throughput of one stream and the CPU time of both ends."""

    name = "stream"
    title = "One stream"
    program = "stream"
    placements = ("one", "two")
    pairs = ("across", "within")
    metrics = (
        Metric("gbps", "throughput", "Gbit/s", "higher"),
        Metric("cpu_per_gb", "CPU of both ends", "s/GB", "lower", 4),
        Metric("machine_per_gb", "CPU of the machine (cross check)", "s/GB", "lower", 4),
    )

    # The host against itself differs by 10 % (standard deviation) from one round to the next,
    # whether it moves 2 GB or 0.4: many short rounds tell 3 % from nothing, a few long ones
    # do not. The bars are about both ends on one core.
    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.turns = 10 if site.quick or site.placement is not ONE_CORE else 60
        self._bytes = (800 if site.long else 400) * 1_000_000

    @property
    def bytes(self) -> int:
        """Of one load; more while the connection table is watched, which takes its time."""
        return self._bytes * (8 if self.proving else 1)

    def conditions(self) -> str:
        return (
            f"{self._bytes / 1e9:g} GB in 128 KiB writes; CPU of both ends by getrusage, "
            "of the machine by /proc/stat (10 ms ticks, others included)"
        )

    def start(self, mode: Mode) -> None:
        self.start_probe(mode, self.address(mode), "0")

    def measure(self, mode: Mode) -> Sample:
        answer = self.ask(
            mode, "send", self.address(mode), self.ready[mode.name][0], str(self.bytes), seconds=300
        )
        server = json.loads(self.servers[mode.name].read_line(READY_SECONDS))
        problems = []
        if answer["received"] != self.bytes or server["bytes"] != self.bytes or server["error"]:
            problems.append(
                f"sent {self.bytes} bytes, {server['bytes']} arrived, errno {server['error']}"
            )
        gigabytes = self.bytes / 1e9
        both = int(answer["host_path"]) + int(server["host_path"])
        return Sample(
            {
                "gbps": 8 * gigabytes / answer["seconds"],
                "cpu_per_gb": (answer["cpu_s"] + server["cpu_s"]) / gigabytes,
                "machine_per_gb": answer["machine_s"] / gigabytes,
            },
            problems,
            probe_connections=1,
            probe_host_path=int(both == 2),
            congestion=str(answer["congestion"]),
        )


class RoundTrip(Micro):
    """Request and answer of 32 bytes on an established connection."""

    name = "roundtrip"
    title = "Round trip, 32 B"
    program = "roundtrip"
    placements = ("one",)
    pairs = ("across", "within")
    metrics = (
        Metric("p50_us", "p50", "us", "lower"),
        Metric("p99_us", "p99", "us", "lower"),
        Metric("min_us", "shortest", "us", "lower"),
    )
    size = "32"
    turns = 5

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.count = 2_000 if site.quick else 10_000

    def conditions(self) -> str:
        return f"{self.count} rounds, TCP_NODELAY, blocking read and write"

    def start(self, mode: Mode) -> None:
        self.start_probe(mode, self.address(mode), "0", self.size)

    def measure(self, mode: Mode) -> Sample:
        answer = self.ask(
            mode, "ask", self.address(mode), self.ready[mode.name][0], self.size, str(self.count)
        )
        return Sample(
            {name: float(answer[name]) for name in ("p50_us", "p99_us", "min_us")},
            probe_connections=1,
            probe_host_path=int(answer["host_path"]),
        )


class Connect(Micro):
    """Sequential connects to a listener whose lease is kept alive by them."""

    name = "connect"
    title = "Connect, warm"
    program = "setup"
    placements = ("one", "two")
    pairs = ("across", "within")
    metrics = (
        Metric("p50_us", "connect(), p50", "us", "lower"),
        Metric("p99_us", "connect(), p99", "us", "lower"),
        Metric("byte_p50_us", "socket() to first byte back, p50", "us", "lower"),
        Metric("byte_p99_us", "socket() to first byte back, p99", "us", "lower"),
    )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.count = 1000 if site.quick else 4000

    def conditions(self) -> str:
        return (
            f"{self.count} connects one after the other, the first eighth not counted; "
            "every connect opens a fresh host connection (no pool); "
            "one byte there and back, then close by reset"
        )

    def start(self, mode: Mode) -> None:
        self.start_probe(mode, self.address(mode), "1")

    def measure(self, mode: Mode) -> Sample:
        answer = self.ask(
            mode, "connect", self.address(mode), self.ready[mode.name][0], str(self.count)
        )
        return Sample(
            {
                "p50_us": answer["connect_p50_us"],
                "p99_us": answer["connect_p99_us"],
                "byte_p50_us": answer["byte_p50_us"],
                "byte_p99_us": answer["byte_p99_us"],
            },
            [f"{answer['errors']} connections failed"] if answer["errors"] else [],
            answer["count"],
            answer["host_path"],
        )


class SetupRate(Micro):
    """Connections set up per second."""

    program = "setup"
    placements = ("two",)
    metrics = (
        Metric("rate", "set-ups", "1/s", "higher", 0),
        Metric("machine_us", "CPU of the machine per set-up", "us", "lower", 1),
        Metric("errors", "failed set-ups", "", "lower", 0),
    )
    clients: int
    counted = False
    """A round has a number of set-ups, even if it is not --long: five have 100,000."""

    def _bound(self) -> tuple[float, int]:
        """(seconds, set-ups) of a round; 0 set-ups: by time alone."""
        if self.site.long or (self.counted and not self.site.quick):
            return 100.0, 20_000
        return self.site.seconds, 0

    def conditions(self) -> str:
        seconds, count = self._bound()
        until = f"{count:,} set-ups a round" if count else f"{seconds:.0f} s"
        return (
            f"{until}; connect, one byte there and back, close by reset; "
            "the server is one epoll loop, each client "
            "a process; CPU of the machine by /proc/stat (10 ms ticks, others included)"
        )

    def start(self, mode: Mode) -> None:
        self.start_probe(mode, self.address(mode), "1")

    def measure(self, mode: Mode) -> Sample:
        seconds, count = self._bound()
        answer = self.ask(
            mode, "rate", self.address(mode), self.ready[mode.name][0],
            str(self.clients), str(seconds), str(count),
        )  # fmt: skip
        bad = answer["errors"] + answer["hung"]
        good = max(1, answer["good"])
        return Sample(
            {
                "rate": answer["good"] / answer["seconds"] if answer["seconds"] else 0.0,
                "machine_us": 1e6 * answer["machine_s"] / good,
                "errors": float(bad),
            },
            [f"{bad} of {answer['good'] + bad} set-ups failed"] if bad else [],
            answer["good"],
            answer["host_path"],
        )


class SetupRate1(SetupRate):
    """One client."""

    name = "setups1"
    title = "Set-ups per second, 1 client"
    clients = 1


class SetupRate16(SetupRate):
    """Sixteen clients, more than there are CPUs."""

    name = "setups16"
    title = "Set-ups per second, 16 clients"
    clients = 16
    counted = True


class Cold(Micro):
    """First connect to a port that nobody has connected to."""

    program = "setup"
    overlay_by_design = True
    metrics = (
        Metric("host_share", "ended on the host path", "%", "higher", 1),
        Metric("p50_us", "connect(), p50", "us", "lower"),
        Metric("p99_us", "connect(), p99", "us", "lower"),
    )
    way: str

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.count = 100
        self.rounds = 0

    def conditions(self) -> str:
        return f"{self.count} listeners of their own, one connect to each, {self.way_title}"

    @property
    def way_title(self) -> str:
        """How the client waits."""
        return "blocking" if self.way == "block" else "non-blocking with poll"

    def start(self, mode: Mode) -> None:
        """Nothing: every measurement brings its own listeners, or it would not be cold."""

    def measure(self, mode: Mode) -> Sample:
        self.start_probe(mode, self.address(mode), str(self.count))
        try:
            answer = self.ask(mode, "cold", self.way, self.address(mode), *self.ready[mode.name])
        finally:
            self.stop(mode)
        tried = answer["count"] + answer["errors"]
        return Sample(
            {
                "host_share": 100.0 * answer["host_path"] / max(1, tried),
                "p50_us": answer["connect_p50_us"],
                "p99_us": answer["connect_p99_us"],
            },
            [f"{answer['errors']} of {tried} connects failed"] if answer["errors"] else [],
            tried,
            answer["host_path"],
        )


class ColdBlock(Cold):
    """Blocking connect()."""

    name = "cold-block"
    title = "Connect, cold, blocking"
    way = "block"


class ColdPoll(Cold):
    """Non-blocking connect() and poll()."""

    name = "cold-poll"
    title = "Connect, cold, polled"
    way = "poll"


class Memory(Micro):
    """Private memory of an idle worker and of the shim in a small process."""

    name = "memory"
    title = "Private memory"
    program = "idle"
    modes = ("slim",)
    metrics = (
        Metric("worker_mb", "idle worker (the smallest of these hosts)", "MB", "lower"),
        Metric("largest_worker_mb", "worker with the most work behind it", "MB", "lower"),
        Metric("shim_mb", "shim in a process that did nothing", "MB", "lower"),
        Metric("shim_connected_mb", "shim in a process that made a connection", "MB", "lower"),
    )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.peer = str(compile_program("setup", site.scratch))
        self.lab.push(site.scratch)

    def conditions(self) -> str:
        return (
            "Private_Clean + Private_Dirty of smaps_rollup; "
            "the shim is the difference to the same process without it; "
            "a worker keeps what a load made it take, so the idle one is the smallest"
        )

    def start(self, mode: Mode) -> None:
        self.binary, probe = self.peer, self.binary
        try:
            self.start_probe(mode, self.address(mode), "1")
        finally:
            self.binary = probe

    def measure(self, mode: Mode) -> Sample:
        from bench.model import OVERLAY

        target = [self.address(mode), self.ready[mode.name][0]]
        # Peers of the overlay reach the same listener: it is the client that differs.
        plain = self._private(OVERLAY)
        plain_connected = self._private(OVERLAY, *target)
        values = {
            "shim_mb": (self._private(mode) - plain) / 1000,
            "shim_connected_mb": (self._private(mode, *target) - plain_connected) / 1000,
        }
        workers = [
            self._worker_kb(endpoint, pid)
            for endpoint in sorted({self.site.pair.client, self.site.pair.server})
            for pid in self.lab.workers(endpoint).values()
        ]
        if workers:
            values["worker_mb"] = min(workers) / 1000
            values["largest_worker_mb"] = max(workers) / 1000
        return Sample(
            values, [] if workers else ["no worker found: `slimctl endpoints --json` gave no pid"]
        )

    def _private(self, mode: Mode, *target: str) -> float:
        """Private memory of a small process in kB (units of 1024 bytes, as the kernel says kB)."""
        text = self.load(mode, [self.binary, *target])
        return float(json.loads(text)["private_kb"]) * 1.024

    def _worker_kb(self, endpoint: str, pid: int) -> float:
        text = self.lab.run(endpoint, "host", ["cat", f"/proc/{pid}/smaps_rollup"], check=False)
        return parse_private_kb(text) * 1.024


def parse_private_kb(text: str) -> int:
    """Private_Clean + Private_Dirty of smaps_rollup (proc(5)), in units of 1024 bytes."""
    total = 0
    for line in text.splitlines():
        name, _unused, rest = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            total += int(rest.split()[0])
    return total


CASES: tuple[type[Case], ...] = (
    Memory,  # first: workers are as idle as they will be
    Stream,
    RoundTrip,
    Connect,
    SetupRate1,
    SetupRate16,
    ColdBlock,
    ColdPoll,
)
