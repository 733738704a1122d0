# SPDX-License-Identifier: Apache-2.0
"""Collects the workers' answers to `dump`: connections, listeners, counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .endpoints import Endpoint
from .link import Message

TIMEOUT_S = 3.0
ROWS_MAX = 200_000
"""Rows kept of one worker: more would be a worker gone wrong."""


@dataclass(slots=True)
class Dump:
    """What one worker answered."""

    endpoint: Endpoint
    connections: list[dict[str, Any]] = field(default_factory=list)
    listeners: list[Any] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    cause: str = "no full answer"
    """Of what is missing, if it is not complete."""


class Dumps:
    """Asks workers and puts their pieces together."""

    def __init__(self) -> None:
        self.unheard: Callable[[Endpoint], str] = lambda _unused: ""  # Registry.unheard
        self._next = 0
        self._open: dict[int, tuple[Dump, asyncio.Event]] = {}

    async def collect(
        self, endpoints: Iterable[Endpoint], *, connections: bool = True, timeout: float = TIMEOUT_S
    ) -> list[Dump]:
        """The dump of every worker that is up; incomplete where one took too long, or where
        there is none to speak for connections that its predecessor had.

        Without *connections* the workers are told that their counters are enough.
        """
        wanted: dict[int, tuple[Dump, asyncio.Event]] = {}
        mute = []
        for ep in endpoints:
            if not ep.up:
                if connections and (cause := self.unheard(ep)):
                    mute.append(Dump(ep, cause=cause))
                continue
            self._next += 1
            number = self._next
            entry = (Dump(ep), asyncio.Event())
            wanted[number] = self._open[number] = entry
            if not ep.tell({"op": "dump", "id": number, "connections": connections}):
                del self._open[number]
                entry[1].set()
        try:
            async with asyncio.timeout(timeout):
                for _unused, event in wanted.values():
                    await event.wait()
        except TimeoutError:
            pass
        finally:
            for number in wanted:
                self._open.pop(number, None)
        return [dump for dump, _unused in wanted.values()] + mute

    def on_dumped(self, ep: Endpoint, message: Message) -> None:
        """One piece. Raises KeyError, TypeError, ValueError when malformed."""
        entry = self._open.get(message["id"])
        if entry is None or entry[0].endpoint is not ep:
            return
        dump, event = entry
        rows, listeners, counters = (
            message.get("connections") or [],
            message.get("listeners") or [],
            message.get("counters") or {},
        )
        if not isinstance(rows, list) or not isinstance(listeners, list):
            raise TypeError("connections or listeners")
        if len(dump.connections) + len(rows) <= ROWS_MAX:
            dump.connections.extend(row for row in rows if isinstance(row, dict))
        if len(dump.listeners) + len(listeners) <= ROWS_MAX:
            dump.listeners.extend(listeners)
        for name, value in counters.items():
            if isinstance(value, (int, float)):
                dump.counters[str(name)] = int(value)
        if message.get("last"):
            dump.complete = True
            del self._open[message["id"]]
            event.set()

    def on_gone(self, ep: Endpoint) -> None:
        """The worker has ended: nobody need wait for it."""
        for number, (dump, event) in list(self._open.items()):
            if dump.endpoint is ep:
                del self._open[number]
                event.set()
