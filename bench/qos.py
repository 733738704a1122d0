# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.qos``: urgent requests beside bulk on one link of 1 Gbit/s.

    node1                                    node2
    c1 ------- request and response -------- c2       one link of 1 Gbit/s, shaped by
    c3 ------- bulk ------------------------ c4       slim_qos where it leaves node1

    sender --- the same bulk --------------- sink     another link of 1 Gbit/s

Both ends of the requests are on CPU 0 and those of the bulk on CPU 1. All of it shares one
machine, whose CPUs and caches the bulk uses, too. That is no doing of the link's; therefore
the idle link is measured twice: with nothing else on the machine, and with the same bulk on
a link of its own. Needs a lab as bench.rates does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, NetNS, netns

from bench.lab import BenchError, Lab, Process
from bench.rates import LIMITED, PEER, SAME_HOST, WARM_S, Bench, ask
from bench.stats import median
from bench.terminal import table

SAME_PEER = "c4"
BAR = 1.5
LINK_BIT_S = 1_000_000_000
BURST_BYTES = LINK_BIT_S // 8 // 4000
"""250 us of the link, as slim_qos gives its classes."""
IDLE, BESIDE, PLAIN, CLASSES = "idle", "idle, bulk elsewhere", "bulk, no classes", "bulk, classes"
CASES = {
    # name: (class of the requests, class of the bulk)
    IDLE: ("realtime", "bulk"),
    BESIDE: ("realtime", "bulk"),
    PLAIN: ("normal", "normal"),
    CLASSES: ("realtime", "bulk"),
}


class OtherLink:
    """A link that has nothing to do with the lab: two namespaces and a veth of 1 Gbit/s."""

    SINK = "198.18.77.2"

    def __init__(self) -> None:
        names = [f"slim-bench{os.getpid()}{end}" for end in "ab"]
        self.sender, self.sink = names

    def __enter__(self) -> OtherLink:
        for name in (self.sender, self.sink):
            netns.create(name)
        try:
            with IPRoute() as here:
                here.link(
                    "add", ifname="bench0", kind="veth", net_ns_fd=self.sender,
                    peer={"ifname": "bench0", "net_ns_fd": self.sink},
                )  # fmt: skip
            for name, address in ((self.sender, "198.18.77.1"), (self.sink, self.SINK)):
                with NetNS(name) as space:
                    index = space.link_lookup(ifname="bench0")[0]
                    space.addr("add", index=index, address=address, prefixlen=24)
                    space.link("set", index=index, state="up")
                    if name == self.sender:
                        space.tc("add", "htb", index, 0x10000, default=1)
                        space.tc(
                            "add-class", "htb", index, 0x10001, parent=0x10000,
                            rate=LINK_BIT_S // 8, ceil=LINK_BIT_S // 8,
                            burst=BURST_BYTES, cburst=BURST_BYTES,
                        )  # fmt: skip
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_problem: object) -> None:
        for name in (self.sender, self.sink):
            with contextlib.suppress(OSError):
                netns.remove(name)

    def start(self, name: str, command: list[str]) -> Process:
        """Run a command at one end, on the bulk's CPU."""
        return Process(["ip", "netns", "exec", name, "taskset", "-c", "1", *command], command[1])


class Bulk:
    """What is sent beside the requests, from its start to its stop."""

    def __init__(self, bench: Bench, streams: int) -> None:
        self.bench = bench
        self.streams = str(streams)
        self.bit_s: dict[str, list[float]] = {}

    def beside(self, case: str) -> contextlib.AbstractContextManager[None]:
        """The bulk of this case."""
        if case == IDLE:
            return contextlib.nullcontext()
        return self.elsewhere() if case == BESIDE else self.on_the_link()

    @contextlib.contextmanager
    def on_the_link(self) -> Iterator[None]:
        """From c3 to c4."""
        address = self.bench.lab.vip(SAME_PEER)
        with self.bench.server(SAME_PEER, "slim", "7312", cpu=1) as sink:
            sender = self.bench.lab.start(
                SAME_HOST, "slim", [self.bench.pour, "send", address, "7312", self.streams, "300"],
                cpu=1,
            )  # fmt: skip
            with self._counted("link", sender, sink):
                yield

    @contextlib.contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Over a link of its own."""
        with OtherLink() as link:
            sink = link.start(link.sink, [self.bench.pour, "serve", link.SINK, "7313"])
            try:
                sink.read_line(10)
                sender = link.start(
                    link.sender,
                    [self.bench.pour, "send", link.SINK, "7313", self.streams, "300"],
                )
                with self._counted("elsewhere", sender, sink):
                    yield
            finally:
                sink.stop()

    @contextlib.contextmanager
    def _counted(self, where: str, sender: Process, sink: Process) -> Iterator[None]:
        try:
            time.sleep(WARM_S)
            one = ask(sink)
            yield
            two = ask(sink)
            bit_s = (two["bytes"] - one["bytes"]) * 8e9 / (two["ns"] - one["ns"])
            self.bit_s.setdefault(where, []).append(bit_s)
        finally:
            sender.stop()


def measure(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the rounds: microseconds by case, ratios within a round, the bulk's bit/s."""
    address = bench.lab.vip(PEER)
    first = ["chrt", "-f", "10"] if options.fifo else []
    server = bench.lab.start(
        PEER, "slim", [*first, bench.roundtrip, "serve", address, "7311", "64"], cpu=0
    )
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CASES}
    bulk = Bulk(bench, options.bulk)
    try:
        server.read_line(10)
        bench.link("node1", str(LINK_BIT_S))
        for _round in range(options.rounds):
            for name, (urgent, other) in CASES.items():
                bench.helper(
                    "node1",
                    {"classes": [{"endpoint": LIMITED, "class": urgent},
                                 {"endpoint": SAME_HOST, "class": other}]},
                )  # fmt: skip
                # Behind bulk each takes what the queue holds, which is 50 ms.
                requests = min(options.requests, 500) if name == PLAIN else options.requests
                with bulk.beside(name):
                    text = bench.lab.run(
                        LIMITED, "slim",
                        [*first, bench.roundtrip, "ask", address, "7311", "64", str(requests)],
                        cpu=0, seconds=120,
                    )  # fmt: skip
                found[name].append(json.loads(text))
    finally:
        server.stop()
        bench.link("node1", "0")
        normal = [{"endpoint": name, "class": "normal"} for name in (LIMITED, SAME_HOST)]
        bench.helper("node1", {"classes": normal})
    return {
        "link_bit_s": LINK_BIT_S,
        "bulk_payload_bit_s": {where: median(rows) for where, rows in bulk.bit_s.items()},
        "cases": {
            name: {key: median([row[key] for row in rows]) for key in ("p50_us", "p99_us")}
            | {base: median(ratios(rows, found[base])) for base in (IDLE, BESIDE)}
            for name, rows in found.items()
        },
    }


def ratios(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[float]:
    """p99 over p99, round by round."""
    return [row["p99_us"] / under["p99_us"] for row, under in zip(rows, base, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 whatever the figures are, 2 if it could not run."""
    parser = argparse.ArgumentParser(
        prog="bench.qos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lab", default="tools/slimlab")
    parser.add_argument("--python", default=sys.executable, help="interpreter with pyroute2")
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--bulk", type=int, default=4, help="streams of the bulk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--fifo", action="store_true", help="the requests' ends before all else on their CPU"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="slim-qos-") as directory:
            Path(directory).chmod(0o755)
            answer = measure(Bench(Lab(options.lab), options.python, Path(directory)), options)
    except BenchError as error:
        print(f"bench.qos: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(answer, indent=1) + "\n")
    found = answer["cases"]
    cells = [
        [name, f"{row['p50_us']:.1f}", f"{row['p99_us']:.1f}",
         *(f"{row[base]:.2f}" for base in (IDLE, BESIDE))]
        for name, row in found.items()
    ]  # fmt: skip
    header = [
        "link of 1 Gbit/s", "p50 us", "p99 us", f"p99 to {IDLE} (bar {BAR})", f"p99 to {BESIDE}"
    ]  # fmt: skip
    print(table(header, cells))
    for where, bit_s in answer["bulk_payload_bit_s"].items():
        print(f"bulk, {where}: {bit_s / 1e6:.0f} Mbit/s of payload")
    return 0


if __name__ == "__main__":
    sys.exit(main())
