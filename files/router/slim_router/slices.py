# SPDX-License-Identifier: Apache-2.0
"""What one endpoint needs of the policy, and its way to the endpoint's worker.

The supervisor cuts (:class:`Slicer`) and sends (:func:`pieces`); the worker puts
the pieces together (:class:`Assembler`) and compiles what it got
(:class:`.matcher.Table`). Connections that the endpoint opens are judged by
``egress`` (peer is the destination), those that it accepts by ``ingress`` (peer is
the source). Both ends find the same rule.

A piece is a message of the link (docs/architecture.md, "Supervisor and worker"):

    {"op": "policy", "revision": 7, "part": 0, "last": false, "default": "deny",
     "egress": [[index, 1 if it allows, id, [peer prefix ...], [first, last ...]], ...],
     "ingress": [...]}

where no prefixes is any peer and no ports any port. The last one has ``count``, the
number of rules in all pieces. The pieces of one slice follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from . import prefix
from .matcher import Nest, Side, finish, nodes_of
from .whole import is_whole

if TYPE_CHECKING:
    from .policy import Policy, Rule

PIECE_MAX = 59_000
"""Bytes of rules in a piece: a message may have 60,000 (link.MESSAGE_MAX)."""

ACTIONS = {"allow": True, "deny": False}

Message = dict[str, Any]
Row = list[Any]


class Slice(NamedTuple):
    """The rules that can concern one endpoint."""

    revision: int
    default: bool  # is what no rule matches allowed?
    egress: Side
    ingress: Side


class PieceError(ValueError):
    """A piece that does not continue what came before; nothing of its slice is used."""


# --- supervisor -----------------------------------------------------------------


class Slicer:
    """Cuts slices from one policy. Endpoints that the same rules concern share sides:
    the same object is then in both slices, and must not be changed."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._egress = _Cutter(policy.rules, egress=True)
        self._ingress = _Cutter(policy.rules, egress=False)

    def slice_for(self, tenant: str, vip: bytes) -> Slice:
        """The slice of the endpoint (*tenant*, *vip*); *vip* is 16 bytes, IPv4 mapped."""
        address = int.from_bytes(vip, "big")
        return Slice(
            self.policy.revision,
            self.policy.default == "allow",
            self._egress.side(tenant, address),
            self._ingress.side(tenant, address),
        )


def slice_for(policy: Policy, tenant: str, vip: bytes) -> Slice:
    """One slice. Who wants several of one policy keeps a :class:`Slicer`."""
    return Slicer(policy).slice_for(tenant, vip)


class _Cutter:
    """One direction of a Slicer: finds rules by the endpoint's own address."""

    def __init__(self, rules: tuple[Rule, ...], *, egress: bool) -> None:
        self._rules = rules
        self._peers = "destinations" if egress else "sources"
        own = "sources" if egress else "destinations"
        self._anywhere = [index for index, rule in enumerate(rules) if not getattr(rule, own)]
        keys, self._owned = nodes_of(
            sorted(
                each.first << 24 | each.length << 16 | index
                for index, rule in enumerate(rules)
                for each in getattr(rule, own)
            )
        )
        self._nest = finish(Nest.of(keys))
        self._sides: dict[tuple[int, ...], Side] = {}

    def side(self, tenant: str, address: int) -> Side:
        found = set[int]().union(*(self._owned[node] for node in self._nest.chain(address)))
        indexes = tuple(
            index
            for index in sorted(chain(found, self._anywhere))
            if self._rules[index].tenant in (None, tenant)
        )
        side = self._sides.get(indexes)
        if side is None:
            side = self._sides[indexes] = Side()
            for index in indexes:
                rule = self._rules[index]
                side.add(
                    index,
                    rule.allows,
                    rule.id,
                    getattr(rule, self._peers),
                    tuple(chain.from_iterable(rule.ports)),
                )
        return side


def pieces(made: Slice) -> Iterator[Message]:
    """The messages that carry *made* to a worker, each small enough for the link."""
    part = count = size = 0

    def piece() -> Message:
        return {
            "op": "policy", "revision": made.revision, "part": part, "last": False,
            "default": "allow" if made.default else "deny", "egress": [], "ingress": [],
        }  # fmt: skip

    message = piece()
    for way, side in (("egress", made.egress), ("ingress", made.ingress)):
        for row in _rows(side):
            room = _room(row)
            if size + room > PIECE_MAX:
                yield message
                part += 1
                size = 0
                message = piece()
            message[way].append(row)
            size += room
            count += 1
    message["last"] = True
    message["count"] = count
    yield message


def _rows(side: Side) -> Iterator[Row]:
    peers = side.peers()
    for position, index in enumerate(side.indexes):
        yield [
            index,
            side.allows[position],
            side.ids[position],
            [str(each) for each in peers.get(position, ())],
            list(side.ports[position]),
        ]


def _room(row: Row) -> int:
    """Bytes of *row* in JSON at most; encoding it twice would cost more."""
    _index, _allows, name, peers, ports = row
    return 24 + len(name) + sum([len(each) + 3 for each in peers]) + 6 * len(ports)


# --- worker ---------------------------------------------------------------------


class Assembler:
    """Puts pieces together; holds at most one unfinished slice."""

    def __init__(self) -> None:
        self._made: Slice | None = None
        self._part = 0

    def feed(self, message: Message) -> Slice | None:
        """One piece in; the slice once it is whole.

        Raises PieceError for a piece that is malformed, missing one before it, a
        duplicate or too short. What was held is then gone: the next must be a first one.
        """
        made, part = self._made, self._part
        self._made, self._part = None, 0
        try:
            if made is None:
                made = Slice(_number(message, "revision"), _default(message), Side(), Side())
            if message["part"] != part or not is_whole(message["part"]):
                raise PieceError(f"part {message['part']!r}, where part {part} is due")
            if message["revision"] != made.revision or _default(message) != made.default:
                raise PieceError(
                    f"part {part} of revision {message['revision']!r} amid revision {made.revision}"
                )
            for way, side in (("egress", made.egress), ("ingress", made.ingress)):
                for row in message[way]:
                    _take(side, row)
            if message["last"] is True:
                count = len(made.egress) + len(made.ingress)
                if message["count"] != count:
                    raise PieceError(f"{count} rules have come of {message['count']!r}")
                return made
            if message["last"] is not False:
                raise PieceError("last is neither true nor false")
        except PieceError:
            raise
        except (
            AttributeError,
            IndexError,
            KeyError,
            OverflowError,
            TypeError,
            ValueError,
        ) as error:
            raise PieceError(f"malformed ({type(error).__name__}: {error})") from error
        self._made, self._part = made, part + 1
        return None


def _number(message: Message, name: str) -> int:
    value = message[name]
    if not is_whole(value) or value < 0:
        raise PieceError(f"{name} {value!r} is no number")
    return value


def _default(message: Message) -> bool:
    return ACTIONS[message["default"]]


def _take(side: Side, row: Row) -> None:
    index, allows, name, peers, ports = row
    if allows not in (0, 1) or not isinstance(name, str) or not is_whole(index):
        raise PieceError("a rule without index, action or id")
    if not isinstance(peers, list) or not isinstance(ports, list) or len(ports) % 2:
        raise PieceError("a rule without peers or ports")
    end = -1
    for first, last in zip(ports[::2], ports[1::2], strict=True):
        # Ranges that touch would be one.
        if not (is_whole(first) and is_whole(last) and max(1, end + 2) <= first <= last <= 65535):
            raise PieceError(f"ports {first!r} to {last!r} behind {end}")
        end = last
    side.add(index, allows == 1, name, [prefix.parse(each) for each in peers], ports)
