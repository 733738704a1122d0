# SPDX-License-Identifier: Apache-2.0
"""The delay relay in the switch's place: builds and starts delay.c."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lab import names
from lab.errors import LabError
from lab.room import Room, run
from lab.state import State

_SOURCE = Path(__file__).with_name("delay.c")


def offload_off(device: str) -> list[str]:
    """Command that makes a cable end send and expect ordinary frames only."""
    features = ("tx", "rx", "tso", "gso", "gro", "sg")
    return ["ethtool", "-K", device, *(word for name in features for word in (name, "off"))]


def build(state: State) -> Path:
    """Compile the relay and return its path."""
    program = state.scratch / "slimlab-delay"
    run("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(_SOURCE))
    return program


def start(state: State, switch: Room, ports: list[str], rtt_us: int, mark: str) -> None:
    """Start the relay between `ports`, half of `rtt_us` each way, and wait until it relays."""
    program = build(state)
    log = state.directory / "delay.log"
    with log.open("wb") as out:
        relay = subprocess.Popen(
            [*switch.enter(), str(program), str(rtt_us / 2), *ports],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            start_new_session=True,
            env={**os.environ, names.RUN_MARK: mark},
        )
    assert relay.stdout is not None
    line = relay.stdout.readline()
    relay.stdout.close()
    if line != b"relaying\n":
        raise LabError(f"the delay relay did not start: {log.read_text().strip()}")
