# SPDX-License-Identifier: Apache-2.0
"""The worker's loop: what runs when, and what must not run any more."""

from __future__ import annotations

import os
import socket
import time

import pytest

from slim_router import loop as module
from slim_router.loop import IN, OUT, Loop


@pytest.fixture
def loop():
    made = Loop()
    # A loop that is not stopped by its test must not hang it.
    made.after(10, lambda: setattr(made, "running", False))
    yield made
    made.epoll.close()


@pytest.fixture
def pairs():
    made = [socket.socketpair() for _unused in range(3)]
    yield made
    for pair in made:
        for sock in pair:
            sock.close()


def stop(loop):
    loop.running = False


def test_a_handler_gets_the_events_it_asked_for(loop, pairs):
    (a, b), *_unused = pairs
    seen = []

    def writable(mask):
        seen.append(mask)
        loop.modify(a.fileno(), IN)
        b.send(b"x")
        loop.handlers[a.fileno()] = readable

    def readable(mask):
        seen.append(mask)
        stop(loop)

    loop.add(a.fileno(), OUT, writable)
    loop.run()
    assert seen == [OUT, IN]


def test_a_descriptor_that_is_removed_gets_no_event_of_the_same_pass(loop, pairs):
    """Both are readable at once; whichever comes first removes the other."""
    seen = []

    def handler(me, other):
        def handle(_mask):
            seen.append(me)
            loop.remove(other)
            loop.after(0.02, lambda: stop(loop))
            loop.remove(me)

        return handle

    (a, b), (c, d), _unused = pairs
    b.send(b"x")
    d.send(b"x")
    loop.add(a.fileno(), IN, handler(a.fileno(), c.fileno()))
    loop.add(c.fileno(), IN, handler(c.fileno(), a.fileno()))
    loop.run()
    assert len(seen) == 1


def test_a_number_used_again_gets_no_event_of_its_predecessor(loop, pairs):
    (a, b), (c, d), (quiet, _e) = pairs
    b.send(b"x")
    d.send(b"x")
    seen = []

    def replace(mine, other):
        def handle(_mask):
            if seen:
                return
            seen.append("old")
            loop.remove(mine)
            loop.remove(other)
            # dup2 puts a silent socket under the number whose event is still to come.
            os.dup2(quiet.fileno(), other)
            loop.add(other, IN, lambda _mask: seen.append("new"))
            loop.after(0.05, lambda: stop(loop))

        return handle

    loop.add(a.fileno(), IN, replace(a.fileno(), c.fileno()))
    loop.add(c.fileno(), IN, replace(c.fileno(), a.fileno()))
    loop.run()
    assert seen == ["old"]


def test_a_number_used_again_gets_its_own_events_in_the_next_pass(loop, pairs):
    (a, b), (c, d), (fresh, e) = pairs
    b.send(b"x")
    e.send(b"y")
    seen = []

    def first(_mask):
        loop.remove(c.fileno())
        os.dup2(fresh.fileno(), c.fileno())
        loop.add(c.fileno(), IN, second)
        loop.remove(a.fileno())

    def second(_mask):
        seen.append(os.read(c.fileno(), 1))
        stop(loop)

    loop.add(a.fileno(), IN, first)
    loop.add(c.fileno(), IN, lambda _mask: seen.append(b"old"))
    loop.run()
    assert seen == [b"y"]
    d.close()


def test_removing_twice_or_what_was_never_there_is_harmless(loop, pairs):
    (a, _unused), *_unused = pairs
    loop.add(a.fileno(), IN, lambda _mask: None)
    loop.remove(a.fileno())
    loop.remove(a.fileno())
    loop.remove(-1)


def test_timers_run_in_the_order_of_their_times_and_not_before(loop):
    seen = []
    began = time.monotonic()
    for delay in (0.03, 0.01, 0.02, 0.01):
        loop.after(delay, lambda delay=delay: seen.append((delay, time.monotonic() - began)))
    loop.after(0.04, lambda: stop(loop))
    loop.run()
    assert [delay for delay, _unused in seen] == [0.01, 0.01, 0.02, 0.03]
    assert all(at >= delay for delay, at in seen)


def test_a_cancelled_timer_does_not_run_not_even_if_it_is_due_already(loop):
    seen = []
    timers = []
    timers.append(loop.after(0.005, lambda: (seen.append(1), timers[1].cancel())))
    timers.append(loop.after(0.005, lambda: seen.append(2)))
    loop.after(0.02, lambda: stop(loop))
    time.sleep(0.01)
    loop.run()
    assert seen == [1]
    timers[0].cancel()  # harmless


def test_deferred_calls_run_after_everything_that_is_ready(loop, pairs):
    seen = []
    for index, (a, b) in enumerate(pairs):
        b.send(b"x")

        def handle(_mask, a=a, index=index):
            a.recv(1)
            if not seen:
                loop.next_pass(lambda: seen.append("deferred"))
                loop.next_pass(lambda: loop.next_pass(lambda: stop(loop)))
            seen.append(index)

        loop.add(a.fileno(), IN, handle)
    loop.run()
    assert sorted(seen[:3]) == [0, 1, 2]
    assert seen[3:] == ["deferred"]


def test_a_deferred_call_does_not_wait_for_an_event(loop):
    began = time.monotonic()
    loop.next_pass(lambda: stop(loop))
    loop.run()
    assert time.monotonic() - began < 5


def test_what_a_handler_raises_is_reported_and_the_loop_goes_on(loop, pairs, monkeypatch):
    reported = []
    monkeypatch.setattr(module.traceback, "print_exc", lambda **_: reported.append(1))
    (a, b), *_unused = pairs
    b.send(b"x")

    def handle(_mask):
        a.recv(1)
        loop.next_pass(lambda: 1 / 0)
        loop.after(0.001, lambda: {}[1])
        loop.after(0.02, lambda: stop(loop))
        raise RuntimeError("on purpose")

    loop.add(a.fileno(), IN, handle)
    loop.run()
    assert len(reported) == 3


def test_cancelled_timers_do_not_pile_up(loop):
    """An attempt that ends well cancels a timer of minutes: a thousand a second would stay."""
    for _unused in range(20 * module.SWEEP):
        loop.after(150, lambda: None).cancel()
    assert len(loop.timers) <= 2 * module.SWEEP + 3
    order = []
    for delay in (0.02, 0.01, 0.03):
        loop.after(delay, lambda delay=delay: order.append(delay))
    for _unused in range(4 * module.SWEEP):  # and what is due stays in order through a sweep
        loop.after(150, lambda: None).cancel()
    loop.after(0.05, lambda: stop(loop))
    loop.run()
    assert order == [0.01, 0.02, 0.03]


def test_a_timer_that_ran_may_be_cancelled(loop):
    timer = loop.after(0, lambda: None)
    loop.after(0.01, lambda: stop(loop))
    loop.run()
    timer.cancel()
    assert loop.cancelled == 0
