# SPDX-License-Identifier: Apache-2.0
"""Waits in every way for connections, and says what the waiting costs.

    idle.py ADDRESS FIRST       listens on a port for each way from FIRST on; prints "ready".
                                For each line of standard input it waits a second and prints
                                "busy-us=B": how long its threads have wanted a CPU meanwhile

Who sleeps wants none, however busy the machine is; who spins wants one all the time, whether
or not he gets it: time that ran and time that waited are counted alike
(/proc/self/task/*/schedstat, Documentation/scheduler/sched-stats.rst).
"""

from __future__ import annotations

import contextlib
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def blocking(listener: socket.socket) -> None:
    while True:
        with contextlib.suppress(OSError):
            listener.accept()[0].close()


def looping(listener: socket.socket, wait: Callable[[], object]) -> None:
    listener.setblocking(False)
    while True:
        wait()
        with contextlib.suppress(OSError):
            listener.accept()[0].close()


def epolled(listener: socket.socket) -> None:
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    looping(listener, poller.poll)


def polled(listener: socket.socket) -> None:
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    looping(listener, poller.poll)


def selected(listener: socket.socket) -> None:
    looping(listener, lambda: select.select([listener], [], []))


def busy_us() -> int:
    wanted = 0
    for task in Path("/proc/self/task").iterdir():
        ran, waited, _times = (task / "schedstat").read_text("ascii").split()
        wanted += int(ran) + int(waited)
    return wanted // 1000


for number, way in enumerate((blocking, epolled, polled, selected)):
    server = socket.create_server((sys.argv[1], int(sys.argv[2]) + number))
    threading.Thread(target=way, args=(server,), daemon=True).start()
print("ready", flush=True)
for _line in sys.stdin:
    before = busy_us()
    time.sleep(1)
    print(f"busy-us={busy_us() - before}", flush=True)
