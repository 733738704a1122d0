# SPDX-License-Identifier: Apache-2.0
"""Policies, their file and a worker's pieces of them, bent out of shape: each is refused with
its own error, or means the same after it was written and read again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from slim_router import policy
from slim_router.matcher import Table
from slim_router.policystore import CLOSED, PolicyStore
from slim_router.reader import ConfigError
from slim_router.row import Row
from slim_router.rowfile import RowFile
from slim_router.slices import Assembler, PieceError, Slicer
from slim_router.wire import pack_addr
from tests.fuzz.fuzzing import bend, generator, mutate, runs

VIP = pack_addr("10.44.0.1")
POLICY: dict[str, Any] = {
    "version": 1, "revision": 3, "default": "deny",
    "rules": [
        {"id": "web", "action": "allow", "sources": ["10.44.0.0/24", "fd44::/64"],
         "destinations": ["10.44.0.1"], "ports": [80, "8000-8100"], "comment": "the shop"},
        {"id": "out", "action": "deny", "sources": ["::ffff:10.44.0.1"], "tenant": "blue"},
        {"id": "rest", "action": "allow", "ports": [443]},
    ],
}  # fmt: skip


def test_policies() -> None:
    rng = generator("policy")
    policy.parse(POLICY)
    refused = 0
    for _unused in range(runs(4_000)):
        value = POLICY
        for _unused in range(rng.randint(1, 3)):
            value = bend(rng, value)
        try:
            made = policy.parse(value)
        except ConfigError as error:
            assert str(error), "an error without words"
            refused += 1
            continue
        again = policy.parse(policy.dump(made))
        assert again.same_as(made)
        assert policy.dump(again) == policy.dump(made)
    assert refused


def test_the_file(tmp_path: Path) -> None:
    rng = generator("policy file")
    path = tmp_path / "policy.json"
    store = PolicyStore(path)
    store.save(policy.parse(POLICY))
    good = path.read_bytes()
    for _unused in range(runs(1_500)):
        path.write_bytes(mutate(rng, good))
        loaded = store.load()
        assert loaded == CLOSED if store.cause else loaded != CLOSED, path.read_bytes()


def test_pieces() -> None:
    rng = generator("pieces")
    good = [json.loads(piece) for piece in Slicer(policy.parse(POLICY)).pieces("default", VIP)]
    whole = 0
    for _unused in range(runs(4_000)):
        assembler, made = Assembler(), None
        pieces = [bend(rng, piece) if rng.random() < 0.7 else piece for piece in good]
        for piece in pieces:
            try:
                made = assembler.feed(piece)
            except PieceError as error:
                assert str(error)
        if made is not None:
            whole += 1
            for side in (made.egress, made.ingress):
                Table(side, made.default).decide(VIP, 80)
        # Whatever came before, a good list is taken.
        for piece in good:
            made = assembler.feed(piece)
        assert made is not None
    assert whole


def test_kept_rows(tmp_path: Path) -> None:
    rng = generator("rows")
    path = tmp_path / "rows"

    def opened() -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    file = RowFile(opened())
    assert not dict(file.load())
    for cookie in range(40):
        file.put(cookie, Row(True, cookie % 2 == 0, 0, VIP, cookie, VIP, 80, 1.0))
    file.close()
    good = path.read_bytes()
    for _unused in range(runs(1_500)):
        path.write_bytes(mutate(rng, good))
        file = RowFile(opened())
        rows = dict(file.load())
        assert len(rows) <= len(good) // 64 + 96
        assert file.put(1 << 63, Row(False, True, 0, VIP, 1, VIP, 2, 3.0))
        file.close()
