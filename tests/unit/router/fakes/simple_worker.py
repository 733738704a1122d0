# SPDX-License-Identifier: Apache-2.0
"""A worker for the zygote's tests: does what one word tells it."""

from __future__ import annotations

import os
import socket
import sys


def main(link: socket.socket) -> int:
    """Obey until the link ends."""
    while word := link.recv(100):
        if word == b"echo":
            link.send(word)
        elif word == b"fds":
            fds = sorted(os.listdir("/proc/self/fd"), key=int)  # noqa: PTH208
            link.send(" ".join(fds).encode())
        elif word == b"modules":
            link.send(" ".join(sorted(sys.modules)).encode())
        elif word == b"exit":
            return 7
        elif word == b"raise":
            raise RuntimeError("as ordered")
    return 0
