# SPDX-License-Identifier: Apache-2.0
"""What the integration tests that drive conformance programs share."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import names
from lab.client import Lab, wait_for

SOURCES = names.CHECKOUT / "tests" / "conformance"
BUILD = names.CHECKOUT / "build" / "conformance"
PEER_PORT = 7000
PYTHON = sys.executable
NODES = ("node1", "node2")

#: Words of a command.
Words = list[str | os.PathLike[str]]

_PATH = re.compile(r"^# path slim=(\d+) overlay=(\d+)$", re.MULTILINE)


def need(*programs: str) -> None:
    """Skip where a program is not installed; the gate installs them all, and fails."""
    for program in programs:
        if not shutil.which(program):
            missing = pytest.fail if os.environ.get("SLIM_GATE") else pytest.skip
            missing(f"{program} is not installed")


@functools.cache
def build() -> Path:
    """Build the conformance programs once; the directory they are in.

    A lock keeps two test runs of one checkout from building at the same time.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            ["make", "-s", "-j2", "-C", str(SOURCES), f"BUILD={BUILD}"], check=True, timeout=300
        )
    return BUILD


def read_until(process: subprocess.Popen[str], text: str, timeout: float = 10.0) -> str:
    """Read a process's standard output until `text` has come; all that was read.

    Goes past Python's buffers: do not mix with process.stdout.read().
    """
    assert process.stdout is not None
    fd = process.stdout.fileno()
    deadline = time.monotonic() + timeout
    said = b""
    while text.encode() not in said:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            raise AssertionError(f"no {text!r} within {timeout:g} s: {said.decode()!r}")
        piece = os.read(fd, 65536)
        if not piece:
            raise AssertionError(f"the process ended before it said {text!r}: {said.decode()!r}")
        said += piece
    return said.decode()


def start_peer(
    lab: Lab, endpoint: str, mode: str, *, libc: str = "glibc", port: int = PEER_PORT
) -> subprocess.Popen[str]:
    """The conformance peer in an endpoint, ready."""
    program = build() / ("peer_musl" if libc == "musl" else "peer")
    peer = lab.popen(
        endpoint,
        [program, lab.ip(endpoint), str(port)],
        mode,
        libc=libc,
        stdout=subprocess.PIPE,
        text=True,
    )
    read_until(peer, "ready")
    return peer


@dataclass(frozen=True)
class Outcome:
    """What one run of a conformance program said."""

    status: int
    said: str
    slim: int  # connections on the host path
    overlay: int  # connections on the overlay


def run_program(
    lab: Lab,
    endpoint: str,
    mode: str,
    words: Words,
    *,
    family: int = 4,
    libc: str = "glibc",
    timeout: float = 90.0,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a conformance program to its end."""
    done = lab.run(
        endpoint,
        words,
        mode,
        check=False,
        timeout=timeout,
        libc=libc,
        env={"CONF_FAMILY": str(family), **(env or {})},
    )
    said = f"{done.stdout}{done.stderr}"
    paths = [(int(a), int(b)) for a, b in _PATH.findall(said)]
    slim, overlay = paths[-1] if paths else (0, 0)
    return Outcome(done.returncode, said, slim, overlay)


def alive(pid: int) -> bool:
    """Does this process run? One that only waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def kill(lab: Lab, node: str) -> None:
    """Kill a node's router, and wait until its workers have followed it.

    A connection that a worker has taken and not yet handed over dies with it: it was
    never accepted by both applications. What comes after must work.
    """
    rows = lab.slimctl(node, "endpoints")["endpoints"]
    zygote = lab.slimctl(node, "status")["zygote"]["pid"]
    pids = [lab.kill_router(node), zygote, *(row["pid"] for row in rows if row["pid"])]
    wait_for(lambda: not any(alive(pid) for pid in pids), what=f"the router of {node} is dead")


@contextlib.contextmanager
def gone(lab: Lab, *nodes: str) -> Iterator[None]:
    """Routers of these nodes are dead and stay dead inside the block."""
    for node in nodes:
        lab.keeper(node, "hold")
    try:
        for node in nodes:
            kill(lab, node)
        yield
    finally:
        for node in nodes:
            lab.keeper(node, "resume")
        for node in nodes:
            lab.wait_router(node)


def counters(lab: Lab, endpoint: str) -> Counter[str]:
    """What an endpoint's worker has counted so far."""
    rows = lab.slimctl(endpoint, "endpoints")["endpoints"]
    (row,) = (row for row in rows if row["name"] == endpoint)
    return Counter(row["counters"])


CONFIG = "/etc/slim/router.json"
PATIENCE = dict.fromkeys(("swap_us", "blocking_swap_us", "reply_us"), 1_000_000)
"""Bounds for a connect that a busy machine keeps: for tests that want the host path."""


def starved(lab: Lab, *endpoints: str) -> float:
    """Seconds for which these endpoints' workers have waited for a CPU so far: the machine's
    doing (Documentation/scheduler/sched-stats.rst)."""
    total = 0
    for endpoint in endpoints:
        rows = lab.slimctl(endpoint, "endpoints")["endpoints"]
        (pid,) = (row["pid"] for row in rows if row["name"] == endpoint)
        total += int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[1])
    return total / 1e9


def configure(
    lab: Lab, node: str, bounds: Mapping[str, float] | None = None, **settings: object
) -> None:
    """Other settings for a node's router, which reads them; other bounds, and it makes its
    workers anew."""
    held = json.loads(lab.run(node, ["cat", CONFIG]).stdout)
    wanted = {**held, **settings}
    if bounds:
        wanted["bounds"] = {**held.get("bounds", {}), **bounds}
    lab.run(node, ["tee", CONFIG], stdin=json.dumps(wanted))
    lab.slimctl(node, "reload")


@contextlib.contextmanager
def as_deployed(lab: Lab) -> Iterator[None]:
    """Whatever is configured meanwhile, afterwards it is as it was."""
    deployed = {node: lab.run(node, ["cat", CONFIG]).stdout for node in NODES}
    try:
        yield
    finally:
        for node, config in deployed.items():
            lab.run(node, ["tee", CONFIG], stdin=config)
            lab.slimctl(node, "reload")
        settle(lab)


def settle(lab: Lab) -> None:
    """Both routers serve and their trunk is up."""

    def are_up(node: str, command: str, rows: str) -> bool:
        return all(row["state"] == "up" for row in lab.slimctl(node, command)[rows])

    for node in NODES:
        lab.wait_router(node)
        for command, rows in (("status", "trunks"), ("endpoints", "endpoints")):
            wait_for(
                functools.partial(are_up, node, command, rows), 60, f"the {rows} of {node} are up"
            )
