# SPDX-License-Identifier: Apache-2.0
"""Having a path of the machine on every node."""

from __future__ import annotations

import subprocess
from pathlib import Path

from lab import names
from lab.errors import LabError, Refused
from lab.room import Room
from lab.state import Plan, State
from lab.vm import guest


def check(path: str) -> Path:
    """Return `path` if it can be pushed; Refused if it is relative or does not exist."""
    if not path.startswith("/"):
        raise Refused(f"push: {path!r} is not an absolute path")
    found = Path(path)
    if not found.exists() and not found.is_symlink():
        raise Refused(f"push: {path} does not exist on this machine")
    return found


def own_to_nodes(path: Path) -> bool:
    """Does a node have something else than the machine at this path?"""
    return any(path.is_relative_to(directory) for directory in names.NODE_ONLY)


def push(state: State, plan: Plan, paths: list[str]) -> None:
    """See to it that every node has each path: namespace nodes see the machine's files.

    There only what lies below a directory that nodes have for themselves is copied.
    """
    for path in [check(path) for path in paths]:
        if plan.kind == "netns" and not own_to_nodes(path.resolve()):
            continue
        name = str(path).lstrip("/")
        packed = subprocess.run(
            ["tar", "-C", "/", "-cf", "-", name], capture_output=True, check=False
        )
        if packed.returncode != 0:
            raise LabError(f"push: {path}: {packed.stderr.decode().strip()}")
        for host in plan.nodes:
            if plan.kind == "vm":
                words = guest.host(state, host.name).command("tar -C / -xf -")
            else:
                words = [*Room(state, host.name).enter(), "tar", "-C", "/", "-xf", "-"]
            done = subprocess.run(
                words,
                input=packed.stdout,
                capture_output=True,
                check=False,
            )
            if done.returncode != 0:
                raise LabError(f"push: {path} to {host.name}: {done.stderr.decode().strip()}")
