# SPDX-License-Identifier: Apache-2.0
"""Takes connections away from everybody who holds them. Runs in workers.

Host sockets first, those of the overlay after them. In secure mode the backend does
what it can for the host's; SOCK_DESTROY (sock_diag(7)) aborts whatever lives then:
every copy of the descriptor answers ECONNABORTED, the peer sees a reset, and a
connection that nobody has accepted yet dies in its queue.

    host connections whose names are known (rowfile.py): ask for their figures and abort
    them, a batch a pass
    the others, and those that have not been found by name:
        ask the kernel for all its sockets, a datagram (32 KiB) a pass
        -> abort those that are meant, a batch a pass
        -> ask again: a walk through the kernel's table misses some while it changes
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from . import sockdiag
from .row import Row

if TYPE_CHECKING:
    from .worker import Worker

ROUNDS = 4  # times that the kernel is asked for what should be dead
TAKEN_AT_ONCE = 1024
"""Sockets that one call of the backend takes: the module walks through all processes for
each, and takes as many in one write (secure.BATCH)."""

Seen = Callable[[int, Row, sockdiag.Sock], bool]
"""Told of each socket before it is aborted; False spares it."""


class Revoker:
    """One revocation, in steps on the worker's loop."""

    def __init__(
        self, worker: Worker, rows: Mapping[int, Row], seen: Seen, done: Callable[[str], None]
    ) -> None:
        """*rows* by cookie. *done* is called with "", or with what went wrong."""
        self.worker = worker
        self._rows = rows
        self._seen = seen
        self._done = done
        self._cause = ""

    def start(self) -> None:
        """Begin now, go on with the passes of the loop."""
        self.worker.loop.in_steps(self._all(), lambda _none: self._done(self._cause))

    def _all(self) -> Generator[None, None, None]:
        host = {cookie for cookie, row in self._rows.items() if row.slim}
        overlay = {cookie for cookie, row in self._rows.items() if not row.slim}
        if host:
            yield from self._by_backend(host)
            yield from self._by_kernel(0, host)
        if overlay:
            yield from self._by_kernel(1, overlay)

    def _by_backend(self, cookies: set[int]) -> Generator[None, None, None]:
        backend = self.worker.backend
        if backend is None:
            return
        wanted = list(cookies)
        try:  # the kernel's figures are gone with the socket: look before
            yield from self._look(0, cookies)
        except OSError as error:
            self._cause = f"sock_diag: {error.strerror or error}"
        for start in range(0, len(wanted), TAKEN_AT_ONCE):
            try:
                backend.revoke(wanted[start : start + TAKEN_AT_ONCE])
            except OSError as error:  # SOCK_DESTROY is still to come
                self.worker.count("revoke_backend_failed")
                self._cause = f"secure mode {backend.mode}: {error}"
            yield

    def _look(self, place: int, cookies: set[int]) -> Generator[None, None, None]:
        with self.worker.open_diag(place) as nl:
            cookies = set(cookies)
            for family, batch in self._named(cookies):
                for sock, _unused in sockdiag.ask(nl, family, batch):
                    cookies.discard(sock.cookie)
                    self._seen(sock.cookie, self._rows[sock.cookie], sock)
                yield
            for family in (socket.AF_INET, socket.AF_INET6):
                for found in sockdiag.hunt(nl, family, cookies):
                    for sock, _unused in found:
                        self._seen(sock.cookie, self._rows[sock.cookie], sock)
                    yield

    def _by_kernel(self, place: int, cookies: set[int]) -> Generator[None, None, None]:
        """*place*: 0 the host's namespace, 1 the endpoint's."""
        try:
            with self.worker.open_diag(place) as nl:
                cookies = cookies - (yield from self._by_name(nl, cookies))
                for _unused in range(ROUNDS if cookies else 0):
                    if not (yield from self._round(nl, cookies)):
                        break
        except OSError as error:
            self.worker.count("revoke_failed")
            self._cause = f"sock_diag: {error.strerror or error}"

    def _named(self, cookies: Iterable[int]) -> Iterator[tuple[int, list[bytes]]]:
        """Batches of those whose names are known: address family, and the kernel's names."""
        names: dict[int, list[bytes]] = {}
        for cookie in cookies:
            known = self.worker.table.name(cookie)
            if known is not None:
                family, name = sockdiag.named(known, cookie)
                names.setdefault(family, []).append(name)
        for family, those in names.items():
            for start in range(0, len(those), sockdiag.REQUESTS):
                yield family, those[start : start + sockdiag.REQUESTS]

    def _by_name(self, nl: socket.socket, cookies: set[int]) -> Generator[None, None, set[int]]:
        """Abort those that are found by their names: which those were."""
        found: set[int] = set()
        for family, batch in self._named(cookies):
            names = []
            for sock, name in sockdiag.ask(nl, family, batch):
                found.add(sock.cookie)
                if self._seen(sock.cookie, self._rows[sock.cookie], sock):
                    names.append(name)
            self._abort(nl, family, names)
            yield
        return found

    def _round(self, nl: socket.socket, cookies: set[int]) -> Generator[None, None, int]:
        """Abort what lives; how many those were."""
        aborted = 0
        for family in (socket.AF_INET, socket.AF_INET6):
            names: list[bytes] = []
            for found in sockdiag.hunt(nl, family, cookies):
                for sock, name in found:
                    if self._seen(sock.cookie, self._rows[sock.cookie], sock):
                        names.append(name)
                yield
            for start in range(0, len(names), sockdiag.REQUESTS):
                self._abort(nl, family, names[start : start + sockdiag.REQUESTS])
                yield
            aborted += len(names)
        return aborted

    @staticmethod
    def _abort(nl: socket.socket, family: int, names: list[bytes]) -> None:
        if names and (code := sockdiag.destroy(nl, family, names)):
            raise OSError(code, _explain(code))


def _explain(code: int) -> str:
    if code == errno.EOPNOTSUPP:
        return "the kernel has no SOCK_DESTROY; build it with CONFIG_INET_DIAG_DESTROY"
    return f"SOCK_DESTROY: {os.strerror(code)}"
