# SPDX-License-Identifier: Apache-2.0
"""Run the escape suite in a lab and judge what came of it.

    node1                                     node2
    canary.py (host's namespace)              peer: escape serve in c2
    c1: escape run, one process an identity
    c3: escape receive (the other container)

    PYTHONPATH=tools python3 -m tests.escape.runner [--identity I] [--variant V]
        [--attempt A] [--json FILE] [--revoke COMMAND]

COMMAND revokes on the host, with COOKIE in it; without one the module's control file is
used where there is one, else SOCK_DESTROY. Talks to the lab by lab.client.Lab only, so
that it serves a lab of machines as well.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lab import names
from lab.client import SLIMLAB, Lab

SOURCES = Path(__file__).resolve().parent
BUILD = names.CHECKOUT / "build" / "escape"
CANARY = SOURCES / "canary.py"

#: What untrusted containers are, and the one that only proves rows (see identity.c).
IDENTITIES = ("user", "root", "userns")
PROVER = "admin"
PEER_PORT = 7090
#: Bad ends of an attempt.
ESCAPES = ("succeeded", "leaked")


@dataclass(frozen=True)
class Result:
    """One attempt by one variant and one identity."""

    attempt: str
    group: str
    variant: str
    identity: str
    outcome: str  # denied, succeeded, leaked, not-applicable, broken
    errno: str
    token: str
    ms: float  # how long it took, milliseconds
    detail: str

    @property
    def escaped(self) -> bool:
        """Did it get anything?"""
        return self.outcome in ESCAPES

    def __str__(self) -> str:
        return f"{self.attempt} ({self.variant}, {self.identity}): {self.outcome}: {self.detail}"


@dataclass
class Report:
    """Everything that one run brought."""

    results: list[Result] = field(default_factory=list)
    #: identity -> why nothing of it was tried
    absent: dict[str, str] = field(default_factory=dict)

    def of(self, *outcomes: str) -> list[Result]:
        """Results with one of these outcomes."""
        return [result for result in self.results if result.outcome in outcomes]

    def escapes(self) -> list[Result]:
        """What succeeded or leaked."""
        return [result for result in self.results if result.escaped]

    def names(self, results: Iterable[Result] | None = None) -> set[str]:
        """Names of attempts."""
        return {result.attempt for result in (self.results if results is None else results)}

    def table(self) -> str:
        """Counts by group and identity, for people."""
        lines = [f"{'group':<8}{'identity':<10}{'denied':>8}{'escaped':>9}{'n/a':>6}{'broken':>8}"]
        counts: Counter[tuple[str, str, str]] = Counter()
        for result in self.results:
            kind = "escaped" if result.escaped else result.outcome
            counts[result.group, result.identity, kind] += 1
        pairs = sorted({(group, identity) for group, identity, _unused in counts})
        for group, identity in pairs:
            numbers = [
                counts[group, identity, kind]
                for kind in ("denied", "escaped", "not-applicable", "broken")
            ]
            lines.append(
                f"{group:<8}{identity:<10}{numbers[0]:>8}{numbers[1]:>9}{numbers[2]:>6}{numbers[3]:>8}"
            )
        for identity, why in self.absent.items():
            lines.append(f"{identity}: not tried: {why}")
        return "\n".join(lines)


def build() -> Path:
    """Build both programs once; the directory that they are in."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            ["make", "-s", "-C", str(SOURCES), f"BUILD={BUILD}"], check=True, timeout=300
        )
    return BUILD


def listing() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of attempts and of variants, as the program itself tells them."""
    done = subprocess.run(
        [build() / "escape-static", "list"], capture_output=True, text=True, check=True, timeout=30
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [row for row in rows if "attempt" in row], [row for row in rows if "variant" in row]


class _Canary:
    """The canary of one host: what it heard, and what it did for us."""

    def __init__(self, lab: Lab, node: str, secret: str, revoke: str) -> None:
        words: list[str | os.PathLike[str]] = ["python3", CANARY, "serve"]
        words += [lab.hostip(node), "0", secret, *([revoke] if revoke else [])]
        self.process = lab.popen(
            node, words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.heard: list[str] = []
        self.lock = threading.Lock()
        self._answers: queue.Queue[str] = queue.Queue()
        self._ready: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.port = int(self._ready.get(timeout=20))

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, str] = json.loads(line)
            if "heard" in said:
                self.heard.append(said["heard"])
            elif "answer" in said:
                self._answers.put(said["answer"])
            else:
                self._ready.put(said["ready"])

    def do(self, order: str) -> str:
        """Give an order and return the answer; one at a time."""
        with self.lock:
            assert self.process.stdin is not None
            self.process.stdin.write(order + "\n")
            self.process.stdin.flush()
            return self._answers.get(timeout=30)


def gather(lab: Lab, endpoint: str, peer: str) -> list[str]:
    """Facts about both hosts that are not the container's own as well."""

    def of(place: str, mode: str) -> dict[str, list[str]]:
        said = lab.run(place, ["python3", CANARY, "facts"], mode).stdout
        found: dict[str, list[str]] = json.loads(said)
        return found

    own = {item for kind in of(endpoint, "overlay").values() for item in kind}
    chosen: list[str] = []
    here, there = of(lab.node_of(endpoint), "host"), of(lab.node_of(peer), "host")
    vips = {lab.ip(name) for name in lab.endpoints}
    # Names to ask this container's host about; its own may be the same.
    chosen += here["device"][:12]
    bounds = {"address": 12, "netns": 2, "secret": 2, "interface": 12, "mac": 12}
    for kind, most in bounds.items():
        found = [item for item in dict.fromkeys([*here[kind], *there[kind]]) if item not in own]
        if kind == "address":
            found = [item for item in found if item.split("=")[1] not in vips]
        if kind == "interface":
            # Two letters turn up by chance.
            found = [item for item in found if len(item.split("=")[1]) > 2]
        chosen += found[:most]
    return chosen


def _identity(
    lab: Lab,
    canary: _Canary,
    words: list[str],
    identity: str,
    number: int,
    endpoint: str,
    report: Report,
) -> None:
    """Run one identity's attempts and answer its questions."""
    more = ["--identity", identity]
    more += ["--listen-port", str(23000 + 1000 * number), "--accept-port", str(7100 + number)]
    process = lab.popen(
        endpoint,
        [*words, *more],
        "slim",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    done = False
    for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if "ask" in said:
            answer = canary.do(said["ask"])
            process.stdin.write(f"A {answer}\n")
            process.stdin.flush()
        elif "done" in said:
            done = True
        elif "not-applicable" in said:
            report.absent[identity] = said["not-applicable"]
        else:
            report.results.append(Result(**said))
    if process.wait(timeout=10) != 0 or not done:
        words_of_it = _rest(process.stderr)
        raise AssertionError(f"the suite as {identity} did not come to its end: {words_of_it}")


def _rest(stream: IO[str] | None) -> str:
    return stream.read().strip() if stream else ""


def _judge(report: Report, heard: Sequence[str]) -> None:
    """What the canary heard is an escape, whatever the program thought of it."""
    tokens = set(heard)
    for at, result in enumerate(report.results):
        if result.token in tokens and not result.escaped:
            detail = f"{result.detail}; but the canary heard it"
            report.results[at] = Result(
                **{**result.__dict__, "outcome": "succeeded", "detail": detail}
            )


def run(
    lab: Lab,
    *,
    endpoint: str = "c1",
    peer: str = "c2",
    other: str = "c3",
    identities: Sequence[str] = IDENTITIES,
    variants: Sequence[str] = (),
    attempts: Sequence[str] = (),
    revoke: str = "",
) -> Report:
    """Run the suite in `endpoint` against `peer`; results in no certain order.

    Empty `variants` or `attempts` mean all of them. `other` is another container on the
    endpoint's host, where SCM_RIGHTS takes the socket. AssertionError if an identity
    does not come to its end.
    """
    place = build()
    for path in (place, SOURCES):
        subprocess.run([SLIMLAB, "push", path], env=lab.environment(), check=True, timeout=120)
    secret = secrets.token_hex(12)
    meet = f"/tmp/slim-escape.{lab.state.name or 'lab'}.{os.getpid()}.sock"
    peers = ["--peer", f"{lab.ip(peer)}:{PEER_PORT}"]
    server = lab.popen(
        peer,
        [place / "escape", "serve", *peers],
        "slim",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    canary = _Canary(lab, lab.node_of(endpoint), secret, revoke)
    options = [word for item in gather(lab, endpoint, peer) for word in ("--fact", item)]
    options += ["--canary", f"{lab.hostip(endpoint)}:{canary.port}"]
    options += ["--peer-host", lab.hostip(peer), "--secret", secret, "--meet", meet, *peers]
    receiver = lab.popen(
        other,
        [place / "escape-static", "receive", *options],
        "overlay",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert receiver.stdout is not None
    for process in (server, receiver):
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise AssertionError("a helper of the suite did not start; its words are above")
    words = [str(place / "escape"), "run", *options, "--static", str(place / "escape-static")]
    words += ["--variants", ",".join(variants) or "all", "--attempts", ",".join(attempts) or "all"]
    report = Report()
    failures: list[BaseException] = []

    def one(number: int, identity: str) -> None:
        mine = list(words)
        if identity == PROVER:
            # It proves rows; the ways by which it holds the socket are proved by the others.
            mine += ["--variants", "direct"]
        try:
            _identity(lab, canary, mine, identity, number, endpoint, report)
        except BaseException as error:  # carried over to the caller's thread
            failures.append(error)

    threads = [
        threading.Thread(target=one, args=(number, identity))
        for number, identity in enumerate(identities)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for process in (server, canary.process, receiver):
        if process.poll() is not None:
            raise AssertionError(f"a helper of the suite ended: status {process.returncode}")
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=20)
    lab.run(other, ["rm", "-f", meet], "overlay")
    _judge(report, canary.heard)
    return report


def main() -> int:
    """Entry point; 1 if anything escaped or broke."""
    parser = argparse.ArgumentParser(
        prog="escape", description=(__doc__ or "").split("\n", maxsplit=1)[0]
    )
    parser.add_argument("--identity", action="append", choices=(*IDENTITIES, PROVER))
    parser.add_argument("--variant", action="append", default=[])
    parser.add_argument("--attempt", action="append", default=[])
    parser.add_argument("--revoke", default="", help="command that revokes COOKIE on the host")
    parser.add_argument("--json", type=Path, help="write every result here")
    options = parser.parse_args()
    lab = Lab()
    try:
        report = run(
            lab,
            identities=options.identity or IDENTITIES,
            variants=options.variant,
            attempts=options.attempt,
            revoke=options.revoke,
        )
    finally:
        lab.end_processes()
    if options.json:
        rows = sorted(report.results, key=lambda r: (r.group, r.attempt, r.variant, r.identity))
        options.json.write_text("".join(json.dumps(row.__dict__) + "\n" for row in rows))
    bad = [*report.escapes(), *report.of("broken")]
    for result in bad:
        print(result)
    print(report.table())
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
