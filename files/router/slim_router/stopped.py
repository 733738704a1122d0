# SPDX-License-Identifier: Apache-2.0
"""Stop other processes for a moment: a call that they sleep in begins anew afterwards.

By ptrace(2), in a child of ours: seizing and interrupting a thread is seen neither by
it nor by its parent, needs no cgroup that somebody else manages, and ends with the
process that did it, whatever that died of, so that nobody stays stopped. A thread that
somebody traces already, or that does not stop in time, is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207  # include/uapi/linux/ptrace.h
WALL = 0x40000000  # waitpid: threads too; include/uapi/linux/wait.h
WAIT_S = 0.2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@contextlib.contextmanager
def stopped(pids: Iterable[int], wait_s: float = WAIT_S) -> Iterator[int]:
    """While the block runs, the threads of *pids* do not. Yields how many stand still.

    :param wait_s: seconds that stopping them may take at most.
    """
    ready, tell = os.pipe()
    hold, release = os.pipe()
    child = os.fork()
    if not child:
        os.close(release)
        _child(sorted(set(pids)), wait_s, tell, hold)
    os.close(tell)
    os.close(hold)
    try:
        # The child has its own bound; this one is for a machine that lets it starve.
        heard = select.select([ready], [], [], 5 * wait_s)[0]
        count = int.from_bytes(os.read(ready, 4), "little") if heard else 0
        yield count
    finally:
        os.close(ready)
        os.close(release)
        os.waitpid(child, 0)


def _child(pids: list[int], wait_s: float, tell: int, hold: int) -> NoReturn:
    """Stop them, say so, and end, which lets them go, when the parent has done or died."""
    try:
        count = _stop(pids, time.monotonic() + wait_s)
        os.write(tell, count.to_bytes(4, "little"))
        os.read(hold, 1)
    finally:
        os._exit(0)


def _stop(pids: list[int], deadline: float) -> int:
    seen: set[int] = set()
    seized: set[int] = set()
    fresh = True
    while fresh:  # threads start threads until all of them stand
        fresh = False
        for tid in _threads(pids):
            if tid in seen:
                continue
            fresh = True
            seen.add(tid)
            if _libc.ptrace(PTRACE_SEIZE, tid, None, None) == 0:
                _libc.ptrace(PTRACE_INTERRUPT, tid, None, None)
                seized.add(tid)
        if time.monotonic() > deadline:
            break
    return _wait(seized, deadline)


def _threads(pids: list[int]) -> Iterator[int]:
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            yield from map(int, os.listdir(f"/proc/{pid}/task"))


def _wait(seized: set[int], deadline: float) -> int:
    """How many of *seized* stand still by *deadline*."""
    running, standing = set(seized), 0
    while running:
        for tid in list(running):
            try:
                found, status = os.waitpid(tid, os.WNOHANG | WALL)
            except OSError:
                running.discard(tid)
                continue
            if found:
                running.discard(tid)
                standing += os.WIFSTOPPED(status)
        if running:
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)
    return standing
