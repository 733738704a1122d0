# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.rates``: set rates against bytes on the wire, and urgent against bulk.

    node1                                    node2
    c1 (limited) ---- slim, across --------- c2
       |    \\-------- overlay -------------- c2
       +--- inside --- c3                    c4
    c3 ------- bulk, for --qos ------------- c4

Needs a lab of two hosts with two endpoints each, on which the role slim_qos has run
(-e slim_qos_enabled=true). Bytes on the wire are what the receiver read, times frame
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
from bench.stats import median
from bench.terminal import table

HEADERS, VXLAN = 66, 50
BAR = 0.05
QOS_BAR = 1.5
WARM_S = 1.5
SETTLE_S = 0.4
LIMITED, PEER, SAME_HOST, SAME_PEER = "c1", "c2", "c3", "c4"
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


def qos(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Request and response against bulk on one link of 1 Gbit/s: microseconds.

    Both ends of the requests are on CPU 0 and those of the bulk on CPU 1: what a scheduler
    does with too few CPUs is not the link's.
    """
    address = bench.lab.vip(PEER)
    first = ["chrt", "-f", "10"] if options.fifo else []
    server = bench.lab.start(
        PEER, "slim", [*first, bench.roundtrip, "serve", address, "7311", "64"], cpu=0
    )
    found: dict[str, list[dict[str, Any]]] = {
        "idle": [],
        "bulk, no classes": [],
        "bulk, classes": [],
    }
    load: list[float] = []

    def asked(requests: int = options.requests) -> dict[str, Any]:
        text = bench.lab.run(
            LIMITED, "slim",
            [*first, bench.roundtrip, "ask", address, "7311", "64", str(requests)],
            cpu=0, seconds=120,
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(text)
        return answer

    def under_load(requests: int) -> dict[str, Any]:
        bulk = bench.lab.start(
            SAME_HOST, "slim",
            [bench.pour, "send", bench.lab.vip(SAME_PEER), "7312", str(options.bulk), "300"], cpu=1,
        )  # fmt: skip
        try:
            time.sleep(WARM_S)
            one = ask(sink)
            answer = asked(requests)
            two = ask(sink)
            load.append((two["bytes"] - one["bytes"]) * 8e9 / (two["ns"] - one["ns"]))
            return answer
        finally:
            bulk.stop()

    try:
        server.read_line(10)
        with bench.server(SAME_PEER, "slim", "7312", cpu=1) as sink:
            bench.link("node1", "1gbit")
            for _round in range(options.rounds):
                for name, urgent, other in (
                    ("idle", "realtime", "bulk"),
                    ("bulk, no classes", "normal", "normal"),
                    ("bulk, classes", "realtime", "bulk"),
                ):
                    bench.helper(
                        "node1",
                        {"classes": [{"endpoint": LIMITED, "class": urgent},
                                     {"endpoint": SAME_HOST, "class": other}]},
                    )  # fmt: skip
                    # Behind bulk each takes what the queue holds, which is 50 ms.
                    few = min(options.requests, 500)
                    requests = few if name == "bulk, no classes" else options.requests
                    found[name].append(asked() if name == "idle" else under_load(requests))
    finally:
        server.stop()
        bench.link("node1", "0")
        normal = [{"endpoint": name, "class": "normal"} for name in (LIMITED, SAME_HOST)]
        bench.helper("node1", {"classes": normal})
    return {
        "link_bit_s": 1e9,
        "bulk_payload_bit_s": median(load),
        **{
            name: {key: median([row[key] for row in rows]) for key in ("p50_us", "p99_us")}
            for name, rows in found.items()
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 whatever the figures are, 2 if it could not run."""
    parser = argparse.ArgumentParser(prog="bench.rates", description=__doc__)
    parser.add_argument("--lab", default="tools/slimlab")
    parser.add_argument("--python", default=sys.executable, help="interpreter with pyroute2")
    parser.add_argument("--rates", default=",".join(RATES))
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--qos", action="store_true", help="only the classes of service")
    parser.add_argument("--no-qos", action="store_true", help="only the rates")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--bulk", type=int, default=4, help="streams of the bulk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--fifo", action="store_true", help="the requests' ends before all else on their CPU"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    answer: dict[str, Any] = {"rates": [], "qos": {}}
    try:
        with tempfile.TemporaryDirectory(prefix="slim-rates-") as directory:
            Path(directory).chmod(0o755)
            bench = Bench(Lab(options.lab), options.python, Path(directory))
            if not options.qos:
                answer["rates"] = rates(bench, options)
            if not options.no_qos:
                answer["qos"] = qos(bench, options)
    except BenchError as error:
        print(f"bench.rates: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(answer, indent=1) + "\n")
    if answer["rates"]:
        cells = [
            [row["direction"], f"{row['rate'] / 1e6:.0f}", str(row["connections"]), row["ways"],
             f"{row['found'] / 1e6:.2f}", f"{row['found'] / row['rate'] - 1:+.1%}",
             "met" if abs(row["found"] / row["rate"] - 1) <= BAR else "NOT MET"]
            for row in answer["rates"]
        ]  # fmt: skip
        print(table(["limit", "Mbit/s", "connections", "ways", "found", "error", "bar"], cells))
    if answer["qos"]:
        found = answer["qos"]
        idle = found["idle"]["p99_us"]
        cells = [
            [name, f"{found[name]['p50_us']:.1f}", f"{found[name]['p99_us']:.1f}",
             f"{found[name]['p99_us'] / idle:.2f}"]
            for name in ("idle", "bulk, no classes", "bulk, classes")
        ]  # fmt: skip
        print(table(["link of 1 Gbit/s", "p50 us", "p99 us", f"to idle (bar {QOS_BAR})"], cells))
        print(f"bulk: {found['bulk_payload_bit_s'] / 1e6:.0f} Mbit/s of payload")
    return 0


if __name__ == "__main__":
    sys.exit(main())
