# SPDX-License-Identifier: Apache-2.0
"""Statistics of interleaved rounds: medians, nearest-rank percentiles, ratios round by round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


def median(values: Sequence[float]) -> float:
    """Middle value; the mean of the two middle ones if their number is even.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("median of no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile (0 to 100): always one of the values.

    Raises:
        ValueError: there are no values, or percent is out of range.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    rank = max(1, math.ceil(percent / 100 * len(values)))
    return sorted(values)[rank - 1]


@dataclass(frozen=True)
class Spread:
    """Median of some numbers and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Spread of the values, or None if there are none."""
        if not values:
            return None
        return cls(median(values), min(values), max(values), len(values))


def ratios(rounds: Sequence[Mapping[str, float]], above: str, below: str) -> list[float]:
    """Quotient of two modes in each round that has both.

    A disturbance that lasts longer than a round hits both modes of the round, so
    the quotient within a round is steadier than the quotient of two medians.
    """
    return [
        one[above] / one[below]
        for one in rounds
        if above in one and below in one and one[below] != 0
    ]
