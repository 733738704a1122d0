# SPDX-License-Identifier: Apache-2.0
"""Building and removing a lab."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid

from lab import congestion, deploy, inventory, mountpoints, node, process, stub, underlay
from lab.errors import LabError
from lab.room import Room, prepare_pins
from lab.state import Plan, State
from lab.vm import guest


def _say(text: str) -> None:
    print(f"slimlab: {text}", file=sys.stderr, flush=True)


def remove(state: State) -> bool:
    """Remove what there is of a lab; say whether there was anything. The lock is held.

    Raises LabError when processes or mounts would not go.
    """
    if not state.exists():
        mountpoints.release(state.name)
        return False
    try:
        mark = state.load().run
    except LabError:
        mark = ""
    pins = sorted(state.pins.iterdir()) if state.pins.exists() else []
    # A pin that was touched but not mounted is a plain file of /run.
    plain = {state.directory.stat().st_dev}
    spaces = {
        found
        for pin in pins
        if pin.suffix in (".net", ".mnt")
        and (found := process.identity(pin)) is not None
        and found[0] not in plain
    }
    left = process.end(spaces, mark)
    if left:
        raise LabError(f"processes {left} of the lab do not end; look at them and try again")
    # By their pid files, where the plan with the mark could not be read.
    guest.end_all(state)
    for pin in pins:
        # Until it is no mount point any more: a killed `up` may have pinned twice.
        while process.identity(pin) is not None and pin.stat().st_dev not in plain:
            if subprocess.run(["umount", "-l", str(pin)], check=False).returncode != 0:
                raise LabError(f"{pin} cannot be unmounted; look at /proc/self/mountinfo")
    while state.pins.is_mount() or _mounted(str(state.pins)):
        if subprocess.run(["umount", "-l", str(state.pins)], check=False).returncode != 0:
            raise LabError(f"{state.pins} cannot be unmounted; look at /proc/self/mountinfo")
    shutil.rmtree(state.directory)
    shutil.rmtree(state.scratch, ignore_errors=True)
    mountpoints.release(state.name)
    return True


def _mounted(path: str) -> bool:
    """Is `path` a mount point? A bind mount of a directory on itself has no other device."""
    with open("/proc/self/mountinfo") as table:  # noqa: PTH123 - a proc file
        return any(line.split()[4] == path for line in table)


def build(state: State, plan: Plan) -> None:
    """Build the lab anew. The lock is held.

    If anything fails the lab stays as it is, for a look; the next `up` removes it.
    """
    started = time.monotonic()
    if remove(state):
        _say("removed the lab that was there")
    plan.run = uuid.uuid4().hex
    if plan.kind == "vm":
        state.create(plan)
        deployed = guest.start_all(state, plan)
    else:
        deployed = False
        mountpoints.claim(state.name)
        state.create(plan)
        prepare_pins(state)
        for host in plan.nodes:
            node.create_node(state, host)
        underlay.create(state, plan)
        for endpoint in plan.endpoints:
            node.create_endpoint(state, endpoint)
    inventory.write(state, plan)
    _say(
        f"{plan.hosts} nodes, {len(plan.endpoints)} endpoints "
        f"after {time.monotonic() - started:.1f} s"
    )
    # Virtual machines have cubic as their kernel's default.
    rooms = []
    if plan.kind == "netns":
        rooms += [Room(state, host.name) for host in plan.nodes]
        rooms += [Room(state, endpoint.name) for endpoint in plan.endpoints]
    for room in rooms[: plan.hosts]:
        # The hosts' own routes first: the routers' connections follow them.
        congestion.set_on(room)
    if deployed:
        _say("deployed from these sources before; --fresh runs the playbook again")
    elif plan.deploy:
        deploy.playbook(state, plan, "site")
        if plan.kind == "vm":
            guest.keep(state, plan)
    elif not plan.bare:
        stub.create(state, plan)
    for room in rooms:
        congestion.set_on(room)
    plan.phase = "up"
    state.save(plan)
    _say(f"up after {time.monotonic() - started:.1f} s")
