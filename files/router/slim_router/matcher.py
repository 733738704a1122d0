# SPDX-License-Identifier: Apache-2.0
"""Judging one connection by thousands of rules, as fast as by a few. Runs in workers.

A :class:`Side` holds the rules that can concern one endpoint in one direction; of
those only the peer's address and the destination port are still open. A
:class:`Table` is made of it:

    address -> segment -> block -> cell -> winner            (two or three bisections)
                            |
                            +-> the block above it           (rarely)

The different prefixes nest, so that their first and last addresses cut the line
of addresses into segments, each of which lies in the same prefixes. A segment has
a block: the line of ports cut into cells, each with the first rule that wins it.
Normally the rules of all prefixes around the segment are worked into its block.
Where that would take too much room (5,000 hosts with a rule each, inside a prefix
with 5,000 rules), the block holds those of the inner prefixes only and names the
block that goes on. That is looked at if a rule there may come first; a map of all
ports says for which of them one may (128 KiB, only where there are such blocks).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from . import prefix
from .prefix import Prefix

NONE = 0xFFFF
"""Instead of a rule's position: nobody wins this cell."""

CELLS_MAX = 1 << 18
"""Cells, of 4 bytes, that a table may have beyond those that every rule needs."""

BREATH = 128
"""Prefixes between two yields of the compiler: a few milliseconds at most."""

_ENOUGH = 512  # cells after which a merge is a breath of its own
_PLANS = (
    (1 << 40, 0),
    *((share, limit) for limit in (64, 16) for share in (64, 16, 4, 1)),
    *((0, limit) for limit in (8192, 4096, 2048, 1024, 256, 64, 16, 4)),
)
"""(share, limit) of :func:`_plan`, the first of which joins everything."""
_LAST = (1 << 128) - 1
_HALVES = struct.Struct(">QQ")

Made = TypeVar("Made")

Verdict = tuple[bool, int]
"""(allowed, index of the deciding rule in the policy, or -1 for its default)."""


def finish(steps: Generator[None, None, Made]) -> Made:
    """What *steps* return, without stopping between them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Made = end.value
            return made


class Side:
    """The rules of one direction, in their order, compact: most have a prefix and a port.

    A rule's place here is its *position*, its place in the policy its *index*.
    """

    __slots__ = ("allows", "anywhere", "ids", "incidences", "indexes", "ports", "_known")
    _SAID = __slots__[:-1]

    def __init__(self) -> None:
        self.indexes = array("I")
        self.allows = bytearray()
        self.ids: list[str] = []
        self.ports: list[tuple[int, ...]] = []  # first, last, first, last ...; () is any
        self.anywhere = array("H")  # positions of the rules about any peer
        # first address << 24 | length << 16 | position. When sorted, a prefix comes before
        # those inside it, and the rules of one prefix come in their order.
        self.incidences: list[int] = []
        self._known: dict[tuple[int, ...], tuple[int, ...]] = {}  # ports, once each

    def __len__(self) -> int:
        return len(self.indexes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Side) and all(
            getattr(self, name) == getattr(other, name) for name in self._SAID
        )

    def add(
        self, index: int, allows: bool, name: str, peers: Iterable[Prefix], ports: Sequence[int]
    ) -> None:
        """The next rule. No *peers*: any; *ports*: first, last, first, last ..., none: any.

        Raises ValueError for a rule out of order, and one too many.
        """
        position = len(self.indexes)
        if position >= NONE:
            raise ValueError(f"more than {NONE} rules")
        if position and index <= self.indexes[-1]:
            raise ValueError(f"rule {index} after rule {self.indexes[-1]}")
        self.indexes.append(index)
        self.allows.append(allows)
        self.ids.append(name)
        flat = tuple(ports)
        self.ports.append(self._known.setdefault(flat, flat))
        before = len(self.incidences)
        for first, length in peers:
            self.incidences.append(first << 24 | length << 16 | position)
        if len(self.incidences) == before:
            self.anywhere.append(position)


class Nest:
    """How prefixes lie inside each other. Node 0 is everything; the others come in the
    order of *keys* (first address << 8 | length), that is after those around them."""

    __slots__ = ("parents", "starts", "owners")

    def __init__(self) -> None:
        self.parents = array("I", [0])
        self.starts = [0]  # first address of each segment
        self.owners = array("I", [0])  # the innermost node around it

    @classmethod
    def of(cls, keys: Sequence[int]) -> Generator[None, None, Nest]:
        """The nest of sorted, different *keys*; yields now and then."""
        made = cls()
        ends, nodes = [_LAST], [0]  # of the prefixes that are open
        for node, key in enumerate(keys, 1):
            first, length = key >> 8, key & 0xFF
            while ends[-1] < first:
                made._cut(ends.pop() + 1, nodes[-2])
                nodes.pop()
            last = first | (1 << 128 - length) - 1
            if first == prefix.MAPPED and length == prefix.V4.length:
                made.parents.append(0)  # IPv4 is in no IPv6 prefix
            else:
                made.parents.append(nodes[-1])
            made._cut(first, node)
            ends.append(last)
            nodes.append(node)
            if node % BREATH == 0:
                yield
        while len(ends) > 1:
            made._cut(ends.pop() + 1, nodes[-2])
            nodes.pop()
        return made

    def _cut(self, start: int, node: int) -> None:
        """From *start* on we are in *node*."""
        if start == self.starts[-1]:
            self.owners[-1] = node
        elif start <= _LAST:
            self.starts.append(start)
            self.owners.append(node)

    def chain(self, address: int) -> list[int]:
        """The nodes around *address*, the innermost first, without node 0."""
        node = self.owners[bisect_right(self.starts, address) - 1]
        found = []
        while node:
            found.append(node)
            node = self.parents[node]
        return found


V4_KEY = prefix.MAPPED << 8 | prefix.V4.length


def nodes_of(
    incidences: Iterable[int],
) -> Generator[None, None, tuple[list[int], list[tuple[int, ...]]]]:
    """Keys for :class:`Nest` and, for each node, node 0 included, the positions of its rules.

    Yields now and then. IPv4 as a whole is always a node: it cuts the IPv6 prefixes off that
    lie around it on the line of addresses.
    """
    keys: list[int] = []
    owned: list[tuple[int, ...]] = [()]
    lacking = True
    ordered = sorted(incidences)
    yield
    for key, group in groupby(ordered, key=lambda incidence: incidence >> 16):
        if lacking and key >= V4_KEY:
            lacking = False
            if key > V4_KEY:
                keys.append(V4_KEY)
                owned.append(())
        keys.append(key)
        owned.append(tuple([incidence & NONE for incidence in group]))
        if len(keys) % (4 * BREATH) == 0:
            yield
    if lacking:
        keys.append(V4_KEY)
        owned.append(())
    return keys, owned


class Table:
    """A :class:`Side`, compiled. It never changes."""

    __slots__ = (
        "_above", "_allows", "_blocks", "_default", "_firsts", "_highs", "_indexes", "_lows",
        "_owners",
    )  # fmt: skip

    def __init__(self, side: Side, default: bool) -> None:
        """All at once; *default* says whether what no rule matches is allowed."""
        finish(self._build(side, default))

    @classmethod
    def compiling(cls, side: Side, default: bool) -> Generator[None, None, Table]:
        """The same in steps, for a loop that has other work: yields now and then, and
        returns the table. *side* must not change meanwhile."""
        made = cls.__new__(cls)
        yield from made._build(side, default)
        return made

    def decide(self, peer: bytes, dport: int) -> Verdict:
        """Judge a connection with *peer* (16 bytes, IPv4 mapped) to port *dport*."""
        high, low = _HALVES.unpack(peer)
        firsts = self._firsts
        group = bisect_right(self._highs, high) - 1
        if self._highs[group] == high:
            segment = bisect_right(self._lows, low, firsts[group], firsts[group + 1]) - 1
        else:
            segment = firsts[group + 1] - 1
        block = self._owners[segment]
        blocks, wanted = self._blocks, dport << 16 | NONE
        head = blocks[block]
        best = blocks[bisect_right(blocks, wanted, block + 2, block + 3 + (head >> 16)) - 1] & NONE
        while head & NONE < best and self._above[dport] < best:
            block = blocks[block + 1]
            head = blocks[block]
            found = bisect_right(blocks, wanted, block + 2, block + 3 + (head >> 16)) - 1
            there = blocks[found] & NONE
            if there < best:
                best = there
        if best == NONE:
            return self._default
        return self._allows[best] == 1, self._indexes[best]

    @property
    def size(self) -> int:
        """Bytes that the table takes, about."""
        taken = (
            self._highs, self._firsts, self._lows, self._owners, self._blocks, self._above,
            self._indexes,
        )  # fmt: skip
        return sum(len(each) * each.itemsize for each in taken) + len(self._allows)

    @property
    def depth(self) -> int:
        """Blocks that a decision looks at, at most."""
        depths = {0: 0}
        for block in self._every_block():
            depths[block] = depths[self._blocks[block + 1]] + 1
        return max(depths.values())

    def _every_block(self) -> Iterator[int]:
        """Where each block begins but the first, those above others before them."""
        block = 3
        while block < len(self._blocks):
            yield block
            block += 3 + (self._blocks[block] >> 16)

    # --- making one -------------------------------------------------------------

    def _build(self, side: Side, default: bool) -> Generator[None, None, None]:
        # Segments: the high halves of their first addresses, once each, and where the low
        # halves of each begin. The segments of a high half lie side by side.
        self._highs = array("Q", [0])
        self._firsts = array("I", [0])
        self._lows = array("Q")
        self._owners = array("I")  # where the block of each segment begins
        # Blocks, one behind the other: number of cells less one << 16 | the first rule of
        # those above; where the one above begins; the cells, first port << 16 | position.
        # The first block is that of nobody's rules, above all others.
        self._blocks = array("I", [NONE, 0, NONE])
        # Of each port, the first rule of all blocks that are above others.
        self._above = array("H")
        # Rules by position.
        self._indexes = array("I", side.indexes)
        self._allows = bytes(side.allows)
        self._default: Verdict = (default, -1)

        keys, owned = yield from nodes_of(side.incidences)
        owned[0] = tuple(side.anywhere)
        nest = yield from Nest.of(keys)
        del keys
        joined = yield from _plan(nest, owned, side.ports)
        # The prefixes of one rule may lie in the same block, and then share theirs.
        often = bytearray(len(side))
        for position in owned[0]:
            often[position] = 1
        for incidence in side.incidences:
            position = incidence & NONE
            often[position] = min(2, often[position] + 1)
        yield
        known: dict[tuple[int, int, tuple[int, ...]], int] = {}
        least = {0: NONE}  # of each block and those above it, the first rule
        blocks = array("I")  # of each node
        for node, positions in enumerate(owned):
            parent = blocks[nest.parents[node]] if node else 0
            block = None
            if not positions:
                block = parent
            elif shared := all(often[position] > 1 for position in positions):
                block = known.get((parent, joined[node], positions))
            if block is None:
                cells: Sequence[int] = yield from _all_cells(positions, side.ports)
                up = parent
                if joined[node]:
                    cells, up = _first_of(self._cells(parent), cells), self._blocks[parent + 1]
                block = self._add(cells, up, least[up])
                first = min([cell & NONE for cell in cells])
                least[block] = min(least[up], first)
                if shared:
                    known[parent, joined[node], positions] = block
                if len(cells) > _ENOUGH:
                    yield
            blocks.append(block)
            if node % BREATH == 0:
                yield
        del known, owned, joined, least
        yield from self._cut(nest, blocks)
        del nest, blocks
        yield from self._map(side.ports)

    def _cells(self, block: int) -> array[int]:
        return self._blocks[block + 2 : block + 3 + (self._blocks[block] >> 16)]

    def _add(self, cells: Sequence[int], up: int, least: int) -> int:
        """Where the new block begins; *least* is the first rule of those above it."""
        block = len(self._blocks)
        self._blocks.append(len(cells) - 1 << 16 | least)
        self._blocks.append(up)
        self._blocks.extend(cells)
        return block

    def _cut(self, nest: Nest, blocks: array[int]) -> Generator[None, None, None]:
        """Segments; neighbours with the same block are one."""
        before = -1
        for number, (start, node) in enumerate(zip(nest.starts, nest.owners, strict=True)):
            block = blocks[node]
            if block != before:
                before = block
                high = start >> 64
                if high != self._highs[-1]:
                    self._highs.append(high)
                    self._firsts.append(len(self._lows))
                self._lows.append(start & 0xFFFF_FFFF_FFFF_FFFF)
                self._owners.append(block)
            if number % BREATH == 0:
                yield
        self._firsts.append(len(self._lows))

    def _map(self, ports: Sequence[tuple[int, ...]]) -> Generator[None, None, None]:
        """Says for which ports it is worth going on to another block."""
        above: set[int] = set()
        winners: set[int] = set()
        for number, block in enumerate(self._every_block()):
            up = self._blocks[block + 1]
            if up not in above:
                above.add(up)
                winners.update([cell & NONE for cell in self._cells(up)])
                yield
            elif number % (8 * BREATH) == 0:
                yield
        winners.discard(NONE)
        if winners:
            cells = yield from _all_cells(sorted(winners), ports)
            for cell, after in zip(cells, [*cells[1:], NONE + 1 << 16], strict=True):
                self._above.extend(array("H", [cell & NONE]) * ((after >> 16) - (cell >> 16)))


def _plan(
    nest: Nest, owned: Sequence[tuple[int, ...]], ports: Sequence[tuple[int, ...]]
) -> Generator[None, None, bytearray]:
    """1 for each node into whose block the rules around it are worked, 0 where its block
    names the one above.

    All, if that fits CELLS_MAX. Otherwise a node takes what is above it only if that is at
    most *share* times what is in and below it, or at most *limit*. The first bounds what
    many small prefixes copy of a large one around them, and makes a chain of blocks no
    longer than the logarithm, to the base share + 1, of the number of rules; the second
    cuts a few deeply nested prefixes with many rules each into runs. The shortest chain
    that fits is taken.
    """
    own = [sum([len(ports[position]) + 1 for position in positions]) for positions in owned]
    yield
    below = own[:]
    for node in range(len(own) - 1, 0, -1):
        below[nest.parents[node]] += below[node]
        if node % (8 * BREATH) == 0:
            yield
    room = CELLS_MAX + below[0]
    best, shortest = bytearray(len(own)), len(own)
    for share, limit in _PLANS:
        size = own[:]
        depth = bytearray(len(own))
        joined = bytearray(len(own))
        total = 0
        for node in range(1, len(own)):
            parent = nest.parents[node]
            above, deep = size[parent], depth[parent]
            if not own[node]:  # the block above is its own
                size[node], depth[node] = above, deep
                continue
            if above <= share * below[node] or above <= limit:
                joined[node] = 1
                size[node] += above
            else:
                deep += 1
            depth[node] = deep
            total += size[node]
            if total > room:
                break
            if node % (8 * BREATH) == 0:
                yield
        else:
            longest = max(depth)
            if longest < shortest:
                best, shortest = joined, longest
            if longest <= 1:  # only if everything fits can it be less
                break
    return best


def _all_cells(
    positions: Sequence[int], ports: Sequence[tuple[int, ...]]
) -> Generator[None, None, list[int]]:
    """The ports cut into cells with the first of the rules at *positions*, which rise."""
    parts = []
    for position in positions:
        parts.append(_own_cells(position, ports[position]))
        if not ports[position]:
            break  # it leaves nothing to those that follow
        if len(parts) % (4 * BREATH) == 0:
            yield
    while len(parts) > 1:
        merged = []
        for at in range(0, len(parts) - 1, 2):
            merged.append(_first_of(parts[at], parts[at + 1]))
            if len(merged[-1]) > _ENOUGH or at % BREATH == 0:
                yield
        if len(parts) % 2:
            merged.append(parts[-1])
        parts = merged
    return parts[0]


def _own_cells(position: int, flat: Sequence[int]) -> list[int]:
    """The cells of one rule."""
    if not flat:
        return [position]
    cells = [NONE]  # no range begins with port 0
    for first, last in zip(flat[::2], flat[1::2], strict=True):
        cells.append(first << 16 | position)
        if last < 65535:
            cells.append(last + 1 << 16 | NONE)
    return cells


def _first_of(one: Sequence[int], two: Sequence[int]) -> list[int]:
    """Cells in which the earlier rule of either wins."""
    made: list[int] = []
    at_one = at_two = 0
    mine = yours = before = NONE + 1
    ends = len(one), len(two)
    while at_one < ends[0] or at_two < ends[1]:
        port_one = one[at_one] >> 16 if at_one < ends[0] else NONE + 1
        port_two = two[at_two] >> 16 if at_two < ends[1] else NONE + 1
        port = port_one if port_one < port_two else port_two
        if port_one == port:
            mine = one[at_one] & NONE
            at_one += 1
        if port_two == port:
            yours = two[at_two] & NONE
            at_two += 1
        winner = mine if mine < yours else yours
        if winner != before:
            made.append(port << 16 | winner)
            before = winner
    return made
