# SPDX-License-Identifier: Apache-2.0
"""Loads, replaces and removes the programs.

First everything is loaded, attached, pinned in a staging directory and tried
on a socket; only then the pins move to their place, one rename each. While a
new version replaces an old one both are attached, and either's "no" counts:
there is no moment without a program. The maps, and so the tags, stay. As the
old version's "no" would hide a hole in the new one, that one is first tried
with maps of its own, in which the old one does not look.
"""

import errno
import hashlib
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path

from . import check, host, stats, syscall
from .errors import BpfError
from .layout import HOOKS, ITERATORS, MAP_ITERATORS, MAPS, OBJECT, PINS, STAGING
from .libbpf import KernelTypes, Library, Object
from .tags import Tags

ABOUT_SIZE = 64


@dataclass(slots=True)
class State:
    """What is loaded now."""

    loaded: bool
    sha256: str = ""
    programs: tuple[str, ...] = ()
    # Programs left out, and what covers them on this kernel.
    absent: dict[str, str] = field(default_factory=dict)


def digest(path: Path = OBJECT) -> str:
    """SHA-256 of the object file, hexadecimal."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BpfError(str(path), os.strerror(error.errno or 0)) from error


def state(pins: Path = PINS) -> State:
    """Read the pins; no checks (see check.py)."""
    try:
        fd = syscall.get(str(pins / "about"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return State(False)
        raise BpfError(str(pins / "about"), os.strerror(error.errno or 0)) from error
    try:
        value = syscall.lookup(fd, struct.pack("=I", 0), ABOUT_SIZE)
    finally:
        os.close(fd)
    programs = tuple(hook.program for hook in HOOKS if (pins / hook.program).exists())
    absent = {hook.program: hook.instead for hook in HOOKS if hook.program not in programs}
    return State(True, value.rstrip(b"\0").decode(errors="replace"), programs, absent)


def _pinned_maps(library_object: Object) -> None:
    """Give the object the maps that are pinned already, so that the tags outlive an upgrade."""
    # key size, value size, entries: tags.h
    shapes = {"tags": (4, 16, 0), "stats": (4, 8, len(stats.NAMES)), "revoke": (8, 4, 65536)}
    for name, shape in shapes.items():
        try:
            fd = syscall.get(str(PINS / name))
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue
            raise
        try:
            info = syscall.map_info(fd)
            if (info.key_size, info.value_size, info.max_entries) == shape:
                # libbpf keeps a duplicate.
                library_object.reuse(name, fd)
            elif name == "tags":
                raise BpfError(
                    str(PINS / name),
                    "made by a version with another form of tag",
                    "drain the host's endpoints and reboot, or `slim-bpf unload` first",
                )
        finally:
            os.close(fd)


def _open(library: Library, path: Path, without: set[str], *, keep_maps: bool) -> Object:
    opened = Object(library, path)
    try:
        for program in without:
            opened.skip(program)
        if keep_maps:
            _pinned_maps(opened)
        opened.load()
    except BaseException:
        opened.close()
        raise
    return opened


def _open_for_kernel(library: Library, path: Path, without: set[str], *, keep_maps: bool) -> Object:
    """Kernels before 6.1 have the hook path_chown but cannot attach to it: leave it out there."""
    try:
        return _open(library, path, without, keep_maps=keep_maps)
    except BpfError:
        if "slim_chown" in without:
            raise
        without.add("slim_chown")
        return _open(library, path, without, keep_maps=keep_maps)


def _clear(directory: Path) -> None:
    """Remove a directory of pins; what only it held is detached."""
    if directory.is_dir():
        for pin in directory.iterdir():
            pin.unlink()
        directory.rmdir()


def _stage(opened: Object, without: set[str], sha256: str) -> None:
    """Attach and pin everything in the staging directory."""
    _clear(STAGING)
    STAGING.mkdir(mode=0o700)
    for name in MAPS:
        syscall.pin(opened.map_fd(name), str(STAGING / name))
    syscall.update(opened.map_fd("about"), struct.pack("=I", 0), sha256.encode().ljust(ABOUT_SIZE))
    for program in (hook.program for hook in HOOKS if hook.program not in without):
        syscall.pin(opened.attach(program), str(STAGING / program))
    for iterator in ITERATORS:
        fd = opened.map_fd("tags") if iterator in MAP_ITERATORS else None
        syscall.pin(opened.attach_iterator(iterator, fd), str(STAGING / iterator))


def _try_alone(library: Library, path: Path, without: set[str], sha256: str) -> None:
    """The load check with maps of its own."""
    opened = _open_for_kernel(library, path, without, keep_maps=False)
    try:
        _stage(opened, without, sha256)
        check.behaves(STAGING)
    finally:
        opened.close()
        _clear(STAGING)


def lacking_hooks(library: Library) -> dict[str, str]:
    """Programs that this kernel has no hook for, and what covers each. Raises BpfError."""
    types = KernelTypes(library)
    try:
        lacking = [hook for hook in HOOKS if not types.hook(hook.hook)]
    finally:
        types.close()
    for hook in lacking:
        if not hook.instead:
            raise BpfError("kernel", f"it lacks the LSM hook {hook.hook}", "use the kernel module")
    return {hook.program: hook.instead for hook in lacking}


def load(path: Path = OBJECT) -> tuple[bool, State]:
    """Load what is not loaded yet, or replace another version; (changed, state after).

    Raises BpfError; then whatever was loaded before is as it was.
    """
    host.require()
    sha256 = digest(path)
    before = state()
    if before.loaded and before.sha256 == sha256:
        try:
            check.attached()
        except BpfError:
            pass  # something was removed by hand: load again
        else:
            return False, before
    library = Library()
    without = set(lacking_hooks(library))
    try:
        if PINS.exists():
            _try_alone(library, path, without, sha256)
        opened = _open_for_kernel(library, path, without, keep_maps=True)
        try:
            _stage(opened, without, sha256)
        finally:
            opened.close()
        check.behaves(STAGING)
        PINS.mkdir(mode=0o700, exist_ok=True)
        wanted = {pin.name for pin in STAGING.iterdir()}
        # Maps after programs, `about` last: who finds it finds everything.
        for name in sorted(wanted, key=lambda name: (name in MAPS, name == "about")):
            (STAGING / name).rename(PINS / name)
        for pin in PINS.iterdir():
            if pin.name not in wanted:
                pin.unlink()
    except OSError as error:
        raise BpfError(str(error.filename or PINS), os.strerror(error.errno or 0)) from error
    finally:
        _clear(STAGING)
    return True, state()


def unload(*, force: bool = False) -> bool:
    """Detach everything; refused while a tagged socket lives. Says whether anything was there."""
    if not PINS.is_dir():
        return False
    if not force:
        with Tags() as tags:
            live = sum(1 for _unused in tags.list())
        if live:
            raise BpfError(
                str(PINS),
                f"{live} tagged sockets live, which their holders could then use freely",
                "drain the host's endpoints first, or --force",
            )
    _clear(PINS)
    return True
