# SPDX-License-Identifier: Apache-2.0
"""PostgreSQL, loaded by pgbench: read-only transactions, and a connection per transaction."""

from __future__ import annotations

import re
from pathlib import Path

from bench.case import Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode

BINARIES = "/usr/lib/postgresql/*/bin"


def binary(name: str) -> str:
    """Path of a server program of the newest version that is installed."""
    found = sorted(Path("/").glob(f"{BINARIES}/{name}".lstrip("/")))
    if not found:
        raise BenchError(f"{BINARIES}/{name}: not there; apt install postgresql")
    return str(found[-1])


def parse(text: str) -> tuple[float, float, int]:
    """Transactions per second, mean latency in ms, failed transactions, from pgbench.

    Raises:
        BenchError: there is no rate.
    """
    rate = re.search(r"^tps = ([\d.]+)", text, re.M)
    latency = re.search(r"^latency average = ([\d.]+) ms", text, re.M)
    failed = re.search(r"^number of failed transactions: (\d+)", text, re.M)
    if rate is None or latency is None:
        raise BenchError(f"pgbench: no rate in {text[-300:]!r}")
    return float(rate.group(1)), float(latency.group(1)), int(failed.group(1)) if failed else 0


class Postgresql(Case):
    """pgbench -S; the server forks a process per connection."""

    needs = (f"{BINARIES}/postgres", "pgbench", "setpriv")
    extra: tuple[str, ...] = ()
    metrics = (
        Metric("rate", "transactions", "1/s", "higher", 0),
        Metric("latency_ms", "latency, mean", "ms", "lower", 3),
    )

    def conditions(self) -> str:
        """What is sent."""
        way = "a connection per transaction" if self.extra else "connections kept"
        return f"pgbench -S, scale 1, 4 clients, {way}"

    def start(self, mode: Mode) -> None:
        """Make a cluster of its own (the server refuses root), start it, fill it."""
        directory, port = self.node_directory(mode), self.port(mode)
        server = self.site.pair.server
        self.lab.run(server, "host", ["chown", "postgres:", str(directory)])
        drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        data = directory / "pg"
        self.lab.run(
            server,
            "host",
            [*drop, binary("initdb"), "-D", str(data), "-A", "trust", "-N", "-E", "UTF8"],
        )
        line = "host all all 0.0.0.0/0 trust"
        self.lab.run(server, "host", ["sh", "-c", f"echo '{line}' >> {data}/pg_hba.conf"])
        self.serve(
            mode,
            [
                *(*drop, binary("postgres"), "-D", str(data), "-p", str(port)),
                *("-c", f"listen_addresses={self.address(mode)}"),
                *("-c", f"unix_socket_directories={directory}"),
                *("-c", "fsync=off", "-c", "max_connections=64", "-c", "shared_buffers=64MB"),
            ],
        )
        self.wait_ready(mode, port)
        # The port answers a moment before the server takes clients.
        address = ["-h", self.address(mode), "-p", str(port), "-U", "postgres"]
        ready = f"until pg_isready -q -t 2 {' '.join(address)}; do sleep 0.05; done"
        self.load(mode, ["timeout", "20", "sh", "-c", ready])
        self.load(mode, ["pgbench", "-i", "-q", "-s", "1", *address, "postgres"])

    def measure(self, mode: Mode) -> Sample:
        """One run of pgbench."""
        (port,) = self.ports[mode.name]
        seconds = max(1, round(self.site.seconds))
        text = self.load(
            mode,
            [
                *("pgbench", "-S", "-n", *self.extra, "-c", "4", "-j", "1", "-T", str(seconds)),
                *("-h", self.address(mode), "-p", str(port), "-U", "postgres", "postgres"),
            ],
            seconds + 30,
        )
        rate, latency, failed = parse(text)
        problems = [f"{failed} transactions failed"] if failed else []
        return Sample({"rate": rate, "latency_ms": latency}, problems)


class PostgresqlKeep(Postgresql):
    """Connections kept."""

    name = "postgresql"
    title = "PostgreSQL, pgbench -S"


class PostgresqlConnect(Postgresql):
    """A connection (and so a server process) per transaction."""

    name = "postgresql-connect"
    title = "PostgreSQL, connection per transaction"
    extra = ("-C",)


CASES = (PostgresqlKeep, PostgresqlConnect)
