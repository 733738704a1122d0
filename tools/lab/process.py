# SPDX-License-Identifier: Apache-2.0
"""Finding and ending the processes of a lab, and no others.

A process belongs to a lab if it is inside a namespace that the lab has pinned
(a pinned namespace cannot be recycled) or carries the mark of the lab's `up` in
its environment. It is signalled through a pidfd that was opened before the check,
so that a recycled pid is never hit.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from lab import names

#: How long processes get between SIGTERM and SIGKILL, in seconds.
GRACE = 2.0
#: How long we wait for them to be gone after SIGKILL, in seconds.
LAST = 10.0

Identity = tuple[int, int]


def identity(path: Path) -> Identity | None:
    """Device and inode of a namespace file; None if it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _own() -> set[int]:
    """Ourselves and our ancestors, who must never be ended."""
    pids = set()
    pid = os.getpid()
    while pid > 1:
        pids.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            break
        # The name in parentheses may hold anything; fields follow the last one (proc(5)).
        pid = int(stat.rpartition(")")[2].split()[1])
    return pids


def _belongs(pid: int, spaces: set[Identity], mark: str) -> bool:
    base = Path(f"/proc/{pid}")
    if any(identity(base / "ns" / kind) in spaces for kind in ("net", "mnt")):
        return True
    if not mark:
        return False
    try:
        words = (base / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{names.RUN_MARK}={mark}".encode() in words


def _signal(pid: int, number: int, spaces: set[Identity], mark: str) -> bool:
    """Signal one process if it is still one of ours; say whether it was."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if not _belongs(pid, spaces, mark):
            return False
        signal.pidfd_send_signal(handle, number)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def members(spaces: set[Identity], mark: str = "") -> list[int]:
    """Processes inside `spaces` or with the mark, except ourselves and our ancestors."""
    own = _own()
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if pid not in own and _belongs(pid, spaces, mark)]


def end(spaces: set[Identity], mark: str = "") -> list[int]:
    """End the lab's processes, gently first; return those that would not go."""
    number = signal.SIGTERM
    started = time.monotonic()
    while True:
        left = [pid for pid in members(spaces, mark) if _signal(pid, number, spaces, mark)]
        if not left:
            return []
        waited = time.monotonic() - started
        if waited > GRACE + LAST:
            return left
        if waited > GRACE:
            number = signal.SIGKILL
        time.sleep(0.02 if waited < 0.5 else 0.2)
