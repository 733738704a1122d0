# SPDX-License-Identifier: Apache-2.0
"""Data ports: which endpoint has which, kept over restarts in ports.json.

A port that changes would make every peer's location stale, so a port is on disk
before anybody learns of it, and an endpoint that comes back finds its own.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from . import log
from .whole import is_whole

FORMAT = 1


class PortsError(RuntimeError):
    """No port can be had; the text is for the operator."""


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put *data* at *path* so that a crash leaves the old file or the new one.

    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class PortTable:
    """Endpoint name ("tenant/vip") to data port."""

    def __init__(self, path: Path, span: tuple[int, int]) -> None:
        self.path = path
        self.first, self.last = span
        self.ports: dict[str, int] = {}
        self._dirty = False
        self._load()

    def _load(self) -> None:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return
        try:
            self.ports = self._parse(raw)
        except (ValueError, RecursionError) as error:
            aside = self.path.with_name(f"{self.path.name}.corrupt-{time.time_ns()}")
            self.path.replace(aside)
            log.error(
                "ports-file-set-aside", path=self.path, moved_to=aside, cause=error,
                next="nothing: data ports are given out anew, peers learn them over the trunks",
            )  # fmt: skip

    @staticmethod
    def _parse(raw: bytes) -> dict[str, int]:
        value = json.loads(raw)
        if not isinstance(value, dict) or set(value) != {"version", "ports"}:
            raise ValueError("not an object with version and ports")
        if value["version"] != FORMAT:
            raise ValueError(f"version {value['version']!r}, not {FORMAT}")
        ports = value["ports"]
        if not isinstance(ports, dict):
            raise ValueError("ports is not an object")
        for name, port in ports.items():
            if not is_whole(port) or not 1 <= port <= 65535:
                raise ValueError(f"port {port!r} of {name}")
        if len(set(ports.values())) != len(ports):
            raise ValueError("one port given out twice")
        return ports

    def assign(self, names: list[str], avoid: frozenset[int] = frozenset()) -> dict[str, int]:
        """A port for each of *names*, on disk when this returns.

        Names that are not among *names* keep theirs until the range is full.
        *avoid* are ports that somebody else was found to hold. Raises PortsError
        when the range is too small, OSError when the file cannot be written.
        """
        wanted = set(names)
        for name, port in list(self.ports.items()):
            if name in wanted and (not self.first <= port <= self.last or port in avoid):
                del self.ports[name]
                self._dirty = True
        taken = set(self.ports.values()) | avoid
        cursor = self.first
        for name in names:
            if name in self.ports:
                continue
            while cursor <= self.last and cursor in taken:
                cursor += 1
            port = cursor if cursor <= self.last else self._recycle(wanted, avoid, name)
            self.ports[name] = port
            taken.add(port)
            self._dirty = True
        if self._dirty:
            self._store()
        return {name: self.ports[name] for name in names}

    def _recycle(self, wanted: set[str], avoid: frozenset[int], name: str) -> int:
        for old, port in self.ports.items():
            if old not in wanted and self.first <= port <= self.last and port not in avoid:
                del self.ports[old]
                return port
        raise PortsError(
            f"endpoint {name}: no data port left in {self.first} to {self.last};"
            " widen data_ports in router.json"
        )

    def _store(self) -> None:
        data = json.dumps({"version": FORMAT, "ports": self.ports}, indent=1).encode() + b"\n"
        replace_file(self.path, data)
        self._dirty = False
