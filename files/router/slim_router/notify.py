# SPDX-License-Identifier: Apache-2.0
"""Words to the service manager (sd_notify(3)); silent where there is none."""

from __future__ import annotations

import os
import socket
import time


def notify(*lines: str) -> bool:
    """Send lines such as READY=1; False when nobody listens. Never raises OSError."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where or where[0] not in "/@":
        return False
    if where[0] == "@":
        where = "\0" + where[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto("\n".join(lines).encode(), where)
    except OSError:
        return False
    return True


def ready() -> None:
    """We serve."""
    notify("READY=1", "STATUS=serving")


def reloading() -> None:
    """We read our files again; ready() ends it (systemd 253 wants the time with it)."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """We end."""
    notify("STOPPING=1")


def watchdog_interval() -> float | None:
    """Seconds between WATCHDOG=1, half of what is asked; None if not asked."""
    try:
        limit = int(os.environ.get("WATCHDOG_USEC", ""))
        whom = int(os.environ.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    if limit <= 0 or whom != os.getpid():
        return None
    return limit / 2e6


def alive() -> None:
    """The event loop turns."""
    notify("WATCHDOG=1")
