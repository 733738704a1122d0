# SPDX-License-Identifier: Apache-2.0
"""The file behind the flow log: appended to, bounded, rotated by us. Knows nothing of flows.

PATH is written to; PATH.1 is the one before, and so on: together no more than max_bytes x
files, whatever is logged. Only one thread may use an object of this.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path

MODE = 0o640
RETRY_S = 1.0
"""Seconds between tries at a file that could not be written."""

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FlowFile:
    """Lines in; what cannot be written is refused at once, and tried again a second later."""

    def __init__(self, path: Path, max_bytes: int, files: int) -> None:
        """*max_bytes* of one file; *files*, the one that is written to included."""
        self.path = path
        self.max_bytes = max_bytes
        self.files = files
        self.cause = ""
        """Why it cannot be written now."""
        self.rotations = 0
        self._fd = -1
        self._size = 0
        self._tried = -RETRY_S

    def write(self, lines: list[bytes]) -> int:
        """Append *lines*, each with its newline; how many of them were written.

        Raises nothing: `cause` says what is wrong. A line is written whole or not at all.
        """
        if self.cause and time.monotonic() - self._tried < RETRY_S:
            return 0
        written = 0
        try:
            self._check()
            while written < len(lines):
                piece, count = self._fitting(lines, written)
                if not count:
                    self._rotate()
                    continue
                self._append(piece)
                written += count
            self.cause = ""
        except OSError as error:
            self.cause = f"{self.path}: {error.strerror or error}"
            self._tried = time.monotonic()
            self.close()
        return written

    def _fitting(self, lines: list[bytes], start: int) -> tuple[bytes, int]:
        """The lines from *start* on that still fit; a single one too long for a file fits an
        empty one."""
        size, end = self._size, start
        while end < len(lines) and (
            size + len(lines[end]) <= self.max_bytes or (not size and end == start)
        ):
            size += len(lines[end])
            end += 1
        return b"".join(lines[start:end]), end - start

    def _append(self, piece: bytes) -> None:
        written = os.write(self._fd, piece)
        if written != len(piece):
            # No half a line for whoever reads; what was refused counts as not written.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += written

    def _check(self) -> None:
        """Have the file open that is at the path now. Raises OSError."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                there = os.lstat(self.path)
                if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                    self._size = mine.st_size
                    return
            self.close()  # somebody has moved or removed it
        fd = os.open(self.path, _FLAGS, MODE)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file; move it, or choose another path")
            os.fchmod(fd, MODE)
        except BaseException:
            os.close(fd)
            raise
        self._fd, self._size = fd, found.st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self.files - 1, 0, -1):
            older = self._numbered(number)
            newer = self._numbered(number - 1)
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
        if self.files == 1:
            self.path.unlink(missing_ok=True)
        self.rotations += 1
        self._check()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path

    def close(self) -> None:
        """Let go of the file; the next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
