# SPDX-License-Identifier: Apache-2.0
"""docs/protocol.md against files/shim/wire.h, slim_router/wire.py and frames.py.

The page is the standard. Its tables are read as they stand; a program compiled
from wire.h tells what the C side has; the Python side is asked through the same
functions that the router calls, and its bytes are looked up at the page's offsets.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from slim_router import frames, wire

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
WIRE_H = ROOT / "files/shim/wire.h"


@dataclass(frozen=True)
class Field:
    """A row of a layout table; bytes."""

    offset: int
    size: int
    name: str
    meaning: str

    def of(self, raw: bytes) -> bytes:
        return raw[self.offset : self.offset + self.size]


def _table(lines: list[str]) -> list[list[str]]:
    """The cells of the first table in *lines*, without its head."""
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|\n").split("|")])
        elif rows:
            break
    return rows[2:]


def layout(name: str) -> list[Field]:
    """The rows below the mark of layout *name*."""
    _unused, found, rest = PAGE.partition(f"<!-- layout: {name} -->\n")
    assert found, f"docs/protocol.md has no layout {name}"
    return [
        Field(int(offset), int(size), field, meaning)
        for offset, size, field, meaning in _table(rest.splitlines())
    ]


def size_of(fields: list[Field]) -> int:
    return fields[-1].offset + fields[-1].size


def listed_types(after: str) -> list[list[str]]:
    """The table of types, which is the first ``| type |`` table behind *after*."""
    rest = PAGE[PAGE.index(after) :]
    return _table(rest[rest.index("\n| type | name") :].splitlines())


def numbered(sentence: str) -> dict[int, str]:
    """``1 NAME, 2 NAME`` in the paragraph that starts with *sentence*."""
    start = PAGE.index(sentence) + len(sentence)
    paragraph = PAGE[start : PAGE.index("\n\n", start)]
    return {int(n): name for n, name in re.findall(r"(\d+) ([A-Za-z-]+)", paragraph)}


SHIM_TYPES = {row[1]: int(row[0]) for row in listed_types("## Shim socket")}
TRUNK_TYPES = {row[1]: int(row[0]) for row in listed_types("## Trunk")}
BODIES = _table(PAGE.partition("<!-- bodies -->\n")[2].splitlines())
FLAGS = {name: number for number, name in numbered("\nFlags: ").items()}
REASONS = numbered("\nReasons (PLAIN, KEEP): ")
LAYOUTS = re.findall(r"<!-- layout: (\w+) -->", PAGE)


# --- the page itself --------------------------------------------------------------


def test_every_layout_is_tested_here():
    assert sorted(LAYOUTS) == sorted(["slim_msg", "hello", "ack", "commit", "frame"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_no_gap_and_no_overlap(name):
    at = 0
    for field in layout(name):
        assert field.offset == at, field
        at += field.size


def test_types_are_numbered_without_a_gap():
    assert list(SHIM_TYPES.values()) == list(range(1, len(SHIM_TYPES) + 1))
    assert list(TRUNK_TYPES.values()) == list(range(1, len(TRUNK_TYPES) + 1))
    assert list(REASONS) == list(range(1, len(REASONS) + 1))
    assert list(FLAGS.values()) == [1 << bit for bit in range(len(FLAGS))]


# --- C ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c_says(tmp_path_factory) -> dict[str, int]:
    """What a program that includes wire.h prints: NAME -> number."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    text = WIRE_H.read_text(encoding="utf-8")
    names = re.findall(r"^\t(SLIM_\w+)(?: = \d+)?,", text, re.MULTILINE)
    names += re.findall(r"^#define (SLIM_\w+) \w+", text, re.MULTILINE)
    lines = [f'printf("{name} %lld\\n", (long long){name});' for name in names]
    members = [("slim_msg", field.name) for field in layout("slim_msg")]
    members += [("slim_prefix", name) for name in ("addr", "bits", "zero")]
    for kind, field in members:
        member = f"((struct {kind} *)0)->{field}"
        lines.append(f'printf("{kind}.{field} %zu\\n", offsetof(struct {kind}, {field}));')
        lines.append(f'printf("{kind}.{field}.size %zu\\n", sizeof({member}));')
    for kind in ("slim_msg", "slim_prefix"):
        lines.append(f'printf("{kind} %zu\\n", sizeof(struct {kind}));')
    work = tmp_path_factory.mktemp("wire")
    source, program = work / "tell.c", work / "tell"
    body = "\n\t".join(lines)
    source.write_text(
        f'#include <stdio.h>\n#include "{WIRE_H}"\nint main(void)\n{{\n\t{body}\n\treturn 0;\n}}\n'
    )
    # A field of the page that the structure lacks does not compile.
    made = subprocess.run(
        [compiler, "-std=gnu11", "-Wall", "-o", program, source],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    printed = subprocess.run([program], capture_output=True, text=True, timeout=10, check=True)
    return {name: int(value) for name, value in map(str.split, printed.stdout.splitlines())}


def test_c_has_the_layout_of_the_record(c_says):
    fields = layout("slim_msg")
    for field in fields:
        assert c_says[f"slim_msg.{field.name}"] == field.offset, field
        assert c_says[f"slim_msg.{field.name}.size"] == field.size, field
    assert c_says["slim_msg"] == size_of(fields)


def test_c_has_the_layout_of_a_prefix(c_says):
    stated = re.search(r"A prefix is (\d+) bytes: (.*?)\.\n", PAGE, re.DOTALL)
    assert stated is not None
    sizes = [int(size) for size in re.findall(r"\((\d+)\)", stated[2])]
    at = 0
    for name, size in zip(("addr", "bits", "zero"), sizes, strict=True):
        assert (c_says[f"slim_prefix.{name}"], c_says[f"slim_prefix.{name}.size"]) == (at, size)
        at += size
    assert c_says["slim_prefix"] == at == int(stated[1]) == wire.PREFIX.size
    assert wire.PREFIX.pack(b"a" * 16, 112) == b"a" * 16 + bytes((112, 0, 0, 0))


def test_c_has_the_types_and_flags_of_the_page_and_no_others(c_says):
    enum = WIRE_H.read_text(encoding="utf-8").partition("enum slim_type")[2].partition("};")[0]
    in_enum = set(re.findall(r"SLIM_(\w+)", enum))
    assert in_enum == set(SHIM_TYPES)
    for name, number in SHIM_TYPES.items():
        assert c_says[f"SLIM_{name}"] == number, name
    flags = {name[len("SLIM_F_") :]: v for name, v in c_says.items() if name.startswith("SLIM_F_")}
    assert flags == FLAGS


def test_c_has_the_constants_of_the_page(c_says):
    by_name = {field.name: field for field in layout("slim_msg")}
    assert c_says["SLIM_MAGIC"] == int(by_name["magic"].meaning, 16) == wire.MSG_MAGIC
    assert c_says["SLIM_VERSION"] == int(by_name["version"].meaning) == wire.VERSION
    assert c_says["SLIM_COMMIT_SIZE"] == size_of(layout("commit")) == wire.COMMIT_SIZE


# --- Python, shim socket ------------------------------------------------------------


def test_python_has_the_types_and_flags_of_the_page():
    for name, number in SHIM_TYPES.items():
        assert getattr(wire, name) == number, name
    for name, number in FLAGS.items():
        assert getattr(wire, f"F_{name}") == number, name
    flags = {name[2:] for name in vars(wire) if re.fullmatch(r"F_[A-Z]+", name)}
    assert flags == set(FLAGS)


def test_python_has_the_reasons_of_the_page():
    assert {0: "", **REASONS} == wire.REASONS
    numbers = [getattr(wire, name) for name in vars(wire) if re.fullmatch(r"R_[A-Z_]+", name)]
    assert sorted(numbers) == sorted(wire.REASONS)
    for constant, number in (
        ("R_UNKNOWN_PEER", "unknown-peer"), ("R_NOT_LISTENING", "peer-not-listening"),
        ("R_NO_TRUNK", "no-trunk"), ("R_HOST_FAILED", "host-connection-failed"),
        ("R_NOT_READY", "not-ready-in-time"), ("R_OWN_ADDRESS", "own-address"),
        ("R_LIMIT", "limit"), ("R_REFUSED", "refused-by-peer"), ("R_VERSION", "version"),
        ("R_NO_ROUTER", "no-router"), ("R_OPTION", "option"),
    ):  # fmt: skip
        assert REASONS[getattr(wire, constant)] == number


def test_python_writes_every_field_of_a_record_where_the_page_has_it():
    values = {
        "seq": 0x01020304, "flags": 0x11121314, "error": 0x21222324,
        "local": bytes(range(16)), "peer": bytes(range(16, 32)), "lport": 0x3132, "pport": 0x3334,
        "family": 0x3536, "count": 0x3738, "cookie": 0x4142434445464748,
        "value": 0x5152535455565758, "commit": bytes(range(100, 124)),
    }  # fmt: skip
    raw = wire.message(wire.SWAPPED, **values)
    fields = layout("slim_msg")
    assert len(raw) == wire.MSG_SIZE == wire.MSG.size == size_of(fields)
    assert {field.name for field in fields} == {"magic", "version", "type", *values}
    values |= {"magic": wire.MSG_MAGIC, "version": wire.VERSION, "type": SHIM_TYPES["SWAPPED"]}
    _compare(fields, raw, values, "little")


def _compare(fields, raw, values, order):
    for field in fields:
        value = values[field.name]
        wanted = value if isinstance(value, bytes) else value.to_bytes(field.size, order)
        assert field.of(raw) == wanted, field


# --- Python, host connection ----------------------------------------------------------

KEY = bytes(range(32))
MAC = wire.keyed_mac(KEY)
NONCE = 0x6162636465666768


def _magic(field: Field) -> bytes:
    text = re.fullmatch(r"`(\w+)`", field.meaning)
    assert text is not None, field
    return text[1].encode()


def test_hello():
    fields = layout("hello")
    src, dst = bytes(range(16)), bytes(range(16, 32))
    raw = wire.hello(MAC, wire.K_PREPARE, 0x71727374, NONCE, src, dst, 0x8182, 0x8384)
    assert len(raw) == wire.HELLO_SIZE == size_of(fields)
    assert wire.HELLO_BODY.size == fields[-1].offset
    values = {
        "magic": _magic(fields[0]), "version": wire.VERSION, "kind": 2, "reserved": 0,
        "key_id": 0x71727374, "nonce": NONCE, "src": src, "dst": dst,
        "sport": 0x8182, "dport": 0x8384, "mac": wire.mac_of(MAC, raw[:64]),
    }  # fmt: skip
    _compare(fields, raw, values, "little")
    kinds = dict(re.findall(r"(\d) ([A-Z]+)", fields[2].meaning))
    assert kinds == {str(wire.K_DELIVER): "DELIVER", str(wire.K_PREPARE): "PREPARE"}
    assert "bytes 0 to 63" in fields[-1].meaning
    assert wire.parse_hello(raw) == (2, 0x71727374, NONCE, src, dst, 0x8182, 0x8384)


def test_ack():
    fields = layout("ack")
    raw = wire.ack(MAC, 7, 0x71727374, NONCE)
    assert len(raw) == wire.ACK_SIZE == size_of(fields)
    assert wire.ACK_BODY.size == fields[-1].offset
    values = {
        "magic": _magic(fields[0]), "version": wire.VERSION, "status": 7, "reserved": 0,
        "lease_ms": 0x71727374, "nonce": NONCE, "mac": wire.mac_of(MAC, raw[:24]),
    }  # fmt: skip
    _compare(fields, raw, values, "little")
    assert "bytes 0 to 23" in fields[-1].meaning
    assert wire.parse_ack(MAC, raw, NONCE) == (7, 0x71727374)


def test_commit():
    fields = layout("commit")
    raw = wire.commit(MAC, wire.C_RENEW, NONCE)
    assert len(raw) == wire.COMMIT_SIZE == size_of(fields)
    assert wire.COMMIT_BODY.size == fields[-1].offset
    values = {
        "magic": _magic(fields[0]), "kind": 2, "nonce": NONCE & 0xFFFFFFFF,
        "mac": wire.mac_of(MAC, raw[:8] + struct.pack("<Q", NONCE)),
    }  # fmt: skip
    _compare(fields, raw, values, "little")
    assert fields[1].meaning == f"{wire.C_DELIVER} deliver, {wire.C_RENEW} renew only"
    assert wire.parse_commit(MAC, raw, NONCE) == wire.C_RENEW


def _bit_flips(raw: bytes):
    for bit in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


def test_no_bit_of_an_ack_or_commit_may_differ_and_none_be_missing():
    for raw, parse in (
        (wire.ack(MAC, 0, 30000, NONCE), wire.parse_ack),
        (wire.commit(MAC, wire.C_DELIVER, NONCE), wire.parse_commit),
    ):
        parse(MAC, raw, NONCE)
        for other in [*_bit_flips(raw), *(raw[:size] for size in range(len(raw))), raw + b"\0"]:
            with pytest.raises(wire.WireError):
                parse(MAC, other, NONCE)
        with pytest.raises(wire.WireError):
            parse(MAC, raw, NONCE + 1)
        with pytest.raises(wire.WireError):
            parse(wire.keyed_mac(b"another key"), raw, NONCE)


# --- Python, trunk --------------------------------------------------------------------

ITEMS = {
    "key_id": 0x71727374, "key": KEY, "name": b"node1", "tenant": b"blue", "tenant_length": 4,
    "vip": bytes(range(16)), "source": bytes(range(16)), "destination": bytes(range(16, 32)),
    "data_port": 0x8182, "up": 1, "port": 0x8384, "generation": 0x9192, "id": NONCE,
    "born": 0xA1A2A3A4A5A6A7A8, "sport": 0x8586, "dport": 0x8788, "probe": 1,
    "opaque": b"12345678", "reason": b"because",
}  # fmt: skip
TENANT = len(b"blue")
VIP, OTHER = bytes(range(16)), bytes(range(16, 32))
SAMPLES: dict[str, frames.Frame] = {
    "OPEN": frames.Open(0x71727374, KEY, "node1"),
    "ANNOUNCE": frames.Announce("blue", VIP, 0x8182, True, 0x9192),
    "WITHDRAW": frames.Withdraw("blue", VIP, OTHER, 0x8384),
    "QUERY": frames.Query(NONCE, "blue", VIP, 0x8586, OTHER, 0x8788),
    "ANSWER": frames.Answer(NONCE, True),
    "PING": frames.Ping(b"12345678"),
    "PONG": frames.Pong(b"12345678"),
    "BYE": frames.Bye("because"),
    "IDLE": frames.Idle(),
    "ATTACHED": frames.Announce("blue", VIP, 0x8182, True, 0x9192, 0xA1A2A3A4A5A6A7A8),
}


def _stated_body(name: str) -> bytes:
    """The bytes that the page's table of bodies gives for the values in ITEMS."""
    made = b""
    for frame, offset, size, item, _meaning in BODIES:
        if frame != name:
            continue
        number, _plus, tenant = offset.partition("+")
        assert len(made) == int(number) + (TENANT if tenant else 0), f"{name}: {item}"
        value = ITEMS[item]
        if isinstance(value, int):
            value = value.to_bytes(int(size), "big")
        elif size != "rest":
            assert len(value) == (TENANT if size == "T" else int(size)), f"{name}: {item}"
        made += value
    return made


def test_frame_header():
    fields = layout("frame")
    raw = frames.encode(frames.Ping(b"12345678"))
    assert frames.HEADER.size == frames.HEADER_SIZE == size_of(fields)
    magic, limit = int(fields[0].meaning, 16), re.search(r"at most ([\d,]+)", fields[3].meaning)
    assert limit is not None
    assert int(limit[1].replace(",", "")) == frames.BODY_MAX
    values = {"magic": magic, "version": frames.VERSION, "type": frames.PING, "length": 8}
    _compare(fields, raw, values, "big")
    assert fields[1].meaning == str(frames.VERSION)


def test_python_has_the_frames_of_the_page_and_no_others():
    assert set(SAMPLES) == set(TRUNK_TYPES)
    assert {row[0] for row in BODIES} == set(TRUNK_TYPES) - {"IDLE"}
    for name, number in TRUNK_TYPES.items():
        assert getattr(frames, name) == number, name
        assert frames.encode(SAMPLES[name])[3] == number, name
    last = max(TRUNK_TYPES.values())
    with pytest.raises(frames.FrameError, match="unknown type"):
        frames.decode_header(frames.HEADER.pack(frames.MAGIC, frames.VERSION, last + 1, 0))


@pytest.mark.parametrize("name", TRUNK_TYPES)
def test_frame_body(name):
    body = frames.encode(SAMPLES[name])[frames.HEADER_SIZE :]
    assert body == _stated_body(name), name
    assert frames.decode_body(TRUNK_TYPES[name], body) == SAMPLES[name]


# --- keys -----------------------------------------------------------------------------


def test_pair_key_is_what_the_architecture_page_says():
    import hashlib

    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    stated = re.search(r"`BLAKE2s\(key=trunk key, data=([^`]*), 32 bytes\)`", page)
    assert stated is not None
    assert stated[1] == "tenant NUL source-vip(16) destination-vip(16) generation(4)"
    assert "generation in network byte order" in page
    data = b"blue\0" + VIP + OTHER + bytes((0, 0, 3, 4))
    wanted = hashlib.blake2s(data, key=KEY, digest_size=32).digest()
    assert wire.pair_key(KEY, "blue", VIP, OTHER, 0x304) == wanted
