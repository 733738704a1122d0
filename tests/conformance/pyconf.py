# SPDX-License-Identifier: Apache-2.0
"""What the Python conformance programs share: the same command line, output and peer
as the C ones (conf.h), spoken from Python's own socket module.

    program (this side)  ----- TCP under test -----  peer (peer.c)
                         ----- UDP PORT+9, orders --
"""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

ECHO, BANNER, SINK, SOURCE, RESET, SILENT, CLOSED, SAY_RESET, FIN, ORDERS = range(10)
BULK = 1 << 20
SO_NETNS_COOKIE = 71  # asm-generic/socket.h

slim = 0
overlay = 0


class Peer:
    """The peer's address, and ours towards it."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port + ORDERS))
            self.own: str = probe.getsockname()[0]

    def at(self, service: int) -> tuple[str, int]:
        return self.address, self.port + service

    def order(self, text: str) -> int:
        """Give an order; its number."""
        number = random.SystemRandom().randrange(1, 1 << 31)
        self._ask(number, text, "started", 5)
        return number

    def dial_me(self, count: int, mode: str, port: int, argument: int = 0) -> int:
        return self.order(f"dial {count} {mode} {self.own} {port} {argument}")

    def result(self, number: int, seconds: float = 15) -> dict[str, int]:
        """What became of an order: ok, fail, eof, reset, timeout, refused."""
        said = self._ask(number, "poll", "done", seconds)
        return {k: int(v) for k, v in (w.split("=", 1) for w in said.split()[1:7])}

    def all_ok(self, number: int, count: int) -> None:
        result = self.result(number)
        check(result["ok"] == count, f"peer: {result}, wanted {count} ok")

    def _ask(self, number: int, text: str, until: str, seconds: float) -> str:
        end = time.monotonic() + seconds
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(self.at(ORDERS))
            sock.settimeout(0.25)
            while time.monotonic() < end:
                sock.send(f"{number} {text}".encode())
                try:
                    head, _unused, rest = sock.recv(600).decode().partition(" ")
                except (TimeoutError, ConnectionRefusedError):
                    continue
                if int(head) == number and rest.startswith(until):
                    return rest
                time.sleep(0.02)
        raise TimeoutError(f"peer did not answer {text!r} within {seconds} s")


def start(seconds: int = 30) -> Peer:
    """Parse the command line, set the watchdog."""
    if len(sys.argv) != 3:
        print(f"usage: {sys.argv[0]} PEER-ADDRESS PEER-PORT", file=sys.stderr)
        sys.exit(2)

    def bark(signo: int, frame: FrameType | None) -> None:
        print("not ok - deadline passed", flush=True)
        os._exit(1)

    signal.signal(signal.SIGALRM, bark)
    signal.alarm(seconds)
    return Peer(sys.argv[1], int(sys.argv[2]))


def fail(why: str) -> NoReturn:
    print(f"not ok - {why}", flush=True)
    os._exit(1)


def check(condition: object, why: str) -> None:
    if not condition:
        fail(why)


def ok(what: str) -> None:
    print(f"ok - {what}", flush=True)


def note_path(sock: socket.socket) -> bool:
    """Count a connected socket's path; True if it is a host connection."""
    global slim, overlay
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
        ours = fresh.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    its = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    if its != ours:
        slim += 1
    else:
        overlay += 1
    return its != ours


class Watch:
    """The longest time, in seconds, between two looks; without what the thread spent waiting
    for a CPU, which is the machine's doing (Documentation/scheduler/sched-stats.rst)."""

    SCHEDSTAT = Path("/proc/thread-self/schedstat")

    def __init__(self) -> None:
        self.longest = 0.0
        self.look_away()

    def look_away(self) -> None:
        """Time begins anew."""
        self.seen, self.waited = time.perf_counter(), self._queued()

    def look(self) -> None:
        seen, waited = self.seen, self.waited
        self.look_away()
        self.longest = max(self.longest, self.seen - seen - (self.waited - waited))

    def _queued(self) -> float:
        return int(self.SCHEDSTAT.read_text("ascii").split()[1]) / 1e9


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def bulk() -> bytes:
    """The bytes that conf_pattern makes: what SOURCE sends."""
    return bytes((at * 31 + (at >> 8) * 7 + (at >> 16)) & 0xFF for at in range(BULK))


def done() -> None:
    print(f"# path slim={slim} overlay={overlay}")
    print(f"ok - {sys.argv[0].rpartition('/')[2]}", flush=True)
