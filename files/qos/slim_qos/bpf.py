# SPDX-License-Identifier: Apache-2.0
"""A few BPF instructions put together by hand, and bpf(2) to load them.

The programs of programs.py are a dozen to sixty instructions long and depend on no
kernel structure, so that neither a compiler nor libbpf is needed on a host. Numbers
from uapi/linux/bpf.h and bpf_common.h.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass, field

# arch/*/entry/syscalls: the generic table's number where no other is known.
_NUMBER = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(platform.machine(), 280)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MAP_CREATE, MAP_UPDATE_ELEM, PROG_LOAD = 0, 2, 5
MAP_TYPE_HASH = 1
PROG_TYPE_SCHED_CLS = 3
LOG_SIZE = 64 * 1024

# Sizes of a load or store.
W, H, B, DW = 0x00, 0x08, 0x10, 0x18
# Conditions of a jump.
JEQ, JNE = 0x10, 0x50
# Operations on 32 bits.
ADD, OR, AND, LSH, RSH = 0x00, 0x40, 0x50, 0x60, 0x70

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)

# Helpers.
MAP_LOOKUP, SKB_LOAD_BYTES, SK_LOOKUP_TCP, SK_RELEASE = 1, 26, 84, 86

# struct __sk_buff, as programs see it.
SKB_MARK, SKB_PROTOCOL, SKB_PRIORITY = 8, 16, 32
# struct bpf_sock.
SOCK_MARK = 16


@dataclass
class Code:
    """Instructions in the making; jumps go forward to labels."""

    _words: list[bytes] = field(default_factory=list)
    _jumps: list[tuple[int, str]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def _put(self, code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> None:
        imm = imm - (1 << 32) if imm >= 1 << 31 else imm
        self._words.append(struct.pack("=BBhi", code, dst | src << 4, off, imm))

    def move(self, dst: int, src: int) -> None:
        """dst = src, 64 bits."""
        self._put(0xBF, dst, src)

    def set(self, dst: int, value: int) -> None:
        """dst = value, sign-extended to 64 bits."""
        self._put(0xB7, dst, imm=value)

    def add(self, dst: int, value: int) -> None:
        """dst += value, 64 bits: for addresses."""
        self._put(0x07, dst, imm=value)

    def alu(self, operation: int, dst: int, value: int) -> None:
        """dst = dst (operation) value on 32 bits; the upper half becomes zero."""
        self._put(0x04 | operation, dst, imm=value)

    def load(self, size: int, dst: int, src: int, off: int) -> None:
        """dst = what is at src + off."""
        self._put(0x61 | size, dst, src, off)

    def store(self, size: int, dst: int, off: int, src: int) -> None:
        """What is at dst + off = src."""
        self._put(0x63 | size, dst, src, off)

    def jump(self, condition: int, dst: int, value: int, label: str) -> None:
        """Go to label if dst (condition) value."""
        self._jumps.append((len(self._words), label))
        self._put(0x05 | condition, dst, imm=value)

    def label(self, name: str) -> None:
        """Here is name."""
        self._labels[name] = len(self._words)

    def call(self, helper: int) -> None:
        """r0 = helper(r1 to r5)."""
        self._put(0x85, imm=helper)

    def map(self, dst: int, fd: int) -> None:
        """dst = the map behind a descriptor."""
        self._put(0x18, dst, 1, imm=fd)
        self._put(0)

    def leave(self, value: int) -> None:
        """return value."""
        self.set(R0, value)
        self.leave_with_r0()

    def leave_with_r0(self) -> None:
        """return r0."""
        self._put(0x95)

    def assembled(self) -> bytes:
        """All of it, jumps filled in."""
        words = list(self._words)
        for place, label in self._jumps:
            distance = self._labels[label] - place - 1
            words[place] = words[place][:2] + struct.pack("=h", distance) + words[place][4:]
        return b"".join(words)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(
        _libc.syscall(
            ctypes.c_long(_NUMBER), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))
        )
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def make_set(keys: list[bytes], size: int) -> int:
    """A descriptor of a map that has these keys of *size* bytes. Raises OSError."""
    fd = _bpf(MAP_CREATE, struct.pack("=5I", MAP_TYPE_HASH, size, 4, max(1, len(keys)), 0))
    try:
        for key in keys:
            held = ctypes.create_string_buffer(key, size)
            value = ctypes.create_string_buffer(b"\1\0\0\0", 4)
            where = (ctypes.addressof(held), ctypes.addressof(value))
            _bpf(MAP_UPDATE_ELEM, struct.pack("=IxxxxQQQ", fd, *where, 0))
    except BaseException:
        os.close(fd)
        raise
    return fd


def load(code: bytes, name: str) -> int:
    """A descriptor of a classifier. Raises OSError with the verifier's last words."""
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(LOG_SIZE)

    def attributes(level: int) -> bytes:
        return struct.pack(
            "=IIQQIIQII16s",
            PROG_TYPE_SCHED_CLS, len(code) // 8, ctypes.addressof(instructions),
            ctypes.addressof(license_text), level, LOG_SIZE if level else 0,
            ctypes.addressof(log) if level else 0, 0, 0, name.encode()[:15],
        )  # fmt: skip

    try:
        return _bpf(PROG_LOAD, attributes(0))
    except OSError as error:
        try:
            fd = _bpf(PROG_LOAD, attributes(1))
        except OSError:
            said = log.value.decode(errors="replace").strip().splitlines()[-3:]
            raise OSError(
                error.errno, f"BPF program {name}: {error.strerror}: {'; '.join(said)}"
            ) from error
        return fd
