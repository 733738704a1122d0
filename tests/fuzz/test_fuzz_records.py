# SPDX-License-Identifier: Apache-2.0
"""Decoders of hello, ack, commit and of trunk frames: whatever comes in, the answer is
the record itself or the decoder's own error, never another exception."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

from slim_router import frames, wire
from tests.fuzz.fuzzing import generator, mutate, runs

KEY = b"k" * 32


def test_hello() -> None:
    rng = generator("hello")
    mac = wire.keyed_mac(KEY)
    accepted = 0
    for _unused in range(runs(20_000)):
        kind = rng.choice((wire.K_DELIVER, wire.K_PREPARE))
        good = wire.hello(
            mac, kind, rng.getrandbits(32), rng.getrandbits(64), rng.randbytes(16),
            rng.randbytes(16), rng.randint(1, 65535), rng.randint(1, 65535),
        )  # fmt: skip
        parsed = wire.parse_hello(good)
        assert parsed[0] == kind
        assert wire.mac_of(mac, good[:64]) == good[64:]
        bad = mutate(rng, good)
        with contextlib.suppress(wire.WireError):
            wire.parse_hello(bad)
            if bad != good:
                # It may still read as a hello; then its MAC must not fit.
                assert wire.mac_of(mac, bad[:64]) != bad[64:]
            accepted += 1
        with contextlib.suppress(wire.WireError):
            wire.parse_hello(rng.randbytes(rng.choice((0, 1, 79, 80, 81, 200))))
    assert accepted, "every mutation broke the layout: the fuzzer does not reach the MAC"


def test_ack_and_commit() -> None:
    rng = generator("ack")
    mac, other = wire.keyed_mac(KEY), wire.keyed_mac(b"o" * 32)
    for _unused in range(runs(20_000)):
        nonce = rng.getrandbits(64)
        ack = wire.ack(mac, rng.randrange(12), rng.getrandbits(32), nonce)
        commit = wire.commit(mac, rng.choice((wire.C_DELIVER, wire.C_RENEW)), nonce)
        assert wire.parse_ack(mac, ack, nonce)
        assert wire.parse_commit(mac, commit, nonce)
        for parse, good in ((wire.parse_ack, ack), (wire.parse_commit, commit)):
            for raw, key, number in (
                (mutate(rng, good), mac, nonce),
                (good, other, nonce),
                (good, mac, nonce ^ 1 << rng.randrange(64)),
                (rng.randbytes(len(good)), mac, nonce),
            ):
                try:
                    parse(key, raw, number)
                except wire.WireError:
                    continue
                assert raw == good and key is mac and number == nonce


def _frame(rng: random.Random) -> frames.Frame:
    tenant = "t" * rng.randint(1, 20)
    a, b = rng.randbytes(16), rng.randbytes(16)
    port = rng.randint(1, 65535)
    return rng.choice(
        (
            frames.Announce(tenant, a, port, rng.random() < 0.5, rng.getrandbits(32)),
            frames.Announce(tenant, a, port, rng.random() < 0.5, 7, 1 + rng.getrandbits(63)),
            frames.Withdraw(tenant, a, b, port),
            frames.Query(rng.getrandbits(64), tenant, a, port, b, port),
            frames.Answer(rng.getrandbits(64), rng.random() < 0.5),
            frames.Ping(rng.randbytes(8)),
            frames.Pong(rng.randbytes(8)),
            frames.Bye("words"),
        )
    )


def test_trunk_frames() -> None:
    rng = generator("frames")
    for _unused in range(runs(5_000)):
        sent = [_frame(rng) for _unused in range(rng.randint(1, 6))]
        stream = b"".join(map(frames.encode, sent))
        for raw in (stream, mutate(rng, stream)):
            decoder = frames.Decoder()
            decoder.open_only = False
            got: list[frames.Frame] = []
            at = 0
            try:
                while at < len(raw):
                    size = rng.randint(1, 64)
                    decoder.feed(raw[at : at + size])
                    at += size
                    got.extend(_drain(decoder))
            except frames.FrameError:
                continue
            if raw == stream:
                assert got == sent


def _drain(decoder: frames.Decoder) -> Iterator[frames.Frame]:
    while (frame := decoder.next()) is not None:
        yield frame
