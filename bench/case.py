# SPDX-License-Identifier: Apache-2.0
"""What a benchmark looks like to the runner."""

from __future__ import annotations

import abc
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from bench.lab import BenchError, Lab, Process
from bench.model import Metric, Mode, Pair, Placement

PYTHON = "/usr/bin/python3"
"""The system's Python: its packages are Debian's, and it is the program users have."""

PROGRAMS = Path(__file__).parent / "programs"

_ports = itertools.count(7100)


def free_port() -> int:
    """A server port that no other case of this run has, below every ephemeral range.

    Host mode's servers live beside the node's own; 7100 and up is free of SlimRouter
    (docs/architecture.md, Paths and ports).
    """
    return next(_ports)


@dataclass
class Site:
    """Where a case runs and how big it may be."""

    lab: Lab
    pair: Pair
    placement: Placement
    scratch: Path
    seconds: float = 2.0
    quick: bool = False
    long: bool = False


@dataclass
class Sample:
    """What one measurement of one mode gave."""

    values: dict[str, float]
    problems: list[str] = field(default_factory=list)
    probe_connections: int | None = None
    probe_host_path: int | None = None
    congestion: str = ""


class Case(abc.ABC):
    """One benchmark: servers are started once per mode, then measured in turns."""

    name: str
    title: str
    kind: str = "program"
    metrics: tuple[Metric, ...]
    placements: tuple[str, ...] = ("free",)
    pairs: tuple[str, ...] = ("across",)
    modes: tuple[str, ...] = ("host", "overlay", "slim")
    turns: int = 1
    """How many times the usual number of rounds: where the bar is closer than five rounds can
    tell, because a round has several levels (a wake-up may or may not find its CPU idle) or
    the machine's own noise is wider than what the bar leaves."""
    needs: tuple[str, ...] = ()
    """Executables that must be there; the case is skipped with a note otherwise."""
    overlay_by_design = False
    """True if bytes are expected on the overlay's device in slim mode (cold connects)."""
    proving = False
    """The load is not counted: the connection table is watched meanwhile."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.lab = site.lab
        self.processes: dict[str, list[Process]] = {}
        self.ports: dict[str, set[int]] = {}

    @abc.abstractmethod
    def start(self, mode: Mode) -> None:
        """Start the server and return when it answers; raise BenchError if it does not."""

    @abc.abstractmethod
    def measure(self, mode: Mode) -> Sample:
        """Put load on it once."""

    def conditions(self) -> str:
        """What was sent and how, in words."""
        return ""

    def stop(self, mode: Mode) -> None:
        """End what `start` started."""
        for process in reversed(self.processes.pop(mode.name, [])):
            process.stop()

    # ---- for the cases ----

    def serve(
        self, mode: Mode, command: list[str], endpoint: str | None = None, what: str = ""
    ) -> Process:
        """Start a server process in the pair's server endpoint; `stop` ends it."""
        process = self.lab.start(
            endpoint or self.site.pair.server,
            mode,
            command,
            self.site.placement.server_cpu,
            what or self.name,
        )
        self.processes.setdefault(mode.name, []).append(process)
        return process

    def load(
        self, mode: Mode, command: list[str], seconds: float = 60.0, check: bool = True
    ) -> str:
        """Run a client to its end in the pair's client endpoint; gives its standard output."""
        return self.lab.run(
            self.site.pair.client, mode, command, self.site.placement.client_cpu, seconds, check
        )

    def address(self, mode: Mode, endpoint: str | None = None) -> str:
        """Address by which the client reaches the server (or the given endpoint)."""
        return self.lab.address(mode, endpoint or self.site.pair.server)

    def port(self, mode: Mode) -> int:
        """A fresh server port for this mode, remembered for the look at the connection table."""
        port = free_port()
        self.ports.setdefault(mode.name, set()).add(port)
        return port

    def script(self, name: str) -> str:
        """Path of a script of bench/programs on the nodes."""
        path = PROGRAMS / name
        self.lab.push(path)
        return str(path)

    def wait_ready(self, mode: Mode, port: int, http: bool = False, seconds: float = 20.0) -> None:
        """Return when the server answers on the port (with status 200, if it is HTTP).

        Raises:
            BenchError: it did not in time; the server's last words are in the text.
        """
        words = [PYTHON, self.script("ready.py"), self.address(mode), str(port), str(seconds)]
        try:
            self.load(mode, [*words, "http"] if http else words, seconds + 10)
        except BenchError as error:
            last = [p.error_tail() for p in self.processes.get(mode.name, [])]
            raise BenchError(f"{error}; server: {' / '.join(t for t in last if t)}") from None

    def node_directory(self, mode: Mode, endpoint: str | None = None) -> Path:
        """An empty directory for this mode's server, on the server's node."""
        path = self.site.scratch / f"data-{mode.name}"
        where = endpoint or self.site.pair.server
        self.lab.run(where, "host", ["mkdir", "-p", "-m", "755", str(path)])
        return path

    def write(self, path: Path, text: str) -> str:
        """Write a configuration file and bring it to the nodes; gives its path as text."""
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)
        self.lab.push(path)
        return str(path)
