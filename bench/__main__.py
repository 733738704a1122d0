# SPDX-License-Identifier: Apache-2.0
"""``python -m bench``: the benchmarks, interleaved, with conditions and bars."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from bench import micro, programs, terminal
from bench.case import Case
from bench.conditions import gather
from bench.lab import BenchError, Lab
from bench.model import MODES, PAIRS, PLACEMENTS, Report
from bench.runner import Runner, say


def all_cases() -> list[type[Case]]:
    """Micro benchmarks first, then the programs."""
    return [*micro.CASES, *programs.cases()]


def choose(names: str | None, cases: Sequence[type[Case]]) -> list[type[Case]]:
    """Cases whose name is, or begins with, one of the names.

    Raises:
        BenchError: a name fits no case.
    """
    if not names:
        return list(cases)
    chosen: list[type[Case]] = []
    for name in names.split(","):
        fitting = [c for c in cases if c.name == name] or [
            c for c in cases if c.name.startswith(name)
        ]
        if name in ("micro", "program"):
            fitting = [c for c in cases if c.kind == name]
        if not fitting:
            raise BenchError(
                f"--only {name}: no such case; there are {', '.join(c.name for c in cases)}"
            )
        chosen += [c for c in fitting if c not in chosen]
    return chosen


def words(text: str | None, allowed: Sequence[str], option: str) -> list[str] | None:
    """A comma-separated option.

    Raises:
        BenchError: a word is not allowed.
    """
    if text is None:
        return None
    for word in text.split(","):
        if word not in allowed:
            raise BenchError(f"{option} {word}: must be one of {', '.join(allowed)}")
    return text.split(",")


def end_on_sigterm() -> None:
    """Turn SIGTERM into an orderly end, so that every server is stopped."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def add_conditions(report: Report, runner: Runner) -> None:
    """What only the measurements could tell: congestion control and round trip."""
    report.conditions["congestion"] = sorted(runner.congestion)
    load, cpus = report.conditions.get("load_before", 0), report.conditions.get("cpus") or 1
    if load > cpus / 2:
        report.notes.append(
            f"the machine was busy with something else (load {load} on {cpus} CPUs before the "
            "run): trust the ratios more than the figures, and neither too far"
        )
    strangers = sorted(one for one in runner.congestion if not one.endswith(" cubic"))
    if strangers:
        report.notes.append(
            f"congestion control other than cubic was in force ({', '.join(strangers)}): "
            "throughput figures are not comparable"
        )
    for mode, key in (("host", "rtt_us_across"), ("overlay", "rtt_us_overlay")):
        series = report.find("roundtrip.min_us/across/one")
        if series is not None and series.values(mode):
            report.conditions[key] = min(series.values(mode))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    made.add_argument("--lab", default="tools/slimlab", help="command line of the lab, which is up")
    made.add_argument("--json", type=Path, help="write conditions and raw rounds there")
    made.add_argument("--html", type=Path, help="write a page there")
    made.add_argument("--only", metavar="NAME,...", help="cases by name, or micro, or program")
    made.add_argument("--rounds", type=int, help="interleaved rounds of each case (5; --long 11)")
    made.add_argument(
        "--seconds", type=float, help="length of a load that is bounded by time (2; --long 5)"
    )
    made.add_argument("--modes", metavar="MODE,...", help=f"of {', '.join(MODES)}")
    made.add_argument("--pairs", metavar="PAIR,...", help=f"of {', '.join(PAIRS)}")
    made.add_argument("--placements", metavar="PLACE,...", help=f"of {', '.join(PLACEMENTS)}")
    made.add_argument(
        "--quick", action="store_true", help="fewer bytes and connects: a first impression"
    )
    made.add_argument(
        "--long",
        action="store_true",
        help="more of everything, 11 rounds, 220,000 set-ups a case and mode",
    )
    made.add_argument("--list", action="store_true", help="name the cases and end")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; 0 without errors, 1 with failed connects or wrong data, 2 if it cannot run."""
    options = parser().parse_args(arguments)
    end_on_sigterm()
    try:
        if options.list:
            for case in all_cases():
                print(f"{case.name:18} {case.title} ({case.kind}; {', '.join(case.pairs)})")
            return 0
        cases = choose(options.only, all_cases())
        modes = words(options.modes, list(MODES), "--modes") or list(MODES)
        pairs = words(options.pairs, list(PAIRS), "--pairs")
        placements = words(options.placements, list(PLACEMENTS), "--placements")
        lab = Lab(options.lab)
        if not lab.has("c1") or not lab.has("c2"):
            raise BenchError(
                f"{options.lab}: has no endpoints c1 and c2; "
                f"bring the lab up first ({options.lab} up)"
            )
        report = Report("Slim bench", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
        begun = time.monotonic()
        report.conditions = gather(lab, ["c1", "c2"])
        with tempfile.TemporaryDirectory(prefix="slim-bench-") as scratch:
            # Servers that give up root must be able to walk in.
            Path(scratch).chmod(0o755)
            runner = Runner(
                lab,
                report,
                Path(scratch),
                rounds=options.rounds or (11 if options.long else 5),
                seconds=options.seconds or (5.0 if options.long else 2.0),
                quick=options.quick,
                long=options.long,
                modes=modes,
                pairs=pairs,
                placements=placements,
            )
            runner.run(cases)
        add_conditions(report, runner)
        report.seconds = time.monotonic() - begun
    except BenchError as error:
        say(f"bench: {error}")
        return 2
    print(terminal.render(report))
    if options.json:
        options.json.write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    if options.html:
        from bench.page import render

        options.html.write_text(render(report), encoding="utf-8")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
