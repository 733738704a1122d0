# SPDX-License-Identifier: Apache-2.0
"""libbpf by ctypes: open an object, choose its programs, load, attach.

Why not bpftool: a program for a hook that the kernel lacks must be left out,
and `bpftool prog loadall ... autoattach` loads all or nothing. libbpf1 is on
every host that has iproute2.
"""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from .errors import BpfError

BTF_KIND_FUNC = 12
# libbpf 0.x answers with errors in the last page of the address space, 1.x with NULL.
_LAST_PAGE = (1 << (8 * ctypes.sizeof(ctypes.c_void_p))) - 4096

_PRINTER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _IterOptions(ctypes.Structure):
    """struct bpf_iter_attach_opts"""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("link_info", ctypes.c_void_p),
        ("link_info_length", ctypes.c_uint32),
    )


class Library:
    """libbpf.so.1, or .so.0 from 0.7 on; keeps what libbpf printed."""

    def __init__(self) -> None:
        """Raises BpfError where there is none."""
        self.printed: list[str] = []
        for name in ("libbpf.so.1", "libbpf.so.0"):
            try:
                self.c = ctypes.CDLL(name, use_errno=True)
                break
            except OSError:
                continue
        else:
            raise BpfError(
                "libbpf", "not installed", "install libbpf1 (Debian, Ubuntu) or libbpf (EL)"
            )
        if not hasattr(self.c, "bpf_object__next_program"):
            raise BpfError("libbpf", f"{name} is older than 0.7", "install a newer one")
        pointer = ctypes.c_void_p
        for function, result, arguments in (
            ("bpf_object__open_file", pointer, (ctypes.c_char_p, pointer)),
            ("bpf_object__next_program", pointer, (pointer, pointer)),
            ("bpf_object__find_map_by_name", pointer, (pointer, ctypes.c_char_p)),
            ("bpf_object__load", ctypes.c_int, (pointer,)),
            ("bpf_object__close", None, (pointer,)),
            ("bpf_program__name", ctypes.c_char_p, (pointer,)),
            ("bpf_program__set_autoload", ctypes.c_int, (pointer, ctypes.c_bool)),
            ("bpf_program__attach", pointer, (pointer,)),
            ("bpf_program__attach_iter", pointer, (pointer, pointer)),
            ("bpf_map__fd", ctypes.c_int, (pointer,)),
            ("bpf_map__reuse_fd", ctypes.c_int, (pointer, ctypes.c_int)),
            ("bpf_link__fd", ctypes.c_int, (pointer,)),
            ("bpf_link__destroy", ctypes.c_int, (pointer,)),
            ("btf__load_vmlinux_btf", pointer, ()),
            ("btf__find_by_name_kind", ctypes.c_int32, (pointer, ctypes.c_char_p, ctypes.c_uint32)),
            ("btf__free", None, (pointer,)),
        ):
            entry = getattr(self.c, function)
            entry.restype, entry.argtypes = result, arguments
        libc = ctypes.CDLL(None)

        def keep(level: int, form: bytes, arguments: int) -> int:
            # vsnprintf takes the va_list as the pointer that it is on all 64-bit machines here.
            if level < 2:
                buffer = ctypes.create_string_buffer(4096)
                libc.vsnprintf(buffer, ctypes.c_size_t(4096), form, ctypes.c_void_p(arguments))
                self.printed.append(buffer.value.decode(errors="replace").rstrip())
            return 0

        self._keep = _PRINTER(keep)
        self.c.libbpf_set_print(self._keep)

    def pointer(self, value: int | None, thing: str) -> int:
        """value, if it is no error of libbpf's."""
        if value is None or value > _LAST_PAGE:
            number = ctypes.get_errno() if value is None else _LAST_PAGE + 4096 - value
            raise BpfError(thing, os.strerror(number), self.last())
        return value

    def status(self, value: int, thing: str) -> None:
        """Raise if value is negative."""
        if value < 0:
            raise BpfError(thing, os.strerror(-value), self.last())

    def last(self) -> str:
        """The end of what libbpf printed: the verifier's words, when there are any."""
        return " | ".join(self.printed[-3:]).replace("\n", " | ")[-1500:]


class KernelTypes:
    """The kernel's own BTF."""

    def __init__(self, library: Library) -> None:
        """Raises BpfError where the kernel has none."""
        self._library = library
        self._btf = library.pointer(library.c.btf__load_vmlinux_btf(), "the kernel's BTF")

    def hook(self, name: str) -> int:
        """BTF id of the LSM hook, or 0 where this kernel lacks it."""
        symbol = f"bpf_lsm_{name}".encode()
        return max(0, int(self._library.c.btf__find_by_name_kind(self._btf, symbol, BTF_KIND_FUNC)))

    def close(self) -> None:
        """Free it."""
        self._library.c.btf__free(self._btf)


class Object:
    """One opened object file. Its links live until close(), or as long as a pin of them does."""

    def __init__(self, library: Library, path: Path) -> None:
        """Raises BpfError for an unreadable file."""
        self._library = library
        self.path = path
        self._handle = library.pointer(
            library.c.bpf_object__open_file(str(path).encode(), None), str(path)
        )
        self._links: list[int] = []
        self.programs = dict(self._programs())

    def _programs(self) -> Iterator[tuple[str, int]]:
        handle: int | None = None
        while handle := self._library.c.bpf_object__next_program(self._handle, handle):
            yield self._library.c.bpf_program__name(handle).decode(), handle

    def skip(self, program: str) -> None:
        """Do not load this one."""
        self._library.status(
            self._library.c.bpf_program__set_autoload(self.programs[program], False), program
        )

    def _map(self, name: str) -> int:
        handle = self._library.c.bpf_object__find_map_by_name(self._handle, name.encode())
        return self._library.pointer(handle, f"map {name}")

    def reuse(self, name: str, fd: int) -> None:
        """Take the map that fd is instead of making one."""
        self._library.status(self._library.c.bpf_map__reuse_fd(self._map(name), fd), f"map {name}")

    def load(self) -> None:
        """Maps, relocation and verifier. Raises BpfError with the verifier's last words."""
        self._library.status(self._library.c.bpf_object__load(self._handle), str(self.path))

    def map_fd(self, name: str) -> int:
        """The loaded map's descriptor; belongs to the object."""
        return int(self._library.c.bpf_map__fd(self._map(name)))

    def attach(self, program: str) -> int:
        """Attach where its section says; the link's descriptor, which belongs to the object."""
        return self._link(self._library.c.bpf_program__attach(self.programs[program]), program)

    def _link(self, link: int | None, program: str) -> int:
        self._links.append(self._library.pointer(link, program))
        return int(self._library.c.bpf_link__fd(self._links[-1]))

    def attach_iterator(self, program: str, map_fd: int | None = None) -> int:
        """Attach an iterator, over a map or over all tasks."""
        options = None
        if map_fd is not None:
            # union bpf_iter_link_info: the map's descriptor comes first in all its forms.
            info = ctypes.c_uint32(map_fd)
            options = _IterOptions(
                ctypes.sizeof(_IterOptions), ctypes.addressof(info), ctypes.sizeof(info)
            )
        link = self._library.c.bpf_program__attach_iter(
            self.programs[program], ctypes.byref(options) if options else None
        )
        return self._link(link, program)

    def close(self) -> None:
        """Free it; links that nobody pinned are detached."""
        while self._links:
            self._library.c.bpf_link__destroy(self._links.pop())
        self._library.c.bpf_object__close(self._handle)
