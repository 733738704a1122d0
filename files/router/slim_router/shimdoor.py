# SPDX-License-Identifier: Apache-2.0
"""The shim socket: who connects is told by the kernel, not by the caller.

SO_NETNS_COOKIE of the accepted socket is the caller's network namespace; the
socket goes to the worker of the endpoint that has this namespace, unread. Every
caller is hostile: nothing here waits for one, and a flood from one container is
cut off before it costs the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from pathlib import Path

from . import log, netns
from .config import check_socket_path
from .endpoints import Registry

BACKLOG = 4096
ACCEPT_BATCH = 64
PAUSE_S = 0.1
DIRECTORY_MODE, SOCKET_MODE = 0o755, 0o666


def bind_unix(path: Path, kind: int, mode: int, backlog: int) -> socket.socket:
    """A listening Unix socket of *mode* at *path*, in place of whatever socket was there.

    The name appears only when the socket is ready: nobody meets a half-made one.
    Raises ConfigError when the path is too long, OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    check_socket_path(temporary)
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        temporary.unlink(missing_ok=True)
        sock.bind(str(temporary))
        temporary.chmod(mode)
        sock.listen(backlog)
        temporary.replace(path)
    except BaseException:
        sock.close()
        temporary.unlink(missing_ok=True)
        raise
    return sock


class ShimDoor:
    """Listens on the shim socket and hands callers to their workers."""

    def __init__(self, path: Path, registry: Registry, counters: Counter[str]) -> None:
        self.path = path
        self.registry = registry
        self.counters = counters
        self._sock: socket.socket | None = None

    def start(self) -> None:
        """Listen. Raises OSError, ConfigError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.parent.chmod(DIRECTORY_MODE)
        self._sock = bind_unix(self.path, socket.SOCK_SEQPACKET, SOCKET_MODE, BACKLOG)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._ready)

    def stop(self) -> None:
        """Close the door and take the name away."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
            self.path.unlink(missing_ok=True)

    def _ready(self) -> None:
        assert self._sock is not None
        for _unused in range(ACCEPT_BATCH):
            try:
                caller, _unused = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors: the listener stays readable, so look away.
                self.counters["shim_accept_failed"] += 1
                log.warning("shim-accept", cause=error, next="raise the unit's LimitNOFILE")
                self._look_away()
                return
            with caller:
                self._hand_over(caller)

    def _hand_over(self, caller: socket.socket) -> None:
        try:
            cookie = netns.cookie_of(caller)
        except OSError:
            self.counters["shim_no_cookie"] += 1
            return
        ep = self.registry.by_cookie.get(cookie)
        if ep is None:
            self.counters["shim_unknown_namespace"] += 1
        elif ep.link is None or not ep.up:
            self.counters["shim_no_worker"] += 1
        elif not ep.shims.take():
            self.counters["shim_crowded"] += 1
        elif ep.link.send_shim(caller.fileno()):
            self.counters["shim_accepted"] += 1
        else:
            self.counters["shim_not_taken"] += 1

    def _look_away(self) -> None:
        assert self._sock is not None
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock.fileno())

        def back() -> None:
            if self._sock is not None:
                with contextlib.suppress(ValueError):
                    loop.add_reader(self._sock.fileno(), self._ready)

        loop.call_later(PAUSE_S, back)
