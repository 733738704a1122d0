# SPDX-License-Identifier: Apache-2.0
"""Running parts: each into its own log, none hiding a later one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from gate.parts import OUTPUT, Part

#: Lines of a failed part's log that are shown; the whole log stays on disk.
TAIL = 200
#: How our tests and pytest begin the line that names what failed, and how many of
#: these lines of a part come again under the table, where one looks first.
FAILURE = ("FAILED", "not ok")
NAMED = 20


@dataclass
class Result:
    """How one part ended. A part without counts of its own is one test."""

    part: Part
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str = ""
    named: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Did everything hold?"""
        return self.failed == 0


def counts(junit: Path) -> tuple[int, int, int] | None:
    """Passed, failed and skipped tests of a pytest run; None if it left no word."""
    try:
        root = ElementTree.parse(junit).getroot()
    except (OSError, ElementTree.ParseError):
        return None
    total = failed = skipped = 0
    for suite in root.iter("testsuite"):
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return max(0, total - failed - skipped), failed, skipped


def _run(words: list[str], part: Part, log: Path, deadline: float) -> str:
    """Run one command of a part; return what went wrong, or nothing."""
    with log.open("ab") as out:
        out.write(f"$ {' '.join(words)}\n".encode())
        out.flush()
        try:
            process = subprocess.Popen(
                words,
                cwd=part.directory,
                env={**os.environ, **part.environment},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return f"{words[0]}: {error.strerror}"
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _end_group(process)
            return f"not finished in {part.limit:.0f} s"
        except BaseException:
            _end_group(process)
            raise
    return f"status {status}" if status else ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a command with what it started: first gently, so that it can clean up."""
    # The leader is not reaped until wait(), so the group's number is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(part: Part, long: bool) -> Result:
    """Run a part to its end and say how it went."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    log = OUTPUT / f"{part.name}.log"
    log.unlink(missing_ok=True)
    if part.junit:
        part.junit.unlink(missing_ok=True)
    print(f"== {part.name}: {part.what}", flush=True)
    started = time.monotonic()
    problem = ""
    for words in part.commands(long):
        # A failed command does not hide a later one either.
        problem = _run(words, part, log, started + part.limit) or problem
    seconds = time.monotonic() - started
    counted = counts(part.junit) if part.junit else None
    if counted is None:
        passed, failed, skipped = int(not problem), int(bool(problem)), 0
    else:
        passed, failed, skipped = counted
        # Something besides a test went wrong, or no test was found.
        failed = max(failed, int(bool(problem)))
    named: tuple[str, ...] = ()
    if problem:
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        named = tuple(line for line in lines if line.startswith(FAILURE))[:NAMED]
        if len(lines) > TAIL:
            print(f"   (the last {TAIL} of {len(lines)} lines; all are in {log})")
        print("\n".join(lines[-TAIL:]))
    print(f"   {'failed: ' + problem if problem else 'ok'} ({seconds:.0f} s)", flush=True)
    return Result(part, passed, failed, skipped, seconds, problem, named)


def table(results: list[Result]) -> str:
    """What happened, a line a part, and the closing line."""
    lines = ["", f"{'part':<14}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}  outcome"]
    for result in results:
        outcome = "ok" if result.ok else f"FAILED ({result.note or 'see above'})"
        lines.append(
            f"{result.part.name:<14}{result.passed:>8}{result.failed:>8}{result.skipped:>9}"
            f"{result.seconds:>9.0f}  {outcome}"
        )
    for result in results:
        lines += [f"{result.part.name}: {line}" for line in result.named]
    passed = sum(result.passed for result in results)
    failed = sum(result.failed for result in results)
    lines += ["", f"{passed} passed, {failed} failed"]
    return "\n".join(lines)


def main(parts: list[Part], long: bool) -> int:
    """Run the parts and print the table; 0 if all held."""
    results: list[Result] = []
    try:
        for part in parts:
            results.append(run(part, long))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        print(table(results))
        return 130
    print(table(results))
    return 0 if results and all(result.ok for result in results) else 1
