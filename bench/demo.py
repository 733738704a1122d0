# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.demo``: real programs over host, overlay and Slim, in a few minutes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import programs, terminal
from bench.__main__ import add_conditions, choose, end_on_sigterm
from bench.case import Case
from bench.conditions import gather
from bench.lab import BenchError, Lab
from bench.micro import Connect, RoundTrip, SetupRate16, Stream
from bench.model import Report
from bench.page import firsts, program_row, render
from bench.runner import Runner, say


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    made.add_argument("--lab", default="tools/slimlab", help="command line of the lab, which is up")
    made.add_argument("--out", type=Path, default=Path("demo-report.html"), help="the page")
    made.add_argument("--json", type=Path, help="write conditions and raw rounds there")
    made.add_argument("--only", metavar="NAME,...", help="cases by name, or micro, or program")
    made.add_argument("--quick", action="store_true", help="one short round of each")
    return made


def demo_cases() -> list[type[Case]]:
    """The micro benchmarks that a picture needs, then every program."""
    return [Stream, RoundTrip, Connect, SetupRate16, *programs.cases()]


def demo_table(report: Report) -> str:
    """One line a case: host, overlay, slim, ratios, way of the bytes."""
    rows = []
    for series in [*firsts(report, "micro"), *firsts(report, "program")]:
        row = program_row(report, series)
        way = {True: "host path", False: "NOT PROVEN", None: "-"}[row.proven]
        proof = report.proof(series.case, series.pair, series.placement)
        seen = f"{way} ({proof.table_slim} in the table)" if proof and proof.table_slim else way
        rows.append([f"{row.title}: {row.figure}", *row.cells, row.to_host, row.to_overlay, seen])
    head = ["", "host", "overlay", "slim", "slim/host", "slim/overlay", "bytes in slim mode took"]
    return terminal.table(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if everything worked, 1 with errors, 2 if it cannot run."""
    options = parser().parse_args(arguments)
    end_on_sigterm()
    try:
        cases = choose(options.only, demo_cases())
        lab = Lab(options.lab)
        if not lab.has("c1") or not lab.has("c2"):
            raise BenchError(
                f"{options.lab}: has no endpoints c1 and c2; "
                f"bring the lab up first ({options.lab} up)"
            )
        report = Report("Slim demo", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
        begun = time.monotonic()
        report.conditions = gather(lab, ["c1", "c2"])
        with tempfile.TemporaryDirectory(prefix="slim-demo-") as scratch:
            # Servers that give up root must be able to walk in.
            Path(scratch).chmod(0o755)
            runner = Runner(
                lab,
                report,
                Path(scratch),
                rounds=1 if options.quick else 3,
                seconds=1.0,
                quick=True,
            )
            for number, case in enumerate(cases, 1):
                say(f"[{number}/{len(cases)}] {case.title}")
                runner.placements = case.placements[:1]
                runner.run([case])
        add_conditions(report, runner)
        report.seconds = time.monotonic() - begun
        options.out.write_text(render(report), encoding="utf-8")
        if options.json:
            text = json.dumps(report.to_json(), indent=1) + "\n"
            options.json.write_text(text, encoding="utf-8")
    except BenchError as error:
        say(f"demo: {error}")
        return 2
    print()
    print(demo_table(report))
    for text in report.notes:
        print(f"note: {text}")
    for problem in report.problems:
        print(f"ERROR {problem.case} ({problem.pair}, {problem.mode}): {problem.text}")
    print(f"\nThe page with plots and conditions: {options.out}")
    print(f"Enter the lab and play: {options.lab} exec c1 -- bash   (c2 is on the other host)")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
