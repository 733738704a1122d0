# SPDX-License-Identifier: Apache-2.0
"""What workers do with any socket."""

from __future__ import annotations

import contextlib
import socket
import struct

SO_COOKIE = 57  # include/uapi/asm-generic/socket.h
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that turns close() into a reset."""


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE: the kernel's name of a socket, for its whole life."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def reset(sock: socket.socket) -> None:
    """Close with a reset, so that the other side never takes it for an end of data."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()
