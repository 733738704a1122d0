# SPDX-License-Identifier: Apache-2.0
"""What the fuzzers share: how often, and from which seed.

SLIM_FUZZ_RUNS   multiplies every fuzzer's number of iterations (default 1)
SLIM_FUZZ_SEED   repeats a run; the seed is printed, and pytest shows it on failure
"""

from __future__ import annotations

import copy
import os
import random
from typing import Any


def runs(base: int) -> int:
    """Iterations for a fuzzer that makes `base` of them in the gate."""
    return base * max(1, int(os.environ.get("SLIM_FUZZ_RUNS") or 1))


def generator(name: str) -> random.Random:
    """A random generator for the fuzzer `name`; prints its seed."""
    seed = int(os.environ.get("SLIM_FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{name}: SLIM_FUZZ_SEED={seed} SLIM_FUZZ_RUNS={os.environ.get('SLIM_FUZZ_RUNS', '1')}")
    return random.Random(f"{name}/{seed}")


def mutate(rng: random.Random, raw: bytes) -> bytes:
    """`raw` after one to four changes: flips, cuts, insertions, repeats, magic numbers."""
    out = bytearray(raw)
    for _unused in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 40))
            case 3 if out:
                out[at % len(out)] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF))
            case 4:
                out += out[: rng.randint(0, 96)]
            case 5:
                size = rng.choice((1, 2, 4, 8))
                value = rng.choice((0, 1, (1 << 8 * size) - 1, 1 << (8 * size - 1)))
                out[at : at + size] = value.to_bytes(size, "little")
            case _:
                out[at : at + 4] = rng.randbytes(4)
    return bytes(out)


ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1 << 70, 1.5, "", "x" * 5000, "\ud800", "0.0.0.0", "::", "::1", "10.44.0.1/99",
    "999.1.1.1", [], [None], {}, {"": ""}, [[[[[[]]]]]], "node1", [1, 0], "/" * 200, "a\0b",
)  # fmt: skip


def bend(rng, value: Any) -> Any:
    """One change somewhere inside a JSON value."""
    spots: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            spots.extend((node, key) for key in node)
            for each in list(node.values()):
                walk(each)
        elif isinstance(node, list):
            spots.extend((node, at) for at in range(len(node)))
            for each in node:
                walk(each)

    out = copy.deepcopy(value)
    walk(out)
    where, key = rng.choice(spots)
    match rng.randrange(4):
        case 0:
            del where[key]
        case 1 if isinstance(where, dict):
            where[rng.choice(("extra", "", "vip", "x" * 300))] = rng.choice(ODD)
        case 2 if isinstance(where, list):
            where.append(copy.deepcopy(rng.choice(where)))
        case _:
            where[key] = rng.choice(ODD)
    return out
