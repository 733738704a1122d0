# SPDX-License-Identifier: Apache-2.0
"""``python -m bench.flows``: what the flow log costs whoever connects, and the machine.

    node1: flow log off, on                  node2: flow log off, on
    c1 setup (clients) ---- host path ------ c2 setup (server)

Both routers are told to write one, and not to, in turns; a ratio is taken within a round.
Needs a lab of two hosts. Each connection is an open and a close in both logs, which
lie where the role puts them and are taken away at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.build import compile_program
from bench.lab import SLIMCTL, BenchError, Lab
from bench.stats import median
from bench.terminal import table

NODES = ("node1", "node2")
CLIENT, SERVER = "c1", "c2"
CONFIG = "/etc/slim/router.json"
LOG = {"path": "/run/slim/bench-flows.jsonl", "max_bytes": 16 << 20, "files": 2}
FIGURES = {
    "connect_p50_us": "connect(), p50, us",
    "connect_p99_us": "connect(), p99, us",
    "byte_p50_us": "socket() to first byte back, p50, us",
    "rate": "set-ups per second, 16 clients",
    "machine_us": "CPU of the machine per set-up, us",
}


class Routers:
    """The routers' configuration, as it was and with a flow log."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.before = {node: self.run(node, "cat", CONFIG) for node in NODES}

    def run(self, node: str, *words: str, text: str = "") -> str:
        """Output of a command on a node. Raises BenchError."""
        done = subprocess.run(
            [self.lab.command, "node", node, "--", *words],
            input=text, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"{node}: {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def log(self, wanted: bool) -> None:
        """Write one from now on, or none."""
        for node, text in self.before.items():
            changed = {**json.loads(text), "flow_log": LOG if wanted else None}
            self.run(node, "tee", CONFIG, text=json.dumps(changed))
            self.run(node, SLIMCTL, "reload")

    def lines(self) -> int:
        """How many the log of the first node has, the last turns of the file included."""
        return int(self.run(NODES[0], "sh", "-c", f"cat {LOG['path']}* | wc -l"))

    def dropped(self) -> int:
        """Lines that there was no room for."""
        return sum(
            json.loads(self.run(node, SLIMCTL, "status", "--json"))["flow_log"]["dropped"]
            for node in NODES
        )

    def restore(self) -> None:
        """As it was."""
        for node, text in self.before.items():
            self.run(node, "tee", CONFIG, text=text)
            self.run(node, SLIMCTL, "reload")
            self.run(node, "sh", "-c", f"rm -f {LOG['path']}*")


def measure(lab: Lab, options: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Medians and ratios of the rounds."""
    program = str(compile_program("setup", directory))
    lab.push(directory)
    address = lab.vip(SERVER)
    routers = Routers(lab)
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    server = lab.start(SERVER, "slim", [program, "serve", address, "1"])
    lines = dropped = 0
    try:
        port = server.read_line(10).split()[1]

        def ask(*words: str) -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(
                lab.run(CLIENT, "slim", [program, words[0], address, port, *words[1:]], seconds=120)
            )
            if answer["errors"]:
                raise BenchError(f"setup {words[0]}: {answer['errors']} connections failed")
            return answer

        ask("connect", "400")
        for number in range(options.rounds):
            for logged in (False, True) if number % 2 else (True, False):
                routers.log(logged)
                one = ask("connect", str(options.connects))
                many = ask("rate", "16", str(options.seconds), "0")
                found[logged].append(
                    {
                        **{key: one[key] for key in FIGURES if key in one},
                        "rate": many["good"] / many["seconds"],
                        "machine_us": 1e6 * many["machine_s"] / max(1, many["good"]),
                    }
                )
                if logged:
                    lines = max(lines, routers.lines())
                    dropped += routers.dropped()
    finally:
        server.stop()
        routers.restore()
    if not lines:
        raise BenchError("no line was written; look at the routers' journals")
    return {
        "lines": lines,
        "dropped": dropped,
        "figures": {
            key: {
                "off": median([row[key] for row in found[False]]),
                "on": median([row[key] for row in found[True]]),
                "ratio": median(
                    [on[key] / off[key] for off, on in zip(found[False], found[True], strict=True)]
                ),
            }
            for key in FIGURES
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 whatever the figures are, 2 if it could not run."""
    parser = argparse.ArgumentParser(
        prog="bench.flows", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--lab", default="tools/slimlab")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--connects", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="slim-flows-") as directory:
            Path(directory).chmod(0o755)
            answer = measure(Lab(options.lab), options, Path(directory))
    except BenchError as error:
        print(f"bench.flows: {error}", file=sys.stderr)
        return 2
    if options.json:
        options.json.write_text(json.dumps(answer, indent=1) + "\n")
    cells = [
        [title, *(f"{answer['figures'][key][column]:.1f}" for column in ("off", "on")),
         f"{answer['figures'][key]['ratio']:.3f}"]
        for key, title in FIGURES.items()
    ]  # fmt: skip
    print(table(["flow log", "off", "on", "on / off"], cells))
    print(f"{answer['lines']} lines kept, {answer['dropped']} dropped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
