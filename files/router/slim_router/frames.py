# SPDX-License-Identifier: Apache-2.0
"""Frames of the trunk (docs/protocol.md, "Trunk"): bytes to data class and back.

Pure functions and one incremental decoder; no sockets, no policy. Whatever is
not exactly what the page says is a :class:`FrameError`, and the connection that
it came from ends.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

MAGIC = 0x5354
VERSION = 1
BODY_MAX = 65536
HEADER = struct.Struct("!HBBI")
HEADER_SIZE = 8

OPEN, ANNOUNCE, WITHDRAW, QUERY, ANSWER, PING, PONG, BYE, IDLE, ATTACHED = range(1, 11)

KEY_SIZE = 32
TENANT_MAX = 255
NAME_MAX = 253
"""Longest host name, bytes (RFC 1035 allows no longer DNS name)."""
REASON_MAX = 1024

_OPEN = struct.Struct("!I32s")
_ANNOUNCE = struct.Struct("!16sHBI")
_ATTACHED = struct.Struct("!16sHBIQ")
_WITHDRAW = struct.Struct("!16s16sH")
_QUERY = struct.Struct("!16sH16sH")
_ANSWER = struct.Struct("!QB")
_U64 = struct.Struct("!Q")


class FrameError(ValueError):
    """Not a frame of this version of the protocol."""


@dataclass(frozen=True, slots=True)
class Open:
    """First frame of both sides. *key* stays out of repr: logs must not have it."""

    key_id: int
    key: bytes
    name: str

    def __repr__(self) -> str:
        return f"Open(key_id={self.key_id}, name={self.name!r})"


@dataclass(frozen=True, slots=True)
class Announce:
    """An endpoint of the sender: *vip* is 16 bytes, *port* its data port.

    *generation* tells its worker from the worker's predecessors. *born* is 0 where the map
    has the endpoint; of one of a pool it is when it was attached, microseconds since 1970:
    of two hosts that have the same vip, the later one has it.
    """

    tenant: str
    vip: bytes
    port: int
    up: bool
    generation: int
    born: int = 0


@dataclass(frozen=True, slots=True)
class Withdraw:
    """*dst* (the sender's) no longer listens on *port*; *src* held a lease."""

    tenant: str
    src: bytes
    dst: bytes
    port: int


@dataclass(frozen=True, slots=True)
class Query:
    """Is *src*:*sport* (the receiver's) probing *dst*:*dport* (the sender's)?"""

    id: int
    tenant: str
    src: bytes
    sport: int
    dst: bytes
    dport: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to the query of this id."""

    id: int
    probe: bool


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    opaque: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """Yes."""

    opaque: bytes


@dataclass(frozen=True, slots=True)
class Bye:
    """The sender closes, and says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Idle:
    """The sender has had no use for the trunk for a while."""


Frame = Open | Announce | Withdraw | Query | Answer | Ping | Pong | Bye | Idle


def _tenant_out(tenant: str) -> bytes:
    raw = tenant.encode()
    if not 1 <= len(raw) <= TENANT_MAX:
        raise FrameError(f"tenant of {len(raw)} bytes")
    return bytes((len(raw),)) + raw


def _text(raw: bytes, limit: int, what: str) -> str:
    if not 1 <= len(raw) <= limit:
        raise FrameError(f"{what} of {len(raw)} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"{what} is not UTF-8") from error


def _tenant_in(raw: bytes, rest: int) -> tuple[str, bytes]:
    """(tenant, what follows it), where *rest* bytes must follow."""
    if not raw or len(raw) != 1 + raw[0] + rest:
        raise FrameError(f"body of {len(raw)} bytes does not fit its tenant")
    return _text(raw[1 : 1 + raw[0]], TENANT_MAX, "tenant"), raw[1 + raw[0] :]


def _flag(value: int) -> bool:
    if value > 1:
        raise FrameError(f"flag of {value}")
    return value == 1


def encode(frame: Frame) -> bytes:
    """Header and body. Raises FrameError for what no decoder would accept."""
    try:
        kind, body = _encode(frame)
    except struct.error as error:
        raise FrameError(str(error)) from error
    return HEADER.pack(MAGIC, VERSION, kind, len(body)) + body


def _encode(frame: Frame) -> tuple[int, bytes]:
    match frame:
        case Open(key_id, key, name):
            if len(key) != KEY_SIZE or not 1 <= len(name.encode()) <= NAME_MAX:
                raise FrameError("OPEN with a key or a name of a wrong length")
            return OPEN, _OPEN.pack(key_id, key) + name.encode()
        case Announce(tenant, vip, port, up, generation, born):
            _sixteen(vip)
            if born:
                body = _ATTACHED.pack(vip, port, up, generation, born)
                return ATTACHED, _tenant_out(tenant) + body
            return ANNOUNCE, _tenant_out(tenant) + _ANNOUNCE.pack(vip, port, up, generation)
        case Withdraw(tenant, src, dst, port):
            _sixteen(src, dst)
            return WITHDRAW, _tenant_out(tenant) + _WITHDRAW.pack(src, dst, port)
        case Query(ident, tenant, src, sport, dst, dport):
            _sixteen(src, dst)
            return QUERY, _U64.pack(ident) + _tenant_out(tenant) + _QUERY.pack(
                src, sport, dst, dport
            )
        case Answer(ident, probe):
            return ANSWER, _ANSWER.pack(ident, probe)
        case Ping(opaque) | Pong(opaque):
            if len(opaque) != 8:
                raise FrameError("PING or PONG without its 8 bytes")
            return (PING if isinstance(frame, Ping) else PONG), opaque
        case Bye(reason):
            return BYE, reason.encode()[:REASON_MAX].decode(errors="ignore").encode()
        case Idle():
            return IDLE, b""
    raise FrameError(f"not a frame: {type(frame).__name__}")


def _sixteen(*addresses: bytes) -> None:
    for address in addresses:
        if len(address) != 16:
            raise FrameError(f"address of {len(address)} bytes")


def decode_header(raw: bytes) -> tuple[int, int]:
    """(type, length of the body). Raises FrameError."""
    if len(raw) != HEADER_SIZE:
        raise FrameError(f"header of {len(raw)} bytes")
    magic, version, kind, length = HEADER.unpack(raw)
    if magic != MAGIC:
        raise FrameError(f"magic {magic:#06x}")
    if version != VERSION:
        raise FrameError(f"version {version}, this router speaks {VERSION}")
    if not OPEN <= kind <= ATTACHED:
        raise FrameError(f"unknown type {kind}")
    if length > BODY_MAX:
        raise FrameError(f"body of {length} bytes")
    return kind, length


def decode_body(kind: int, raw: bytes) -> Frame:
    """The frame of type *kind* with the body *raw*. Raises FrameError."""
    if kind == OPEN:
        if len(raw) <= _OPEN.size:
            raise FrameError("OPEN without a name")
        key_id, key = _OPEN.unpack_from(raw)
        return Open(key_id, key, _text(raw[_OPEN.size :], NAME_MAX, "host name"))
    if kind == ANNOUNCE:
        tenant, rest = _tenant_in(raw, _ANNOUNCE.size)
        vip, port, up, generation = _ANNOUNCE.unpack(rest)
        if not port:
            raise FrameError("ANNOUNCE without a port")
        return Announce(tenant, vip, port, _flag(up), generation)
    if kind == ATTACHED:
        tenant, rest = _tenant_in(raw, _ATTACHED.size)
        vip, port, up, generation, born = _ATTACHED.unpack(rest)
        if not port or not born:
            raise FrameError("ATTACHED without a port, or without its time")
        return Announce(tenant, vip, port, _flag(up), generation, born)
    if kind == WITHDRAW:
        tenant, rest = _tenant_in(raw, _WITHDRAW.size)
        return Withdraw(tenant, *_WITHDRAW.unpack(rest))
    if kind == QUERY:
        if len(raw) < 8:
            raise FrameError("QUERY without an id")
        tenant, rest = _tenant_in(raw[8:], _QUERY.size)
        return Query(_U64.unpack_from(raw)[0], tenant, *_QUERY.unpack(rest))
    if kind == ANSWER:
        if len(raw) != _ANSWER.size:
            raise FrameError(f"ANSWER of {len(raw)} bytes")
        ident, probe = _ANSWER.unpack(raw)
        return Answer(ident, _flag(probe))
    if kind in (PING, PONG):
        if len(raw) != 8:
            raise FrameError(f"PING or PONG of {len(raw)} bytes")
        return Ping(raw) if kind == PING else Pong(raw)
    if kind == BYE:
        if not raw:
            return Bye("")
        return Bye(_text(raw, REASON_MAX, "reason"))
    if kind == IDLE:
        if raw:
            raise FrameError(f"IDLE of {len(raw)} bytes")
        return Idle()
    raise FrameError(f"unknown type {kind}")


def decode(raw: bytes) -> Frame:
    """Exactly one frame. Raises FrameError."""
    kind, length = decode_header(raw[:HEADER_SIZE])
    if len(raw) != HEADER_SIZE + length:
        raise FrameError(f"{len(raw)} bytes for a body of {length}")
    return decode_body(kind, raw[HEADER_SIZE:])


class Decoder:
    """Cuts a byte stream into frames; holds at most one unfinished frame.

    *open_only* makes everything but OPEN an error before its body is read, so
    that an unknown peer cannot make us buffer 64 KiB.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self.open_only = True

    def feed(self, data: bytes) -> None:
        """More bytes from the peer."""
        self._held += data

    def next(self) -> Frame | None:
        """The next whole frame, or None. Raises FrameError, then is useless."""
        held = self._held
        if len(held) < HEADER_SIZE:
            return None
        kind, length = decode_header(bytes(held[:HEADER_SIZE]))
        if self.open_only and (
            kind not in (OPEN, BYE) or length > max(_OPEN.size + NAME_MAX, REASON_MAX)
        ):
            raise FrameError("the first frame is not OPEN")
        end = HEADER_SIZE + length
        if len(held) < end:
            return None
        body = bytes(held[HEADER_SIZE:end])
        del held[:end]
        return decode_body(kind, body)
