# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a lab on which site.yml has run, for the next `up` from the same sources.

Under an emulator a playbook takes minutes and its outcome is the same every time: so
the nodes are kept as they are after it, under a name that follows from everything
that the outcome depends on. `slimlab up --fresh` runs the playbook in any case.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from lab import names
from lab.state import Plan, State
from lab.vm import image, layout, machine

SNAPSHOT = "deployed"
#: The fleet's certificate authority, beside the inventory: the nodes' keys are of it.
AUTHORITY = ".slim-ca"

#: What decides how a deployed node looks, below the checkout.
_SOURCES = (
    *("files", "playbooks", "plugins", "roles", "tools/requirements.txt"),
    *("tools/lab/inventory.py", "tools/lab/vm/fleet.py", "tools/lab/vm/guest.py"),
)
_MADE = {"__pycache__", "build", ".pytest_cache"}


def _sources() -> Iterator[Path]:
    for name in _SOURCES:
        top = names.CHECKOUT / name
        if top.is_file():
            yield top
        for path in sorted(top.rglob("*")):
            if path.is_file() and not _MADE & set(path.relative_to(top).parts):
                yield path


def _directory(plan: Plan, disk: Path) -> Path:
    digest = hashlib.sha256(f"{disk} {plan.rtt_us} {plan.append}".encode())
    for path in _sources():
        digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return layout.CACHE / f"{_family(plan)}{digest.hexdigest()[:12]}"


def _family(plan: Plan) -> str:
    return f"deployed-{plan.kernel}-{plan.secure}-{plan.hosts}x{plan.endpoints_per_host}-"


def find(plan: Plan, disk: Path) -> Path | None:
    """The directory with the nodes' disks, if such a lab has been deployed before."""
    found = _directory(plan, disk)
    return found if found.is_dir() else None


def keep(state: State, plan: Plan, disk: Path, machines: dict[str, machine.Machine]) -> None:
    """Keep the nodes as they are now, stopped for as long as that takes.

    The caller has ended all connections to them. Raises LabError.
    """
    with image.lock():
        target = _directory(plan, disk)
        new = layout.CACHE / f"new-{target.name}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        try:
            # All stand still before the first is saved: no node may have heard from
            # another what that one does not know of in its own snapshot.
            for each in machines.values():
                each.ask("stop")
            for name, each in machines.items():
                each.say(f"savevm {SNAPSHOT}")
                shutil.copy2(state.scratch / f"{name}.qcow2", new / f"{name}.qcow2")
        finally:
            for each in machines.values():
                each.ask("cont")
        if (state.directory / AUTHORITY).is_dir():
            shutil.copytree(state.directory / AUTHORITY, new / AUTHORITY)
        # One of a family: the sources have changed since the others.
        for old in layout.CACHE.glob(f"{_family(plan)}*"):
            shutil.rmtree(old)
        new.rename(target)
