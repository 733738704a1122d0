# SPDX-License-Identifier: Apache-2.0
"""Rooms: sets of namespaces, kept by pins.

A pin is a bind mount of a namespace file; the namespace lives until it is
unmounted, whoever dies. Pins of mount namespaces need a mount point with
private propagation, see unshare(1).
"""

from __future__ import annotations

import os
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

        Raises LabError with the script's words if it fails.
        """
        # A mount namespace can be pinned only from one with a lower number. Since Linux
        # 6.18 each CPU hands numbers out of a stock of its own (fs/namespace.c
        # mnt_ns_loop, gen_cookie_next), so a young namespace of ours can have a higher
        # number than a newer one from another CPU; from the CPU that made ours it cannot.
        for cpu in (None, *sorted(os.sched_getaffinity(0))):
            if self._make(kinds, script, inside, cpu):
                return
        raise LabError(
            f"the mount namespace of {self.name} cannot be kept: mount(2) refuses it; "
            "run slimlab in the machine's own mount namespace"
        )

    def _make(
        self, kinds: tuple[str, ...], script: str, inside: Room | None, cpu: int | None
    ) -> bool:
        """One attempt of create(); False if the kernel did not let us pin what was made.

        The maker waits on its standard input, so it ends with us if we are killed.
        """
        command = [
            *([] if cpu is None else ["taskset", "-c", str(cpu)]),
            *(inside.enter() if inside else []),
            "unshare",
            *(_UNSHARE[kind] for kind in kinds),
            *(["--propagation", "private"] if "mnt" in kinds else []),
            "/bin/sh",
            "-euc",
            f"{script}\necho made\nread -r answer || true",
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
        made = any(line.strip() == "made" for line in iter(maker.stdout.readline, ""))
        pinned = made and all(self._pin(kind, maker.pid) for kind in kinds)
        words = maker.communicate("\n", timeout=30)[1]
        if not made or maker.returncode != 0:
            raise LabError(f"namespaces of {self.name} could not be made: {words.strip()}")
        if not pinned:
            for kind in kinds:
                subprocess.run(["umount", "-lq", str(self.pin(kind))], check=False)
                self.pin(kind).unlink(missing_ok=True)
        return pinned

    def _pin(self, kind: str, pid: int) -> bool:
        """Bind one namespace of a process to its pin; say whether the kernel let us."""
        self.pin(kind).touch()
        done = subprocess.run(
            ["mount", "--bind", f"/proc/{pid}/ns/{kind}", str(self.pin(kind))],
            capture_output=True,
            check=False,
        )
        return done.returncode == 0
