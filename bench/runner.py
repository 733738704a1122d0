# SPDX-License-Identifier: Apache-2.0
"""Runs cases in interleaved rounds (A B C, B C A, ...) and collects the evidence."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.case import Case, Sample, Site
from bench.conditions import brief, parse_congestion
from bench.lab import BenchError, Lab
from bench.model import MODES, PAIRS, PLACEMENTS, SLIM, Mode, Problem, Proof, Report, Series

PROOF_EVERY = 0.3
"""Seconds between two looks at the connection table (each starts a slimctl)."""

LINES = 25
"""Rounds of a case of which something is said, if there are many."""

GIVE_UP = 2
"""A mode that failed so often in a case is not tried again in it."""


def say(text: str) -> None:
    """A progress line."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class CaseRun:
    """What the rounds of one case leave behind."""

    case: Case
    proof: Proof
    modes: list[Mode] = field(default_factory=list)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    devices: dict[str, list[int]] = field(default_factory=dict)
    idle: dict[Any, dict[str, Any]] = field(default_factory=dict)
    """Rows of the connection table before the load: what does not grow is not of it."""

    @property
    def slim(self) -> bool:
        """True if slim mode takes part."""
        return SLIM in self.modes

    def alive(self, mode: Mode) -> bool:
        """True unless the mode has failed too often."""
        return self.failures.get(mode.name, 0) < GIVE_UP


class Runner:
    """One run: which cases, how many rounds, which modes."""

    def __init__(
        self,
        lab: Lab,
        report: Report,
        scratch: Path,
        *,
        rounds: int,
        seconds: float,
        quick: bool = False,
        long: bool = False,
        modes: Sequence[str] = ("host", "overlay", "slim"),
        pairs: Sequence[str] | None = None,
        placements: Sequence[str] | None = None,
        progress: Callable[[str], None] = say,
    ) -> None:
        self.lab = lab
        self.report = report
        self.scratch = scratch
        self.rounds = rounds
        self.seconds = seconds
        self.quick = quick
        self.long = long
        self.modes = [MODES[name] for name in modes]
        self.pairs = pairs
        self.placements = placements
        self.progress = progress
        self.congestion: set[str] = set()

    def run(self, cases: Iterable[type[Case]]) -> None:
        """Run every case in every pair and placement that it has and that was asked for."""
        for kind in cases:
            missing = [name for name in kind.needs if not installed(name)]
            if missing:
                self.note(
                    f"{kind.name}: skipped, {', '.join(missing)} not installed (bench/packages.txt)"
                )
                continue
            pairs = [p for p in kind.pairs if self.pairs is None or p in self.pairs]
            if self.pairs is not None and kind.kind == "program" and not pairs:
                pairs = list(self.pairs)
            for pair in pairs:
                if not all(self.lab.has(e) for e in (PAIRS[pair].client, PAIRS[pair].server)):
                    self.note(
                        f"{kind.name}, {pair}: skipped, the lab has no {PAIRS[pair].server} "
                        "(slimlab up --endpoints-per-host 2)"
                    )
                    continue
                for placement in kind.placements:
                    if self.placements is None or placement in self.placements:
                        self.run_case(kind, pair, placement)

    def note(self, text: str) -> None:
        """Say something now and in the report, once."""
        if text not in self.report.notes:
            self.report.notes.append(text)
            self.progress(f"  note: {text}")

    def run_case(self, kind: type[Case], pair: str, placement: str) -> None:
        """Run one case; what fails becomes a problem of the report, never an exception."""
        where = PLACEMENTS[placement]
        scratch = self.scratch / f"{kind.name}-{pair}-{placement}"
        scratch.mkdir(mode=0o755)
        site = Site(self.lab, PAIRS[pair], where, scratch, self.seconds, self.quick, self.long)
        with contextlib.ExitStack() as stack:
            words = where.title
            if where.pin_workers and SLIM in self.modes and "slim" in kind.modes:
                ends = (PAIRS[pair].client, PAIRS[pair].server)
                count = stack.enter_context(self.lab.pinned_workers(ends, where.client_cpu or 0))
                if not count:
                    words += " (no worker found to pin)"
            try:
                case = kind(site)
            except BenchError as error:
                self.problem(kind.name, pair, placement, "", 0, str(error))
                return
            self._run_rounds(case, pair, placement, words)

    def problem(
        self, case: str, pair: str, placement: str, mode: str, number: int, text: str
    ) -> None:
        """Record an error."""
        self.report.problems.append(Problem(case, pair, placement, mode, number, text))
        self.progress(f"  ERROR {case} {pair} {mode}: {text}")

    def _run_rounds(self, case: Case, pair: str, placement: str, words: str) -> None:
        run = CaseRun(case, Proof(case.name, pair, placement))
        run.modes = [m for m in self.modes if m.name in case.modes]
        self.progress(f"{case.title} ({PAIRS[pair].title}; {words})")
        started: list[Mode] = []
        try:
            for mode in run.modes:
                started.append(mode)
                try:
                    case.start(mode)
                except (BenchError, OSError) as error:
                    run.failures[mode.name] = GIVE_UP
                    self._error(run, mode.name, 0, str(error))
            ends = (case.site.pair.client, case.site.pair.server)
            connects = self.lab.connects(ends) if run.slim else {}
            if run.slim:
                self._look(case, run.idle)
            turns = self.rounds * case.turns
            for number in range(1, turns + 1):
                values = {}
                for mode in turned(run.modes, number - 1):
                    if run.alive(mode) and (sample := self._measure(run, mode, number)):
                        values[mode.name] = sample.values
                run.rounds.append(values)
                if number % max(1, turns // LINES):
                    continue
                self.progress(f"  round {number}/{turns}: {self._line(case, values)}")
            if run.slim and run.alive(SLIM):
                if not case.overlay_by_design:
                    self._prove(run)
                count_connects(connects, self.lab.connects(ends), run.proof)
            elif run.slim:
                run.proof.problem = "slim mode failed"
        finally:
            for mode in reversed(started):
                case.stop(mode)
        if run.slim and case.overlay_by_design:
            self._explain_cold(run)
        elif run.slim and case.name != "memory":
            self._conclude(run)
        common = brief(self.report.conditions)
        conditions = "; ".join(part for part in (case.conditions(), words, common) if part)
        for metric in case.metrics:
            rounds = [
                {m: v[metric.name] for m, v in one.items() if metric.name in v}
                for one in run.rounds
            ]
            self.report.series.append(
                Series(
                    case.name, case.title, case.kind, pair, placement, conditions, metric, rounds
                )
            )

    def _error(self, run: CaseRun, mode: str, number: int, text: str) -> None:
        """Record an error of this case."""
        self.problem(run.case.name, run.proof.pair, run.proof.placement, mode, number, text)

    def _measure(self, run: CaseRun, mode: Mode, number: int) -> Sample | None:
        """One mode's turn in a round; None if it failed."""
        client = run.case.site.pair.client
        try:
            # (what is asked before and after is the same in all modes)
            before = self.lab.device_bytes(client)
            sample = run.case.measure(mode)
            carried = self.lab.device_bytes(client) - before
            # The host's own devices do not matter: the question is what the overlay carried.
            if mode.address == "virtual":
                run.devices.setdefault(mode.name, []).append(carried)
        except (BenchError, OSError, ValueError, KeyError) as error:
            run.failures[mode.name] = run.failures.get(mode.name, 0) + 1
            self._error(run, mode.name, number, describe(error))
            return None
        if sample.congestion:
            self.congestion.add(f"{mode.name}: {sample.congestion}")
        if mode is SLIM and sample.probe_connections is not None:
            proof = run.proof
            proof.probe_connections = (proof.probe_connections or 0) + sample.probe_connections
            proof.probe_host_path = (proof.probe_host_path or 0) + (sample.probe_host_path or 0)
        for text in sample.problems:
            self._error(run, mode.name, number, text)
        return sample

    def _conclude(self, run: CaseRun) -> None:
        """Judge the evidence. A slim column that the overlay carried is a wrong figure."""
        proof = run.proof
        for name, attribute in (
            ("slim", "device_slim_bytes"),
            ("overlay", "device_overlay_bytes"),
        ):
            if run.devices.get(name):
                setattr(proof, attribute, round(fmean(run.devices[name])))
        self.report.proofs.append(proof)
        self.progress(f"  path: {'proven' if proof.proven else 'NOT PROVEN'}: {proof.text()}")
        if not proof.proven:
            text = f"the bytes are not proven to have taken the host path: {proof.text()}"
            self._error(run, "slim", 0, text)

    def _explain_cold(self, run: CaseRun) -> None:
        """The figure says how many took the host path; say why the others did not."""
        proof = run.proof
        total = proof.connects_slim + proof.connects_overlay
        for why, count in sorted(proof.reasons.items()):
            self.note(f"{run.case.name}: {count} of {total} stayed on the overlay: {why}")

    def _line(self, case: Case, values: dict[str, dict[str, float]]) -> str:
        first = case.metrics[0]
        shown = [
            f"{mode} {one[first.name]:,.{first.digits}f}"
            for mode, one in values.items()
            if first.name in one
        ]
        return f"{first.title} {first.unit}: " + ", ".join(shown) if shown else "no figure"

    def _prove(self, run: CaseRun) -> None:
        """One more load in slim mode, not counted, while the connection table is watched.

        slimctl costs CPU time of its own, so this is never done during a measurement.
        """
        case, proof = run.case, run.proof
        case.proving = True
        failed: list[str] = []
        problems: list[str] = []

        def load() -> None:
            try:
                problems.extend(case.measure(SLIM).problems)
            except (BenchError, OSError, ValueError, KeyError) as error:
                failed.append(describe(error))

        thread = threading.Thread(target=load)
        thread.start()
        seen: dict[Any, dict[str, Any]] = {}
        answered = False
        try:
            while True:
                begun = time.monotonic()
                answered |= self._look(case, seen)
                if case.name == "stream":
                    text = self.lab.run(
                        case.site.pair.client,
                        "host",
                        ["ss", "-tinH", "state", "established"],
                        check=False,
                    )
                    self.congestion |= {
                        f"ss on the node: {name}" for name in parse_congestion(text)
                    }
                thread.join(max(0.0, PROOF_EVERY - (time.monotonic() - begun)))
                if not thread.is_alive():
                    break
        finally:
            thread.join()
        for text in problems:
            self._error(run, "slim", self.rounds + 1, text)
        if failed:
            proof.problem = f"the load for the proof failed: {failed[0]}"
        elif not answered:
            proof.problem = "slimctl did not answer" if proof.probe_connections is None else ""
        count_rows(
            {key: row for key, row in seen.items() if bytes_of(row) != bytes_of(run.idle.get(key))},
            proof,
        )

    def _look(self, case: Case, seen: dict[Any, dict[str, Any]]) -> bool:
        """Add what the connection table shows of the case; False if slimctl did not answer."""
        rows = self.lab.connections(case.site.pair.client)
        take_rows(rows or [], case.ports.get("slim", set()), seen)
        return rows is not None


def turned(modes: Sequence[Mode], by: int) -> list[Mode]:
    """The modes of a round, each round begun by the next one.

    What a mode leaves behind (a warm cache, a page cache, a drifting clock rate) then
    falls to each of the others as often.
    """
    by %= max(1, len(modes))
    return [*modes[by:], *modes[:by]]


SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def installed(name: str) -> bool:
    """True if the program, or a file that fits the absolute pattern, is there."""
    if name.startswith("/"):
        return any(Path("/").glob(name.lstrip("/")))
    return shutil.which(name, path=SEARCH) is not None


def describe(error: Exception) -> str:
    """Words for an error; a bare KeyError says nothing."""
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


def take_rows(rows: list[dict[str, Any]], ports: set[int], seen: dict[Any, dict[str, Any]]) -> None:
    """Remember the rows of the connection table that concern these server ports."""
    for row in rows:
        if ports and row.get("dport") not in ports and row.get("sport") not in ports:
            continue
        key = tuple(
            row.get(name)
            for name in ("endpoint", "direction", "src", "sport", "dst", "dport", "cookie")
        )
        seen[key] = row


def bytes_of(row: dict[str, Any] | None) -> int:
    """Bytes that a connection has carried, both ways; -1 for one that is not there."""
    if row is None:
        return -1
    return int(row.get("bytes_sent") or 0) + int(row.get("bytes_received") or 0)


def count_rows(seen: dict[Any, dict[str, Any]], proof: Proof) -> None:
    """Sum the remembered rows up; each row's bytes are those of its last appearance.

    Connects that got no answer in time are left to the router's counters: looking at the table
    keeps a router busy, so that more of them are seen than there are when nobody looks. (Those of
    a program without the shim are in neither: the overlay's device has their bytes.)
    """
    for row in seen.values():
        if row.get("why") == "no-router":
            continue
        if row.get("path") == "slim":
            proof.table_slim += 1
            proof.table_bytes += bytes_of(row)
        else:
            proof.table_overlay += 1
            came = "came over the overlay" if row.get("direction") == "in" else "unknown"
            why = str(row.get("why") or came)
            proof.reasons[why] = proof.reasons.get(why, 0) + 1


def count_connects(before: dict[str, int], after: dict[str, int], proof: Proof) -> None:
    """Take what SlimRouter's counters of connects grew by."""
    for name, count in after.items():
        # A worker that was restarted counts from zero again.
        grown = count - before.get(name, 0) if count >= before.get(name, 0) else count
        if name in ("warm", "cold"):
            proof.connects_slim += grown
        elif grown:
            proof.connects_overlay += grown
            why = name.removeprefix("overlay_").replace("_", "-")
            proof.reasons[why] = proof.reasons.get(why, 0) + grown
