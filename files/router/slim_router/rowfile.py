# SPDX-License-Identifier: Apache-2.0
"""The connection table of one endpoint in a file, so that it outlives its worker.

Connections live on when a worker ends, and nobody but the worker knew of them. Its
successor finds the rows here: it can judge them, revoke them, list them, and tell the
names of a descriptor that a process has inherited. The file is memory that is mapped
(tmpfs, below the runtime directory): a row costs a few stores, and what a killed worker
has stored is there.

    header   96 bytes: magic, version and size of a record, boot id, zeros
    records  96 bytes each: cookie, since, why, sport, dport, family, flags, src, dst,
             and of host connections: local, remote, lport, rport

A record counts when its flags say "used", which is stored last; its host name, which comes
later, when they say "named". Cookies of sockets are
unique until the machine is rebooted, so that a record can at worst name a socket that is
gone; rows are checked against the kernel by whoever takes them over.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from . import wire
from .row import HostName, Row

MAGIC, VERSION = b"SLIMROWS", 2
RECORD = 96
FIRST = 41
"""Records of a new file: a page with the header."""
RECORDS_MAX = (1 << 20) - 1
"""96 MiB; connections above that are not kept."""

_HEADER = struct.Struct("=8sHH16s68x")
_RECORD = struct.Struct("=QdHHHBB16s16s")
_NAME = struct.Struct("=16sH16sH")
_FLAGS, _NAME_AT = 23, 56  # where in a record
_USED, _OUTGOING, _SLIM, _NAMED = 1, 2, 4, 8
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def _boot_id() -> bytes:
    with open(_BOOT_ID, encoding="ascii") as file:
        return bytes.fromhex(file.read().strip().replace("-", ""))


def kept(path: Path) -> int:
    """Number of rows in the file at *path* that is nobody's now; 0 where there is none, or one
    of another format or of before the last boot. Takes nothing over."""
    try:
        data = path.read_bytes()
        header = _HEADER.pack(MAGIC, VERSION, RECORD, _boot_id())
    except OSError:
        return 0
    if data[:RECORD] != header:
        return 0
    return sum(bool(flags & _USED) for flags in data[RECORD + _FLAGS :: RECORD])


class RowFile:
    """One file; a row has the slot that ``_slots`` says."""

    def __init__(self, fd: int) -> None:
        """*fd* is ours from now on. Waits for a predecessor that is on its way out. A file
        of another format, or of before the last boot, is begun anew. Raises OSError."""
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._fd = fd
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        header = _HEADER.pack(MAGIC, VERSION, RECORD, _boot_id())
        size = os.fstat(fd).st_size
        if size < RECORD or os.pread(fd, RECORD, 0) != header:
            os.ftruncate(fd, 0)
            size = (FIRST + 1) * RECORD
            os.posix_fallocate(fd, 0, size)  # a hole of a full tmpfs would be a SIGBUS
            os.pwrite(fd, header, 0)
        self._records = size // RECORD - 1
        self._map = mmap.mmap(fd, (self._records + 1) * RECORD)

    def close(self) -> None:
        """Let a successor have it."""
        self._map.close()  # (which has a descriptor of its own)
        os.close(self._fd)

    def load(self) -> Iterator[tuple[int, Row]]:
        """Every row that is kept, with its cookie; once, and first of all."""
        now = time.monotonic()
        for slot in range(self._records, 0, -1):
            cookie, since, why, sport, dport, family, flags, src, dst = _RECORD.unpack_from(
                self._map, slot * RECORD
            )
            if not flags & _USED or cookie in self._slots:
                self._clear(slot)
                continue
            self._slots[cookie] = slot
            yield (
                cookie,
                Row(
                    bool(flags & _OUTGOING), bool(flags & _SLIM),
                    why if why in wire.REASONS else wire.R_NONE,
                    src, sport, dst, dport, since if 0.0 <= since <= now else now, family,
                ),
            )  # fmt: skip

    def put(self, cookie: int, row: Row) -> bool:
        """Keep *row*, in the place of another one of the same cookie; False if there is no
        room."""
        if not self._free and not self._grow():
            return False
        slot = self._free.pop()
        at = slot * RECORD
        _RECORD.pack_into(
            self._map, at, cookie, row.since, row.why, row.sport, row.dport, row.family, 0,
            row.src, row.dst,
        )  # fmt: skip
        self._map[at + _FLAGS] = _USED | row.outgoing * _OUTGOING | row.slim * _SLIM
        old = self._slots.get(cookie)
        self._slots[cookie] = slot
        if old is not None:
            self._clear(old)
        return True

    def set_name(self, cookie: int, name: HostName) -> None:
        """Keep *name* with the row of that cookie, if that is kept."""
        slot = self._slots.get(cookie)
        if slot is not None:
            at = slot * RECORD
            _NAME.pack_into(self._map, at + _NAME_AT, *name)
            self._map[at + _FLAGS] |= _NAMED

    def name(self, cookie: int) -> HostName | None:
        """What was kept with the row of that cookie."""
        slot = self._slots.get(cookie)
        if slot is None or not self._map[slot * RECORD + _FLAGS] & _NAMED:
            return None
        return HostName(*_NAME.unpack_from(self._map, slot * RECORD + _NAME_AT))

    def remove(self, cookie: int) -> None:
        """Keep it no longer."""
        slot = self._slots.pop(cookie, None)
        if slot is not None:
            self._clear(slot)

    def _clear(self, slot: int) -> None:
        self._map[slot * RECORD + _FLAGS] = 0
        self._free.append(slot)

    def _grow(self) -> bool:
        """Twice the records; False if there is no room."""
        records = min(2 * self._records + 1, RECORDS_MAX)
        if records <= self._records:
            return False
        size = (records + 1) * RECORD
        try:
            os.posix_fallocate(self._fd, 0, size)
            grown = mmap.mmap(self._fd, size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
                raise
            return False
        self._map.close()
        self._map = grown
        self._free.extend(range(records, self._records, -1))
        self._records = records
        return True
