# SPDX-License-Identifier: Apache-2.0
"""Statistics of interleaved rounds."""

import pytest

from bench.model import Metric, Series
from bench.stats import Spread, median, percentile, ratios


def test_median_of_odd_and_even_numbers():
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5


def test_median_of_nothing_is_refused():
    with pytest.raises(ValueError):
        median([])


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (50, 50), (99, 99), (99.1, 100), (100, 100)]
)
def test_percentile_is_one_of_the_values(percent, expected):
    assert percentile(list(range(100, 0, -1)), percent) == expected


@pytest.mark.parametrize("percent", [-1, 101])
def test_percentile_out_of_range_is_refused(percent):
    with pytest.raises(ValueError):
        percentile([1.0], percent)


def test_ratios_are_taken_within_a_round():
    # The second round was disturbed as a whole: its ratio is that of the others.
    rounds = [{"slim": 10.0, "host": 20.0}, {"slim": 1.0, "host": 2.0}, {"slim": 9.0}]
    assert ratios(rounds, "slim", "host") == [0.5, 0.5]


def test_ratio_to_zero_is_left_out():
    assert ratios([{"slim": 0.0, "host": 0.0}], "slim", "host") == []


def test_series_without_rounds_has_no_spread():
    series = Series("x", "X", "micro", "across", "one", "", Metric("m", "M", "s", "lower"))
    assert series.spread("slim") is None
    assert series.ratio("slim", "host") is None


def test_spread_holds_the_range():
    assert Spread.of([5.0, 1.0, 3.0]) == Spread(3.0, 1.0, 5.0, 3)
