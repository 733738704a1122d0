# SPDX-License-Identifier: Apache-2.0
"""A token bucket: how often something may happen."""

from __future__ import annotations

import time


class Bucket:
    """At most *burst* at once and *rate* a second in the long run."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = time.monotonic()

    def _fill(self) -> None:
        now = time.monotonic()
        self._tokens = min(self.burst, self._tokens + (now - self._at) * self.rate)
        self._at = now

    def take(self) -> bool:
        """True if it may happen now; counts it."""
        if self._tokens < 1.0:
            self._fill()
            if self._tokens < 1.0:
                return False
        self._tokens -= 1.0
        return True
