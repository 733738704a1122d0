# SPDX-License-Identifier: Apache-2.0
"""Ends live connections that the site's own filters have come to forbid. Runs in workers.

Only where the site asks for it (``filters_s``): a host connection does not pass the
filters of the overlay again once it is up. The connecting side proves the pairs of its
live connections anew, over the overlay, as it renews a lease; the accepting side ends
those of a pair that has not been proven for so long. Longer than a fallback takes to be
restarted: silence does not say whose fault it is.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Worker

ORDER = -1
"""Nobody waits for what is revoked here."""


class Filters:
    """One endpoint's; both directions."""

    def __init__(self, worker: Worker, patience_s: float) -> None:
        """*patience_s*: how long a live connection outlives the last proof."""
        self.worker = worker
        self.patience_s = patience_s
        self.proven: dict[tuple[bytes, int], float] = {}  # (source, our port): when, monotonic
        self._began = time.monotonic()  # a predecessor's proofs are not known
        self._later()

    def admitted(self, src: bytes, dport: int) -> None:
        """The overlay has just carried a connection of *src* to our port *dport*."""
        self.proven[(src, dport)] = time.monotonic()

    def _later(self) -> None:
        pause = self.worker.bounds["lease_s"] / 2 * random.uniform(0.8, 1.2)
        self.worker.loop.after(pause, self._look)

    def _look(self) -> None:
        self._prove()
        self._judge()
        self._later()

    def _prove(self) -> None:
        rows = self.worker.table.rows.values()
        for peer, port in {(row.dst, row.dport) for row in rows if row.outgoing and row.slim}:
            self.worker.outbound.prove(peer, port)

    def _judge(self) -> None:
        limit = time.monotonic() - self.patience_s
        pairs, doomed = set(), []
        for cookie, row in self.worker.table.rows.items():
            if row.outgoing or not row.slim:
                continue
            pair = (row.src, row.dport)
            pairs.add(pair)
            last = max(self.proven.get(pair, self._began), row.since, self._began)
            if last < limit and self._accepts(row.dport):
                doomed.append(cookie)
        self.proven = {pair: when for pair, when in self.proven.items() if pair in pairs}
        if doomed:
            self.worker.counters["ended_by_filters"] += len(doomed)
            self.worker.gate.revoke(ORDER, doomed)

    def _accepts(self, port: int) -> bool:
        """Could a proof come at all? Not where nobody listens or the backlog is full."""
        listeners = self.worker.listeners.by_port.get(port, ())
        return any(not listener.paused for listener in listeners)
