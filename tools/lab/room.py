# SPDX-License-Identifier: Apache-2.0
"""Rooms: sets of namespaces, kept by pins.

A pin is a bind mount of a namespace file; the namespace lives until it is
unmounted, whoever dies. Pins of mount namespaces need a mount point with
private propagation, see unshare(1).
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab.errors import LabError
from lab.state import State

KINDS = ("net", "mnt", "uts")
_UNSHARE = {"net": "--net", "mnt": "--mount", "uts": "--uts"}
_ENTER = {"net": "--net", "mnt": "--mount", "uts": "--uts"}


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command of ours and return its output; LabError with its words if it fails."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(command[:8])}: status {done.returncode}: {words}")
    return done.stdout


def prepare_pins(state: State) -> None:
    """Make the directory of pins a private mount of its own."""
    run("mount", "--bind", str(state.pins), str(state.pins))
    run("mount", "--make-private", str(state.pins))


class Room:
    """One set of namespaces of a lab, by name."""

    def __init__(self, state: State, name: str) -> None:
        self.state = state
        self.name = name

    def pin(self, kind: str) -> Path:
        """Path of the pin of one kind of namespace, made or not."""
        return self.state.pins / f"{self.name}.{kind}"

    def enter(self, kinds: tuple[str, ...] = KINDS) -> list[str]:
        """Return the words of a command line that run what follows inside."""
        words = ["nsenter"]
        words += [f"{_ENTER[kind]}={self.pin(kind)}" for kind in kinds if self.pin(kind).exists()]
        return [*words, "--"]

    def run(self, *command: str, stdin: str | None = None) -> str:
        """Run a command inside and return its output; LabError if it fails."""
        return run(*self.enter(), *command, stdin=stdin)

    def script(self, text: str, *arguments: str) -> str:
        """Run a shell script inside, stopping at the first failure."""
        return self.run("/bin/sh", "-euc", text, self.name, *arguments)

    def create(self, kinds: tuple[str, ...], script: str, inside: Room | None = None) -> None:
        """Make new namespaces (below those of `inside`), run `script` there and pin them.

        The maker waits on its standard input, so it ends with us if we are killed.
        """
        command = [
            *(inside.enter() if inside else []),
            "unshare",
            *(_UNSHARE[kind] for kind in kinds),
            *(["--propagation", "private"] if "mnt" in kinds else []),
            "/bin/sh",
            "-euc",
            f"{script}\necho made\nread -r _ || true",
            self.name,
        ]
        maker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert maker.stdout is not None
        made = ""
        for line in maker.stdout:
            made = line.strip()
            if made == "made":
                break
        if made == "made":
            for kind in kinds:
                self.pin(kind).touch()
                run("mount", "--bind", f"/proc/{maker.pid}/ns/{kind}", str(self.pin(kind)))
        words = maker.communicate("\n", timeout=30)[1]
        if made != "made" or maker.returncode != 0:
            raise LabError(f"namespaces of {self.name} could not be made: {words.strip()}")
