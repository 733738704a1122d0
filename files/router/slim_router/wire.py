# SPDX-License-Identifier: Apache-2.0
"""Layouts of the shim socket and of host connections (docs/protocol.md).

The only place on the Python side that knows an offset. The set-up path calls
the ``struct`` objects directly; everything that comes from outside goes through
a ``parse_*`` function, which raises :class:`WireError` for anything malformed.
"""

from __future__ import annotations

import socket
import struct
from hashlib import blake2s

VERSION = 1

# --- shim socket ------------------------------------------------------------
MSG = struct.Struct("<HBBIIi16s16sHHHHQQ24s")
MSG_MAGIC = 0x4C53
MSG_SIZE = 96
PREFIX = struct.Struct("<16sB3x")

HELLO, WELCOME, CONNECT, WARM, COLD, PLAIN, BEGIN, SWAP, SWAPPED, KEEP = range(1, 11)
CANCEL, LISTEN, LISTENING, WHO, NAMES, SYNC, SYNCED, ACCEPTED, ERROR, COMMITTED, JOIN = range(
    11, 22
)
REFUSED = 22

F_NONBLOCK, F_BOUND, F_RECOVER, F_LISTENER, F_OVERLAY, F_SECURE = 1, 2, 4, 8, 16, 32

REASONS = {
    0: "",
    1: "unknown-peer",
    2: "peer-not-listening",
    3: "no-trunk",
    4: "host-connection-failed",
    5: "not-ready-in-time",
    6: "own-address",
    7: "limit",
    8: "refused-by-peer",
    9: "version",
    10: "no-router",
    11: "option",
    12: "not-tagged",
}
(
    R_NONE,
    R_UNKNOWN_PEER,
    R_NOT_LISTENING,
    R_NO_TRUNK,
    R_HOST_FAILED,
    R_NOT_READY,
    R_OWN_ADDRESS,
    R_LIMIT,
    R_REFUSED,
    R_VERSION,
    R_NO_ROUTER,
    R_OPTION,
    R_NOT_TAGGED,
) = range(13)

ZERO16 = bytes(16)
NO_COMMIT = bytes(24)

# --- host connection --------------------------------------------------------
HELLO_BODY = struct.Struct("<4sBBHIIQ16s16sHHI")
HELLO_MAGIC = b"SLH1"
HELLO_SIZE = 80
K_DELIVER, K_PREPARE = 1, 2

ACK_BODY = struct.Struct("<4sBBHIIQ")
ACK_MAGIC = b"SLA1"
ACK_SIZE = 40

COMMIT_BODY = struct.Struct("<3sBI")
COMMIT_MAGIC = b"SLC"
COMMIT_SIZE = 24
C_DELIVER, C_RENEW = 1, 2

MAC_SIZE = 16


class WireError(ValueError):
    """A record that is not what docs/protocol.md says."""


def pack_addr(text: str) -> bytes:
    """16 bytes for an IPv4 or IPv6 address in text; IPv4 becomes mapped."""
    if ":" in text:
        return socket.inet_pton(socket.AF_INET6, text)
    return b"\0\0\0\0\0\0\0\0\0\0\xff\xff" + socket.inet_pton(socket.AF_INET, text)


def unpack_addr(raw: bytes) -> str:
    """Text of a 16-byte address; mapped IPv4 becomes dotted."""
    if raw[:12] == b"\0\0\0\0\0\0\0\0\0\0\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def message(
    kind: int,
    seq: int = 0,
    *,
    flags: int = 0,
    error: int = 0,
    local: bytes = ZERO16,
    peer: bytes = ZERO16,
    lport: int = 0,
    pport: int = 0,
    family: int = 0,
    count: int = 0,
    cookie: int = 0,
    value: int = 0,
    commit: bytes = NO_COMMIT,
) -> bytes:
    """One shim-socket record."""
    return MSG.pack(
        MSG_MAGIC, VERSION, kind, seq, flags, error, local, peer,
        lport, pport, family, count, cookie, value, commit,
    )  # fmt: skip


def pair_key(trunk_key: bytes, tenant: str, src: bytes, dst: bytes, generation: int) -> bytes:
    """The key of one (source, destination) pair under a trunk's key.

    *generation* is that of the accepting worker: hellos to its predecessor mean nothing to it.
    """
    data = tenant.encode() + b"\0" + src + dst + generation.to_bytes(4, "big")
    return blake2s(data, key=trunk_key, digest_size=32).digest()


def hello(
    mac: blake2s,
    kind: int,
    key_id: int,
    nonce: int,
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
) -> bytes:
    """A HELLO; *mac* is a keyed blake2s object that is copied, not consumed."""
    body = HELLO_BODY.pack(
        HELLO_MAGIC, VERSION, kind, 0, key_id, 0, nonce, src, dst, sport, dport, 0
    )
    keyed = mac.copy()
    keyed.update(body)
    return body + keyed.digest()


def keyed_mac(key: bytes) -> blake2s:
    """The object that :func:`hello` and its kin copy."""
    return blake2s(key=key, digest_size=MAC_SIZE)


def mac_of(mac: blake2s, data: bytes) -> bytes:
    """The MAC of *data* under the key of *mac*."""
    keyed = mac.copy()
    keyed.update(data)
    return keyed.digest()


def parse_hello(raw: bytes) -> tuple[int, int, int, bytes, bytes, int, int]:
    """(kind, key_id, nonce, src, dst, sport, dport); the MAC is not checked here."""
    if len(raw) != HELLO_SIZE:
        raise WireError(f"hello of {len(raw)} bytes, not {HELLO_SIZE}")
    magic, version, kind, r0, key_id, r1, nonce, src, dst, sport, dport, r2 = (
        HELLO_BODY.unpack_from(raw)
    )
    if magic != HELLO_MAGIC or version != VERSION or r0 or r1 or r2:
        raise WireError("not a hello of this version")
    if kind not in (K_DELIVER, K_PREPARE) or not sport or not dport:
        raise WireError("hello with an unknown kind or a zero port")
    return kind, key_id, nonce, src, dst, sport, dport


def ack(mac: blake2s, status: int, lease_ms: int, nonce: int) -> bytes:
    """The answer to a PREPARE."""
    body = ACK_BODY.pack(ACK_MAGIC, VERSION, status, 0, lease_ms, 0, nonce)
    return body + mac_of(mac, body)


def parse_ack(mac: blake2s, raw: bytes, nonce: int) -> tuple[int, int]:
    """(status, lease_ms) of a verified ACK for *nonce*."""
    if len(raw) != ACK_SIZE:
        raise WireError(f"ack of {len(raw)} bytes, not {ACK_SIZE}")
    magic, version, status, r0, lease_ms, r1, echoed = ACK_BODY.unpack_from(raw)
    if magic != ACK_MAGIC or version != VERSION or r0 or r1 or echoed != nonce:
        raise WireError("not an ack for this hello")
    if mac_of(mac, raw[:24]) != raw[24:]:
        raise WireError("ack with a wrong MAC")
    return status, lease_ms


def commit(mac: blake2s, kind: int, nonce: int) -> bytes:
    """The record that turns a prepared host connection into the real one."""
    body = COMMIT_BODY.pack(COMMIT_MAGIC, kind, nonce & 0xFFFFFFFF)
    return body + mac_of(mac, body + nonce.to_bytes(8, "little"))


def parse_commit(mac: blake2s, raw: bytes, nonce: int) -> int:
    """The kind of a verified COMMIT for *nonce*."""
    if len(raw) != COMMIT_SIZE:
        raise WireError(f"commit of {len(raw)} bytes, not {COMMIT_SIZE}")
    kind: int
    magic, kind, low = COMMIT_BODY.unpack_from(raw)
    if magic != COMMIT_MAGIC or kind not in (C_DELIVER, C_RENEW) or low != nonce & 0xFFFFFFFF:
        raise WireError("not a commit for this hello")
    if mac_of(mac, raw[:8] + nonce.to_bytes(8, "little")) != raw[8:]:
        raise WireError("commit with a wrong MAC")
    return kind
