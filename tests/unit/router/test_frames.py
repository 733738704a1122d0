# SPDX-License-Identifier: Apache-2.0
"""Trunk frames: round trips, and nothing but FrameError for anything else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_router import frames
from slim_router.frames import (
    Announce,
    Answer,
    Bye,
    Decoder,
    FrameError,
    Idle,
    Open,
    Ping,
    Pong,
    Query,
    Withdraw,
)


def _text(limit: int, least: int = 1):
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=least).filter(
        lambda t: least <= len(t.encode()) <= limit
    )


U8, U16 = st.integers(0, 255), st.integers(0, 65535)
U64 = st.integers(0, 2**64 - 1)
ADDRESS = st.binary(min_size=16, max_size=16)
EIGHT = st.binary(min_size=8, max_size=8)
TENANT = _text(255)
FRAMES = st.one_of(
    st.builds(Open, st.integers(0, 2**32 - 1), st.binary(min_size=32, max_size=32), _text(253)),
    st.builds(
        Announce, TENANT, ADDRESS, st.integers(1, 65535), st.booleans(), st.integers(0, 2**32 - 1)
    ),
    st.builds(Withdraw, TENANT, ADDRESS, ADDRESS, U16),
    st.builds(Query, U64, TENANT, ADDRESS, U16, ADDRESS, U16),
    st.builds(Answer, U64, st.booleans()),
    st.builds(Ping, EIGHT),
    st.builds(Pong, EIGHT),
    st.builds(Bye, _text(1024, 0)),
    st.builds(Idle),
)
VIP = b"\0" * 10 + b"\xff\xff\x0a\x2c\x00\x01"
SAMPLES: list[frames.Frame] = [
    Open(7, b"k" * 32, "node1"),
    Announce("default", VIP, 20000, True, 77),
    Withdraw("default", VIP, VIP, 80),
    Query(9, "default", VIP, 40000, VIP, 80),
    Answer(9, True),
    Ping(b"12345678"),
    Pong(b"12345678"),
    Idle(),
    Bye("so long"),
]


@given(FRAMES)
def test_round_trip(frame):
    assert frames.decode(frames.encode(frame)) == frame


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_error_or_a_frame(raw):
    try:
        frame = frames.decode(raw)
    except FrameError:
        return
    assert frames.encode(frame) == raw


@given(U8, st.binary(max_size=700))
def test_any_body_is_a_frame_error_or_that_very_frame(kind, body):
    try:
        frame = frames.decode_body(kind, body)
    except FrameError:
        return
    assert frames.encode(frame)[frames.HEADER_SIZE :] == body


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda f: type(f).__name__)
def test_every_truncation_is_refused(frame):
    raw = frames.encode(frame)
    for size in range(len(raw)):
        with pytest.raises(FrameError):
            frames.decode(raw[:size])
    with pytest.raises(FrameError):
        frames.decode(raw + b"\0")


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda f: type(f).__name__)
def test_truncated_body_with_a_matching_length_is_refused(frame):
    raw = frames.encode(frame)
    kind, length = frames.decode_header(raw[: frames.HEADER_SIZE])
    for size in range(length):
        body = raw[frames.HEADER_SIZE : frames.HEADER_SIZE + size]
        try:
            other = frames.decode_body(kind, body)
        except FrameError:
            continue
        # Only a name or a reason has no length of its own.
        assert isinstance(other, (Open, Bye))


@pytest.mark.parametrize("frame", SAMPLES, ids=lambda f: type(f).__name__)
def test_every_bit_flip_is_refused_or_another_frame(frame):
    raw = frames.encode(frame)
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            other = frames.decode(bytes(flipped))
        except FrameError:
            continue
        assert other != frame
        assert frames.encode(other) == bytes(flipped)


def test_open_hides_its_key():
    assert "k" * 32 not in repr(Open(7, b"k" * 32, "node1"))
    assert "6b6b6b" not in repr(Open(7, b"k" * 32, "node1"))


@pytest.mark.parametrize(
    "frame",
    [
        Open(2**32, b"k" * 32, "n"),
        Open(1, b"short", "n"),
        Open(1, b"k" * 32, ""),
        Announce("", VIP, 1, True, 7),
        Announce("t" * 256, VIP, 1, True, 7),
        Announce("t", b"four", 1, True, 7),
        Announce("t", VIP, 1, True, 2**32),
        Withdraw("t", VIP, VIP, 65536),
        Ping(b"short"),
    ],
)
def test_what_no_decoder_accepts_is_not_encoded(frame):
    with pytest.raises(FrameError):
        frames.encode(frame)


def test_a_long_reason_is_cut_between_characters():
    frame = frames.decode(frames.encode(Bye("é" * 2000)))
    assert isinstance(frame, Bye)
    assert frame.reason == "é" * 512


@settings(max_examples=50)
@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_decoder_cuts_any_chunking(batch, sizes):
    stream = b"".join(map(frames.encode, batch))
    decoder, found, at, turn = Decoder(), [], 0, 0
    decoder.open_only = False
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        turn += 1
        decoder.feed(stream[at : at + size])
        at += size
        while (frame := decoder.next()) is not None:
            found.append(frame)
    assert found == batch


def test_decoder_takes_only_open_first():
    for frame in SAMPLES[1:-1]:
        decoder = Decoder()
        decoder.feed(frames.encode(frame)[: frames.HEADER_SIZE])
        with pytest.raises(FrameError, match="not OPEN"):
            decoder.next()
    decoder = Decoder()
    decoder.feed(frames.HEADER.pack(frames.MAGIC, 1, frames.OPEN, 60000))
    with pytest.raises(FrameError):
        decoder.next()


def test_decoder_refuses_a_body_that_is_too_long_before_it_arrives():
    decoder = Decoder()
    decoder.open_only = False
    decoder.feed(frames.HEADER.pack(frames.MAGIC, 1, frames.QUERY, frames.BODY_MAX + 1))
    with pytest.raises(FrameError, match="body"):
        decoder.next()


def test_another_version_is_named():
    raw = frames.HEADER.pack(frames.MAGIC, 2, frames.PING, 8) + bytes(8)
    with pytest.raises(FrameError, match="version 2"):
        frames.decode(raw)
