# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.revoke``: how fast a new list bites, in a lab that is up.

node1                                       node2
c1: holder.py hold ---- 10,000 live ---->   c2: holder.py serve, two ports
c1: holder.py connect -- one by one ----->
router <-- pusher.py: deny one port

Each round opens the connections that the list will forbid, pushes it to the client's
host, and takes the time from the router's receipt until the last of them is dead in the
program that holds it (epoll says EPOLLERR or EPOLLHUP; one clock, so that hosts must be
namespaces of one machine). Beside it: what the router says it took, what connects took
meanwhile and without a push, and whether the others live and every byte that is written
to them meanwhile arrives.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.conditions import cpu_model
from bench.lab import BenchError, Lab, Process
from bench.model import MODES
from bench.runner import say
from bench.stats import median, percentile
from bench.terminal import table

KEPT, DOOMED = 7501, 7502
SOCKET = "/run/slim/admin.sock"
PROGRAMS = Path(__file__).parent / "programs"
DEAD_BAR_MS = 100.0
DELAY_BAR_MS = 20.0
SECONDS = 120.0


class Part(Process):
    """holder.py in one of its parts."""

    def __init__(self, lab: Lab, endpoint: str, *words: str) -> None:
        program = [sys.executable, str(PROGRAMS / "holder.py"), *words]
        super().__init__(lab.command_line(endpoint, "slim", program), f"holder {words[0]}")
        if self.read_line(10) != "READY":
            raise BenchError(f"holder {words[0]}: did not say READY")

    def tell(self, *words: object) -> None:
        """One command."""
        assert self._popen.stdin is not None
        self._popen.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self._popen.stdin.flush()

    def ask(self, *words: object) -> Any:
        """One command and its answer."""
        self.tell(*words)
        return json.loads(self.read_line(SECONDS))


def push(lab: Lab, rules: Sequence[dict[str, Any]], wait: int = 20) -> dict[str, Any]:
    """A list for the client's host: when it was sent, and the answer."""
    request = {"op": "acl-set", "default": "allow", "rules": list(rules), "wait": wait}
    said = lab.run(
        "c1", "host", [sys.executable, str(PROGRAMS / "pusher.py"), SOCKET],
        stdin=json.dumps(request) + "\n", seconds=SECONDS,
    )  # fmt: skip
    done: dict[str, Any] = json.loads(said)
    if not done["answer"]["ok"]:
        raise BenchError(f"acl-set: {done['answer']['error']}")
    if done["answer"]["result"]["incomplete"]:
        raise BenchError(f"acl-set: {done['answer']['result']['incomplete']}")
    return done


def one_round(lab: Lab, hold: Part, connect: Part, forbidden: int) -> dict[str, float]:
    """Milliseconds of one round."""
    opened = hold.ask("open", DOOMED, forbidden)
    if opened["slim"] < forbidden * 0.99:
        raise BenchError(f"only {opened['slim']} of {forbidden} connections took the host path")
    connect.ask("start")
    hold.ask("pour", KEPT)
    hold.tell("die", DOOMED)
    rule = {"id": "doomed", "action": "deny", "ports": [DOOMED]}
    done = push(lab, [rule])
    dead = json.loads(hold.read_line(SECONDS))
    meanwhile = connect.ask("stop")["us"]
    hold.ask("halt", KEPT)
    if dead["dead"] != forbidden:
        raise BenchError(f"{dead['dead']} of {forbidden} are dead")
    result = done["answer"]["result"]
    if result["revoked_total"] != forbidden:
        raise BenchError(f"{result['revoked_total']} of {forbidden} are named as revoked")
    push(lab, [])
    connect.ask("start")
    push(lab, [])  # changes nothing: the same load beside it, without a revocation
    quiet = connect.ask("stop")["us"]
    return {
        "dead": 1e3 * (dead["last"] - done["sent"]),
        "first": 1e3 * (dead["first"] - done["sent"]),
        "router": 1e3 * result["seconds"],
        "answer": 1e3 * (done["answered"] - done["sent"]),
        "delay": max(meanwhile) / 1e3,
        "quiet": max(quiet) / 1e3,
        "added": (max(meanwhile) - max(quiet)) / 1e3,
        "p50": median(meanwhile) / 1e3,
        "quiet_p50": median(quiet) / 1e3,
    }


def arrived(serve: Part, sent: int) -> int:
    """Bytes that the server has read of those that were written to kept connections."""
    end = time.monotonic() + 30
    while True:
        found: int = serve.ask("read", KEPT)["bytes"]
        if found >= sent or time.monotonic() > end:
            return found
        time.sleep(0.05)


def measure(lab: Lab, live: int, forbidden: int, rounds: int) -> list[dict[str, float]]:
    """All rounds. Raises BenchError."""
    address = lab.address(MODES["slim"], "c2")
    with contextlib.ExitStack() as stack:
        parts = []
        for endpoint, words in (
            ("c2", ("serve", address, str(KEPT), str(DOOMED))),
            ("c1", ("hold", address)),
            ("c1", ("connect", address, str(KEPT))),
        ):
            parts.append(Part(lab, endpoint, *words))
            stack.callback(parts[-1].stop)
        serve, hold, connect = parts
        push(lab, [])
        hold.ask("open", KEPT, 10)  # the pair is admitted
        hold.ask("open", KEPT, live - forbidden - 10)
        say(f"{live - forbidden} connections live")
        found = []
        for number in range(1, rounds + 1):
            hold.ask("open", DOOMED, 1)  # cold: leads to the lease
            hold.ask("close", DOOMED)
            found.append(one_round(lab, hold, connect, forbidden))
            alive = hold.ask("look", KEPT)["alive"]
            if alive != live - forbidden:
                raise BenchError(f"{alive} of {live - forbidden} permitted connections live")
            sent = hold.ask("halt", KEPT)["bytes"]
            lost = sent - arrived(serve, sent)
            if lost:
                raise BenchError(f"{lost} of {sent} bytes of permitted connections are lost")
            say(
                f"  round {number}/{rounds}: {sent} bytes arrived, dead after {found[-1]['dead']:.1f} ms"
            )
        return found


def show(found: Sequence[dict[str, float]]) -> str:
    """The table."""
    titles = {
        "dead": f"last forbidden connection dead, ms (bar: p99 <= {DEAD_BAR_MS:g})",
        "first": "first one dead, ms",
        "router": "of it, by the router's own clock, ms",
        "answer": "answer with all revoked connections, ms",
        "delay": "longest connect meanwhile, ms",
        "quiet": "longest connect without a revocation, ms",
        "added": f"the former less the latter, ms (bar: <= {DELAY_BAR_MS:g})",
        "p50": "connect p50 meanwhile, ms",
        "quiet_p50": "connect p50 without, ms",
    }
    rows = []
    for name, title in titles.items():
        values = [one[name] for one in found]
        words = (min(values), median(values), percentile(values, 99))
        rows.append([title, *(f"{value:.1f}" for value in words)])
    return table(["", "min", "median", "p99"], rows)


def main() -> int:
    """0, or 2 if it could not run. Speed never changes the status."""
    made = argparse.ArgumentParser(prog="python -m bench.revoke", description=__doc__)
    made.add_argument("--lab", default="tools/slimlab", help="command line of the lab, which is up")
    made.add_argument("--live", type=int, default=10_000, metavar="N")
    made.add_argument("--forbidden", type=int, default=1_000, metavar="N")
    made.add_argument("--rounds", type=int, default=20, metavar="N")
    made.add_argument("--json", type=Path, help="write the rounds there")
    options = made.parse_args()
    lab = Lab(options.lab)
    try:
        found = measure(lab, options.live, options.forbidden, options.rounds)
    except BenchError as error:
        say(f"bench.revoke: {error}")
        return 2
    print(f"{options.forbidden} of {options.live} live connections forbidden; {cpu_model()}")
    print(show(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
