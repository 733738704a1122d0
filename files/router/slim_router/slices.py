# SPDX-License-Identifier: Apache-2.0
"""What one endpoint needs of the policy, and its way to the endpoint's worker.

The supervisor cuts and sends (:class:`Slicer`); the worker puts the pieces together
(:class:`Assembler`) and compiles what it got (:class:`.matcher.Table`). Connections
that the endpoint opens are judged by ``egress`` (peer is the destination), those that
it accepts by ``ingress`` (peer is the source). Both ends find the same rule.

A piece is a message of the link (docs/architecture.md, "Supervisor and worker"):

    {"op": "policy", "revision": 7, "part": 0, "last": false, "default": "deny",
     "egress": [[index, 1 if it allows, id, [peer prefix ...], [first, last ...]], ...],
     "ingress": [...]}

where no prefixes is any peer and no ports any port. The last one has ``count``, the
number of rules in all pieces. The pieces of one slice follow each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from . import prefix
from .matcher import Nest, Side, finish, nodes_of
from .whole import is_whole

if TYPE_CHECKING:
    from .policy import Policy, Rule

PIECE_MAX = 59_000
"""Bytes of rules in a piece, the rest being little: a message may have 60,000
(link.MESSAGE_MAX), and a rule takes 4,000 at most."""

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
    """Cuts slices from one policy, which is indexed once for all endpoints."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._egress = _Cutter(policy.rules, "sources", "destinations")
        self._ingress = _Cutter(policy.rules, "destinations", "sources")

    def slice_for(self, tenant: str, vip: bytes) -> Slice:
        """The slice of the endpoint (*tenant*, *vip*); *vip* is 16 bytes, IPv4 mapped."""
        return Slice(
            self.policy.revision,
            self.policy.default == "allow",
            self._egress.side(tenant, vip),
            self._ingress.side(tenant, vip),
        )

    def pieces(self, tenant: str, vip: bytes) -> Iterator[bytes]:
        """The same as messages for its worker, encoded, each small enough for the link."""
        rows = chain(
            ((0, row) for row in self._egress.rows(tenant, vip)),
            ((1, row) for row in self._ingress.rows(tenant, vip)),
        )
        held: tuple[list[bytes], list[bytes]] = ([], [])
        part = count = size = 0
        for way, row in rows:
            if size + len(row) + 1 > PIECE_MAX:
                yield self._piece(part, held, b"")
                part, size, held = part + 1, 0, ([], [])
            held[way].append(row)
            size += len(row) + 1
            count += 1
        yield self._piece(part, held, b',"count":%d' % count)

    def _piece(self, part: int, held: tuple[list[bytes], list[bytes]], count: bytes) -> bytes:
        return (
            b'{"op":"policy","revision":%d,"part":%d,"last":%s%s,"default":"%s",'
            b'"egress":[%s],"ingress":[%s]}'
            % (
                self.policy.revision,
                part,
                b"true" if count else b"false",
                count,
                self.policy.default.encode(),
                b",".join(held[0]),
                b",".join(held[1]),
            )
        )


def slice_for(policy: Policy, tenant: str, vip: bytes) -> Slice:
    """One slice. Who wants several of one policy keeps a :class:`Slicer`."""
    return Slicer(policy).slice_for(tenant, vip)


class _Cutter:
    """One direction of a Slicer: finds rules by the endpoint's own address, which is one of
    *own* (a field of Rule), and is asked for what it says of *peers*."""

    def __init__(self, rules: tuple[Rule, ...], own: str, peers: str) -> None:
        self._rules = rules
        self._peers = peers
        self._anywhere = [index for index, rule in enumerate(rules) if not getattr(rule, own)]
        nodes = finish(
            nodes_of(
                each.first << 24 | each.length << 16 | index
                for index, rule in enumerate(rules)
                for each in getattr(rule, own)
            )
        )
        self._nest = finish(Nest.of(nodes[0]))
        self._owned = nodes[1]
        # Many endpoints are told of the same rules, so that each is encoded once.
        self._encoded: list[bytes | None] = [None] * len(rules)

    def _indexes(self, tenant: str, vip: bytes) -> list[int]:
        nodes = self._nest.chain(int.from_bytes(vip, "big"))
        found = set[int]().union(*(self._owned[node] for node in nodes))
        mine = (None, tenant)
        return [
            index
            for index in sorted(chain(found, self._anywhere))
            if self._rules[index].tenant in mine
        ]

    def side(self, tenant: str, vip: bytes) -> Side:
        made = Side()
        for index in self._indexes(tenant, vip):
            rule = self._rules[index]
            flat = tuple(chain.from_iterable(rule.ports))
            made.add(index, rule.allows, rule.id, getattr(rule, self._peers), flat)
        return made

    def rows(self, tenant: str, vip: bytes) -> Iterator[bytes]:
        for index in self._indexes(tenant, vip):
            row = self._encoded[index]
            if row is None:
                row = self._encoded[index] = self._row(index)
            yield row

    def _row(self, index: int) -> bytes:
        rule = self._rules[index]
        peers = [str(each) for each in getattr(rule, self._peers)]
        row = [index, int(rule.allows), rule.id, peers, list(chain.from_iterable(rule.ports))]
        return json.dumps(row, separators=(",", ":")).encode()


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
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
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
