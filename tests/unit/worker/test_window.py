# SPDX-License-Identifier: Apache-2.0
"""The window of nonces under one pair key: each is good once, if it is not too old."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from slim_router.peers import WINDOW, Location, Pair
from slim_router.wire import keyed_mac


def pair(*nonces: int) -> Pair:
    made = Pair(keyed_mac(b"k" * 32))
    for nonce in nonces:
        assert made.fresh(nonce)
    return made


class Model:
    """The same, said plainly."""

    def __init__(self):
        self.top, self.seen = 0, set()

    def fresh(self, nonce):
        if nonce in self.seen or nonce <= self.top - WINDOW:
            return False
        self.seen.add(nonce)
        self.top = max(self.top, nonce)
        return True


NEAR = st.integers(0, 40)
FAR = st.integers(0, 2**64 - 1)
EDGE = st.integers(-3, 3).map(lambda n: WINDOW + n)


@settings(max_examples=300)
@given(st.lists(st.one_of(NEAR, FAR, EDGE, EDGE.map(lambda n: 2 * n)), max_size=60))
def test_like_the_model(nonces):
    real, model = pair(), Model()
    for nonce in nonces:
        assert real.fresh(nonce) == model.fresh(nonce), nonce
        assert real.seen.bit_length() <= WINDOW


@settings(max_examples=100)
@given(
    st.integers(WINDOW, 2**63),
    st.lists(st.integers(-WINDOW - 2, WINDOW + 2), min_size=1, max_size=60),
)
def test_like_the_model_around_a_clock(start, steps):
    real, model = pair(), Model()
    for step in (0, *steps):
        assert real.fresh(start + step) == model.fresh(start + step), step


def test_a_replay_is_refused_for_ever():
    made = pair(1000, 1001, 999)
    for _unused in range(3):
        assert not any(made.fresh(nonce) for nonce in (999, 1000, 1001))
    assert made.fresh(10**15)
    assert not any(made.fresh(nonce) for nonce in (999, 1000, 1001))


def test_the_last_of_the_window_is_taken_and_the_one_before_is_not():
    top = 10 * WINDOW
    assert pair(top).fresh(top - WINDOW + 1)
    assert not pair(top).fresh(top - WINDOW)


def test_a_hole_stays_open_while_the_window_moves_over_it():
    made = pair(100, 102)
    assert pair(100, 102, 101 + WINDOW).fresh(102 + 1)
    assert made.fresh(101)
    assert not made.fresh(101)
    made = pair(100, 102, 100 + WINDOW)
    assert made.fresh(101)
    made = pair(100, 102, 101 + WINDOW)
    assert not made.fresh(101)


def test_a_location_made_later_starts_ahead_of_the_nonces_of_an_earlier_one():
    """A worker that starts anew goes on under the same key."""
    first = Location(bytes(16), True, 0)
    used = [first.next_nonce() for _unused in range(50)]
    assert used == sorted(set(used))
    import time

    time.sleep(0.001)
    assert Location(bytes(16), True, 0).next_nonce() > used[-1]
