# SPDX-License-Identifier: Apache-2.0
"""The connections that an endpoint has over the overlay itself. Runs in its worker.

The table knows those that a shim asked about, or that a listener of ours accepted. There
are others: of programs without the shim, and of programs whose router was away when they
connected or accepted. The kernel knows them all, but not who began one:

    local port has a listener in the namespace, or only the remote one is ephemeral  -> in
    everything else                                                                  -> out
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator
from typing import TYPE_CHECKING

from . import sockdiag, wire
from .row import Row
from .sockdiag import Sock

if TYPE_CHECKING:
    from .worker import Worker

STEP = 256  # sockets between two chances for the loop
Found = list[tuple[Row, Sock]]


class Overlay:
    """Asks the kernel for the TCP sockets of the endpoint's namespace."""

    def __init__(self, worker: Worker, ports: tuple[int, int]) -> None:
        """*ports*: the endpoint's ephemeral ones, first and last."""
        self.worker = worker
        self.low, self.high = ports

    def walk(self) -> Generator[None, None, Found]:
        """Every live connection with another address of the overlay, whoever knows of it, with
        its row or one that is made up. Raises OSError."""
        covers = self.worker.covers
        socks: list[Sock] = []
        with self.worker.open_diag(1) as nl:
            for family in (socket.AF_INET, socket.AF_INET6):
                for number, sock in enumerate(sockdiag.dump(nl, family, want_info=True), 1):
                    if sock.src != sock.dst and covers(sock.src):
                        socks.append(sock)
                    if number % STEP == 0:
                        yield
                yield
            listening: set[int] | None = None
            found = []
            for sock in socks:
                row = self._known(sock)
                if row is None:
                    if listening is None:
                        listening = _listening(nl)
                    row = self._made_up(sock, listening)
                if not row.outgoing or covers(row.dst):
                    found.append((row, sock))
        return found

    def unasked(self) -> Generator[None, None, Found]:
        """Those that a program holds and that the worker does not know of. Raises OSError."""
        walked = yield from self.walk()
        unknown = [(row, sock) for row, sock in walked if sock.inode and self._known(sock) is None]
        if not unknown:
            return []
        ours = _own_inodes()  # admissions, and what waits for its hello
        under_way = {
            (each.app_cookie, each.peer, each.pport)
            for each in self.worker.outbound.attempts.values()
        }
        return [
            (row, sock)
            for row, sock in unknown
            if sock.inode not in ours and (sock.cookie, sock.dst, sock.dport) not in under_way
        ]

    def _known(self, sock: Sock) -> Row | None:
        """The row of *sock*. Shims name the cookies: one may have called a stranger's its own."""
        row = self.worker.table.rows.get(sock.cookie)
        if row is None or row.slim:
            return None
        if row.outgoing and (row.dst, row.dport) != (sock.dst, sock.dport):
            return None
        return row

    def _made_up(self, sock: Sock, listening: set[int]) -> Row:
        outgoing = not (
            sock.sport in listening
            or (self._is_ephemeral(sock.dport) and not self._is_ephemeral(sock.sport))
        )
        ours, theirs = (sock.src, sock.sport), (sock.dst, sock.dport)
        names = (*ours, *theirs) if outgoing else (*theirs, *ours)
        return Row(outgoing, False, wire.R_NO_ROUTER, *names, time.monotonic())

    def _is_ephemeral(self, port: int) -> bool:
        return self.low <= port <= self.high


def _listening(nl: socket.socket) -> set[int]:
    """Ports that have a TCP listener."""
    return {
        sock.sport
        for family in (socket.AF_INET, socket.AF_INET6)
        for sock in sockdiag.dump(nl, family, sockdiag.LISTEN)
    }


def _own_inodes() -> set[int]:
    """Of the sockets that this process holds."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
