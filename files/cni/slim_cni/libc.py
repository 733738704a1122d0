# SPDX-License-Identifier: Apache-2.0
"""Which libc an image has, and whether the shim can be loaded into its programs.

A library in ld.so.preload that the dynamic linker cannot use ends every program of the
image, or has each of them complain: so this is known before anything is mounted.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from .rootfs import Root

LOADERS = {  # of the psABIs and of musl's dynamic linker
    "x86_64": ("lib64/ld-linux-x86-64.so.2", "lib/ld-musl-x86_64.so.1"),
    "aarch64": ("lib/ld-linux-aarch64.so.1", "lib/ld-musl-aarch64.so.1"),
}
DIRECTORIES = ("lib64", "usr/lib64", "lib/{m}-linux-gnu", "usr/lib/{m}-linux-gnu", "lib", "usr/lib")
_NEEDS = re.compile(rb"GLIBC_2\.(\d+)(?:\.\d+)?\0")
"""Names of versions in a library's string table: what a libc defines, and others need."""


class Libc(NamedTuple):
    """What an image has."""

    kind: str  # glibc, musl, or "" for none that a library could be loaded by
    minor: int = 0  # of glibc 2.x


def newest(raw: bytes) -> int:
    """The newest 2.x that a library names."""
    return max((int(number) for number in _NEEDS.findall(raw)), default=0)


def find(root: Root, machine: str = "") -> Libc:
    """The libc of the image at *root*. Raises OSError."""
    machine = machine or os.uname().machine
    glibc, musl = LOADERS.get(machine, ("", ""))
    if glibc and root.read(glibc) is not None:
        for directory in DIRECTORIES:
            raw = root.read(directory.format(m=machine) + "/libc.so.6")
            # (of another architecture: a biarch image has two)
            if raw is not None and raw[4:5] == b"\2":
                return Libc("glibc", newest(raw))
        return Libc("glibc")
    if musl and root.read(musl) is not None:
        return Libc("musl")
    return Libc("")


def why_not(root: Root, shim: str, machine: str = "") -> str:
    """Why the shim at path *shim* is not for the image's ld.so.preload; "" if it is.
    Raises OSError."""
    found = find(root, machine)
    if found.kind == "musl":
        return (
            "the image has musl, which has no ld.so.preload; use the device slim.overlay/shim=musl"
        )
    if not found.kind:
        return "the image has no dynamic linker of this machine; its programs stay on the overlay"
    with open(shim, "rb") as file:
        needed = newest(file.read())
    if found.minor < needed:
        has = f"glibc 2.{found.minor}" if found.minor else "a glibc of unknown version"
        return (
            f"the image has {has}, the shim needs 2.{needed}; its programs stay on the overlay,"
            " use a newer image"
        )
    return ""
