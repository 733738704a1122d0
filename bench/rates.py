# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.rates``: set rates against bytes on the wire.

    node1                                    node2
    c1 (limited) ---- slim, across --------- c2
       |    \\-------- overlay -------------- c2
       +--- inside --- c3

Needs a lab of two hosts with two endpoints each, on which the role slim_qos has run
(-e slim_qos_enabled=true), as does bench.qos. Bytes on the wire are what the receiver read, times frame
over segment: Ethernet, IPv4 and TCP with timestamps are 66 bytes, VXLAN 50 more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.build import compile_program
from bench.lab import BenchError, Lab, Process
from bench.terminal import table

HEADERS, VXLAN = 66, 50
BAR = 0.05
WARM_S = 1.5
SETTLE_S = 0.4
LIMITED, PEER, SAME_HOST = "c1", "c2", "c3"
PORTS = {"across": "7301", "inside": "7302", "overlay": "7303"}
RATES = {"10mbit": 1e7, "100mbit": 1e8, "1gbit": 1e9, "4gbit": 4e9}
MOST = max(RATES.values())
"""Of all connections together: more than that is the machine's limit, not ours."""


@dataclass(frozen=True)
class Way:
    """One way of the limited endpoint's bytes."""

    name: str
    mode: str
    other: str

    def tunnelled(self, direction: str) -> bool:
        """Does the limit count what the overlay's packets become between the hosts?"""
        return self.other == PEER and direction == "egress"


WAYS = (
    Way("across", "slim", PEER),
    Way("inside", "slim", SAME_HOST),
    Way("overlay", "overlay", PEER),
)


class Bench:
    """A lab, its helper and the measuring programs."""

    def __init__(self, lab: Lab, python: str, directory: Path) -> None:
        self.lab = lab
        self.python = python
        self.pour = str(compile_program("pour", directory))
        self.roundtrip = str(compile_program("roundtrip", directory))
        lab.push(directory)

    def helper(self, node: str, change: dict[str, Any]) -> dict[str, Any]:
        """Change rates and classes of a node. Raises BenchError."""
        done = subprocess.run(
            [self.lab.command, "node", node, "--", "env", "PYTHONPATH=/opt/slim/qos/current",
             self.python, "-m", "slim_qos", "edit", "--json"],
            input=json.dumps(change), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"slim_qos on {node}: {done.stderr.strip()}; has the role run there?")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def link(self, node: str, rate: str) -> None:
        """Give the node's link this rate; 0 lets it alone."""
        words = [self.lab.command, "node", node, "--", "cat", "/etc/slim/qos.json"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
        try:
            now = json.loads(done.stdout)
        except ValueError:
            raise BenchError(f"{node}: no /etc/slim/qos.json; has the role run there?") from None
        base = {name: now[name] for name in ("mark", "address", "devices", "replace_root")}
        keys = ("tenant", "name", "vip", "netns")
        endpoints = [{key: entry[key] for key in keys} for entry in now["endpoints"]]
        self.helper(node, {"base": {**base, "link": rate, "endpoints": endpoints}})

    def limit(self, endpoint: str = LIMITED, **rates: str) -> None:
        """Put these limits in force, and no others."""
        wanted = {name: rates.get(name, "0") for name in ("egress", "ingress", "connection")}
        self.helper("node1", {"limits": [{"endpoint": endpoint, **wanted}]})

    @contextlib.contextmanager
    def server(
        self, endpoint: str, mode: str, port: str, cpu: int | None = None
    ) -> Iterator[Process]:
        """A server that reads."""
        address = self.lab.vip(endpoint)
        process = self.lab.start(endpoint, mode, [self.pour, "serve", address, port], cpu)
        try:
            process.read_line(10)
            yield process
        finally:
            process.stop()

    def stream(
        self, ways: Sequence[Way], direction: str, connections: int, seconds: float
    ) -> dict[str, float]:
        """Bits per second on the wire by way, all at the same time."""
        with contextlib.ExitStack() as stack:
            servers, senders = {}, {}
            for way in ways:
                here, there = (
                    (LIMITED, way.other) if direction == "egress" else (way.other, LIMITED)
                )
                port = PORTS[way.name]
                servers[way.name] = stack.enter_context(self.server(there, way.mode, port))
                sender = self.lab.start(
                    here, way.mode,
                    [self.pour, "send", self.lab.vip(there), port, str(connections),
                     str(len(ways) * SETTLE_S + WARM_S + seconds + 0.5)],
                )  # fmt: skip
                senders[way.name] = sender
                stack.callback(sender.stop)
                time.sleep(SETTLE_S)
            time.sleep(WARM_S)
            first = {name: ask(server) for name, server in servers.items()}
            time.sleep(seconds)
            last = {name: ask(server) for name, server in servers.items()}
            found = {}
            for way in ways:
                told = json.loads(senders[way.name].read_line(30))
                one, two = first[way.name], last[way.name]
                outside = connections - two["host_path"]
                if way.mode == "slim" and outside and len(ways) == 1:
                    raise BenchError(f"{way.name}: {outside} of {connections} took the overlay")
                # (Beside full queues cold connects may stay on the overlay, as they should.)
                tunnel = VXLAN * outside / connections if way.tunnelled(direction) else 0
                frame = told["mss"] + HEADERS + tunnel
                took = (two["ns"] - one["ns"]) / 1e9
                found[way.name] = (two["bytes"] - one["bytes"]) * 8 / took * frame / told["mss"]
            return found


def ask(server: Process) -> dict[str, int]:
    """The server's counter at this moment."""
    server.write_line("")
    answer: dict[str, int] = json.loads(server.read_line(10))
    return answer


def rates(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every rate, direction, number of connections and way."""
    rows = []
    for text in options.rates.split(","):
        wanted = RATES[text] if text in RATES else float(text)
        # On lo a segment has 64 KB: seconds must hold many.
        seconds = max(options.seconds, 1.2e8 / wanted)
        for direction in ("egress", "ingress"):
            bench.limit(**{direction: text})
            for connections in (1, 16):
                for ways in (*((way,) for way in WAYS), WAYS):
                    found = bench.stream(ways, direction, connections, seconds)
                    rows.append(
                        {
                            "direction": direction, "rate": wanted, "connections": connections,
                            "ways": "+".join(way.name for way in ways), "by_way": found,
                            "found": sum(found.values()),
                        }
                    )  # fmt: skip
                    show(rows[-1])
        bench.limit(connection=text)
        for connections in (1, 16):
            if wanted * connections > MOST:
                continue
            found = bench.stream(WAYS[:1], "egress", connections, seconds)
            rows.append(
                {
                    "direction": "connection", "rate": wanted * connections,
                    "connections": connections, "ways": "across", "by_way": found,
                    "found": sum(found.values()),
                }
            )  # fmt: skip
            show(rows[-1])
    bench.limit()
    return rows


def show(row: dict[str, Any]) -> None:
    """One line while it runs."""
    error = row["found"] / row["rate"] - 1
    print(
        f"{row['direction']:10} {row['rate'] / 1e6:6.0f} Mbit/s {row['connections']:3} x"
        f" {row['ways']:22} {row['found'] / 1e6:8.2f} Mbit/s {error:+.1%}"
        f"{'' if abs(error) <= BAR else '  NOT MET'}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 whatever the figures are, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="bench.rates", description=__doc__)
    parser.add_argument("--lab", default="tools/slimlab")
    parser.add_argument("--python", default=sys.executable, help="interpreter with pyroute2")
    parser.add_argument("--rates", default=",".join(RATES))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="slim-rates-") as directory:
            Path(directory).chmod(0o755)
            rows = rates(Bench(Lab(options.lab), options.python, Path(directory)), options)
    except BenchError as error:
        print(f"bench.rates: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    cells = [
        [row["direction"], f"{row['rate'] / 1e6:.0f}", str(row["connections"]), row["ways"],
         f"{row['found'] / 1e6:.2f}", f"{row['found'] / row['rate'] - 1:+.1%}",
         "met" if abs(row["found"] / row["rate"] - 1) <= BAR else "NOT MET"]
        for row in rows
    ]  # fmt: skip
    print(table(["limit", "Mbit/s", "connections", "ways", "found", "error", "bar"], cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
