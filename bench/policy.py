# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.policy``: what judging a connection by 10,000 rules costs against 10.

Needs no lab, only the router's package (PYTHONPATH=files/router). A decision is
timed with its call; the loop around it is taken off. Each round gives every shape
and size its turn. Packets are drawn evenly from addresses and ports in and beside
the rules, so that most look at a place of the table that the last one did not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bench.conditions import cpu_model
from bench.stats import median
from bench.terminal import table
from slim_router.findings import findings
from slim_router.matcher import Side, Table
from slim_router.policy import Policy, Rule, dump, parse
from slim_router.prefix import Prefix, collapse
from slim_router.prefix import parse as prefix_of
from slim_router.slices import Assembler, Slicer
from slim_router.wire import pack_addr

FEW, MANY = 10, 10_000
BAR = 2.0
PACKETS = 4096

Made = TypeVar("Made")
Draft = tuple[list[str], list[int]]
"""(peer prefixes, first and last ports)."""


def _port(number: int) -> int:
    return 1 + 7919 * number % 65535


def _host(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _cut(text: str, length: int) -> str:
    whole = prefix_of(text)
    bits = length if ":" in text else 96 + length
    return str(Prefix(whole.first >> (128 - bits) << (128 - bits), bits))


def hosts(number: int) -> Draft:
    """A host each, with a port of its own."""
    return [_host(number)], [_port(number)] * 2


def hosts6(number: int) -> Draft:
    """The same in IPv6, 256 hosts in each /64."""
    return [f"fd44:0:0:{number >> 8:x}::{number & 255:x}"], [_port(number)] * 2


def site(number: int) -> Draft:
    """What sites have: hosts, subnets and wide prefixes, services, some rules for any peer."""
    service: tuple[list[int], ...] = (
        [80, 80, 443, 443],
        [5432, 5432],
        [],
        [8000, 8080],
        [22, 22, 9100, 9100],
    )
    kind = number % 10
    if kind == 9:
        return ([] if number % 100 == 9 else [f"10.{number >> 8 & 255}.0.0/16"]), [
            _port(number)
        ] * 2
    if kind >= 6:
        return [_cut(_host(number * 61), 24), _cut(_host(number * 67), 26)], service[number % 5]
    return [_host(number * 59), _host(number * 71)], service[number % 5]


def ports(number: int) -> Draft:
    """One prefix, a port each."""
    return ["10.0.0.0/8"], [_port(number)] * 2


def half(number: int) -> Draft:
    """Half for any peer with a port each, half a host and a port each: all of one matter
    to all of the other."""
    return ([_host(number)] if number % 2 else []), [_port(number)] * 2


def wide(number: int) -> Draft:
    """Prefixes of 20 lengths and ranges of ports that overlap."""
    return [_cut(_host(number * 61), 13 + number % 20)], [_port(number) // 2 + 1, _port(number)]


def nested(number: int) -> Draft:
    """IPv4 prefixes nested as deep as they can be, with hundreds of ports each."""
    return [_cut("10.0.0.7", number % 33)], [_port(number)] * 2


def nested6(number: int) -> Draft:
    """The same in IPv6: 129 deep."""
    return [_cut("fd44::7", number % 129)], [_port(number)] * 2


NORMAL: tuple[Callable[[int], Draft], ...] = (hosts, hosts6, site, ports, half)
HOSTILE: tuple[Callable[[int], Draft], ...] = (wide, nested, nested6)


@dataclass
class Candidate:
    """One shape with one number of rules."""

    shape: str
    drafts: list[Draft]
    packets: list[tuple[bytes, int]] = field(init=False)
    table: Table = field(init=False)
    laps: list[float] = field(default_factory=list)  # ns a decision, loop included
    seconds: float = 0.0  # to compile
    step_seconds: float = 0.0  # the longest step of it
    kept: int = 0  # bytes of the table
    peak: int = 0  # bytes while compiling, rules included
    rules: int = 0  # bytes of the rules before compiling

    def __post_init__(self) -> None:
        rng = random.Random(self.shape)
        rng.shuffle(self.drafts)
        self.packets = [self._packet(rng) for _unused in range(PACKETS)]

    def _packet(self, rng: random.Random) -> tuple[bytes, int]:
        peers, _unused = rng.choice(self.drafts)
        _unused2, flat = rng.choice(self.drafts)
        if peers:
            where = prefix_of(rng.choice(peers))
            number = rng.randint(where.first, where.last)
        else:
            number = int.from_bytes(pack_addr(_host(rng.randrange(MANY))), "big")
        port = rng.choice(flat) if flat else rng.randint(1, 65535)
        return number.to_bytes(16, "big"), min(65535, max(1, port + rng.choice((-1, 0, 0, 1))))

    def side(self) -> Side:
        """The rules."""
        made = Side()
        for index, (peers, flat) in enumerate(self.drafts):
            made.add(index, index % 2 == 0, f"rule-{index}", map(prefix_of, peers), flat)
        return made

    def compile(self) -> None:
        """Compile three times against the clock and once against the memory."""
        side = self.side()
        times = []
        for _unused in range(3):
            began = time.thread_time()
            self.table = Table(side, True)
            times.append(time.thread_time() - began)
        self.seconds = min(times)
        self.step_seconds = min(self._longest_step(side) for _unused in range(3))
        del side
        gc.collect()
        tracemalloc.start()
        side = self.side()
        self.rules = tracemalloc.get_traced_memory()[0]
        made = Table(side, True)
        self.peak = tracemalloc.get_traced_memory()[1]
        del side
        gc.collect()
        self.kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        del made

    def _longest_step(self, side: Side) -> float:
        steps = Table.compiling(side, True)
        longest = 0.0
        while True:
            began = time.thread_time()
            try:
                next(steps)
            except StopIteration:
                return max(longest, time.thread_time() - began)
            longest = max(longest, time.thread_time() - began)

    def lap(self) -> None:
        """One round over the packets."""
        decide = self.table.decide
        began = time.thread_time_ns()
        for peer, port in self.packets:
            decide(peer, port)
        whole = time.thread_time_ns() - began
        began = time.thread_time_ns()
        for peer, port in self.packets:  # noqa: B007 - what the loop itself costs
            pass
        self.laps.append((whole - (time.thread_time_ns() - began)) / len(self.packets))


def measure(rounds: int, many: int) -> list[tuple[Candidate, Candidate]]:
    """All shapes, interleaved: (few rules, many rules)."""
    pairs = []
    for shape in (*NORMAL, *HOSTILE):
        name = shape.__name__
        two = [Candidate(name, [shape(n) for n in range(count)]) for count in (FEW, many)]
        for one in two:
            one.compile()
        pairs.append((two[0], two[1]))
    for _unused in range(rounds):
        for pair in pairs:
            for one in pair:
                one.lap()
    return pairs


def speed_table(pairs: Sequence[tuple[Candidate, Candidate]], many: int) -> str:
    """ns a decision."""
    head = ["one decision, ns", f"{FEW} min", "median", f"{many:,} min", "median",
            "ratio (rounds)", f"bar <= {BAR:g}", "blocks"]  # fmt: skip
    hostile = {shape.__name__ for shape in HOSTILE}
    rows = []
    for few, lots in pairs:
        quotients = [b / a for a, b in zip(few.laps, lots.laps, strict=True)]
        ratio = median(quotients)
        verdict = "met" if ratio <= BAR else "NOT MET"
        rows.append(
            [
                few.shape,
                *[f"{value:.0f}" for value in (min(few.laps), median(few.laps))],
                *[f"{value:.0f}" for value in (min(lots.laps), median(lots.laps))],
                f"{ratio:.2f} ({min(quotients):.2f}-{max(quotients):.2f})",
                f"({verdict})" if few.shape in hostile else verdict,
                str(lots.table.depth),
            ]
        )
    return table(head, rows)


def room_table(pairs: Sequence[tuple[Candidate, Candidate]], many: int) -> str:
    """Time to compile and memory."""
    head = [f"{many:,} rules", "compile, ms", "longest step, ms", "table, kB", "rules, kB",
            "peak, kB"]  # fmt: skip
    rows = [
        [
            lots.shape,
            f"{1e3 * lots.seconds:.0f}",
            f"{1e3 * lots.step_seconds:.1f}",
            *[f"{value / 1000:,.0f}" for value in (lots.kept, lots.rules, lots.peak)],
        ]
        for _few, lots in pairs
    ]
    return table(head, rows)


def way_table(many: int) -> str:
    """What the supervisor and the worker do once for each new policy: shape `site`."""
    rules = [
        Rule(
            f"rule-{number}",
            "allow" if number % 2 else "deny",
            destinations=collapse(map(prefix_of, peers)),
            ports=tuple(sorted(zip(flat[::2], flat[1::2], strict=True))),
        )
        for number, (peers, flat) in enumerate(map(site, range(many)))
    ]
    value = dump(Policy(1, "deny", tuple(rules)))
    rows: list[list[str]] = []

    def timed(what: str, call: Callable[[], Made]) -> Made:
        began = time.thread_time()
        made = call()
        rows.append([what, f"{1e3 * (time.thread_time() - began):.0f}"])
        return made

    policy = timed("read the whole policy", lambda: parse(value))
    timed("search for rules that never match", lambda: findings(policy))
    slicer = timed("prepare slices", lambda: Slicer(policy))
    vip = pack_addr("10.44.0.1")
    messages = timed("pieces for the first endpoint", lambda: list(slicer.pieces("blue", vip)))
    timed("pieces for a second one", lambda: list(slicer.pieces("red", vip)))
    assembler = Assembler()
    timed(
        f"worker: put {len(messages)} pieces together",
        lambda: [assembler.feed(json.loads(message)) for message in messages],
    )
    return table([f"{many:,} rules of the shape `site`", "ms"], rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; always 0, because speed on a shared machine is no test."""
    options = argparse.ArgumentParser(prog="python -m bench.policy", description=__doc__)
    options.add_argument("--rounds", type=int, default=15, help="interleaved rounds (15)")
    options.add_argument("--rules", type=int, default=MANY, help=f"the large number ({MANY})")
    chosen = options.parse_args(arguments)
    print(
        f"{cpu_model()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.2f}, Python"
        f" {platform.python_version()}, {chosen.rounds} rounds of {PACKETS} packets;"
        " CPU time of the thread\n"
    )
    pairs = measure(chosen.rounds, chosen.rules)
    show = partial(print, end="\n\n")
    show(speed_table(pairs, chosen.rules))
    print("Shapes in brackets are hostile: they show that it stays bounded, the bar is not theirs.")
    for shape in (*NORMAL, *HOSTILE):
        print(f"  {shape.__name__}: {' '.join((shape.__doc__ or '').split())}")
    show()
    show(room_table(pairs, chosen.rules))
    print(way_table(chosen.rules))
    return 0


if __name__ == "__main__":
    sys.exit(main())
