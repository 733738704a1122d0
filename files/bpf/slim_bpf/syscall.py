# SPDX-License-Identifier: Apache-2.0
"""bpf(2), as far as maps and pins need it; numbers from uapi/linux/bpf.h.

Every function raises OSError with the kernel's errno.
"""

import ctypes
import os
import platform
import struct
from dataclasses import dataclass

# arch/*/entry/syscalls: the generic table's number where no other is known.
_NUMBER = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(platform.machine(), 280)

MAP_LOOKUP_ELEM = 1
MAP_UPDATE_ELEM = 2
MAP_DELETE_ELEM = 3
OBJ_PIN = 6
OBJ_GET = 7
PROG_GET_FD_BY_ID = 13
OBJ_GET_INFO_BY_FD = 15

ANY = 0
NOEXIST = 1
EXIST = 2

LINK_TYPE_TRACING = 2
LINK_TYPE_ITER = 4
ATTACH_LSM_MAC = 27

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _bpf(command: int, attributes: bytes, *, name: str | None = None) -> int:
    """One call; attributes is the union bpf_attr, already packed."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(
        _libc.syscall(
            ctypes.c_long(_NUMBER), ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes))
        )
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def _element(
    command: int, fd: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None, flags: int
) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    address = 0 if value is None else ctypes.addressof(value)
    _bpf(command, struct.pack("=IIQQQ", fd, 0, ctypes.addressof(key_buffer), address, flags))


def lookup(fd: int, key: bytes, size: int) -> bytes:
    """The value of size bytes at key."""
    value = ctypes.create_string_buffer(size)
    _element(MAP_LOOKUP_ELEM, fd, key, value, 0)
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Write value at key."""
    _element(MAP_UPDATE_ELEM, fd, key, ctypes.create_string_buffer(value, len(value)), flags)


def delete(fd: int, key: bytes) -> None:
    """Remove key."""
    _element(MAP_DELETE_ELEM, fd, key, None, 0)


def get(path: str) -> int:
    """A new descriptor of what is pinned at path."""
    name = ctypes.create_string_buffer(path.encode())
    return _bpf(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), name=path)


def pin(fd: int, path: str) -> None:
    """Pin map, program or link at path, which must not exist."""
    name = ctypes.create_string_buffer(path.encode())
    _bpf(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), name=path)


def program_by_id(number: int) -> int:
    """A descriptor of the program with this id."""
    return _bpf(PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))


def _info(fd: int, info: ctypes.Array[ctypes.c_char]) -> bytes:
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    return info.raw


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info, its beginning."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_info(fd: int) -> MapInfo:
    """What the kernel says of a map."""
    return MapInfo(*struct.unpack_from("=6I", _info(fd, ctypes.create_string_buffer(40))))


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info; the last two mean something for tracing links only."""

    type: int
    id: int
    program: int
    attach_type: int
    target_btf_id: int


def link_info(fd: int) -> LinkInfo:
    """What the kernel says of a link."""
    data = _info(fd, ctypes.create_string_buffer(64))
    kind, number, program, _unused, attach, _unused, target = struct.unpack_from("=7I", data)
    return LinkInfo(kind, number, program, attach, target)


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """struct bpf_prog_info, what is wanted of it. The kernel keeps 15 letters of the name."""

    type: int
    id: int
    name: str
    maps: tuple[int, ...]


def program_info(fd: int) -> ProgramInfo:
    """What the kernel says of a program, the maps that it uses included."""
    numbers = (ctypes.c_uint32 * 16)()
    request = struct.pack("=52xIQ16x", len(numbers), ctypes.addressof(numbers))
    info = ctypes.create_string_buffer(request, len(request))
    data = _info(fd, info)
    kind, number = struct.unpack_from("=2I", data)
    count = struct.unpack_from("=I", data, 52)[0]
    name = data[64:80].split(b"\0")[0].decode()
    return ProgramInfo(kind, number, name, tuple(numbers[: min(count, len(numbers))]))
