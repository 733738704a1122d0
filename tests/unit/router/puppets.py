# SPDX-License-Identifier: Apache-2.0
"""The test's side of fake_worker.py: every fake worker reports here and obeys."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any


class Puppet:
    """One fake worker."""

    def __init__(self, writer: asyncio.StreamWriter, config: dict[str, Any], pid: int) -> None:
        self.writer = writer
        self.config = config
        self.pid = pid
        self.seen: list[dict[str, Any]] = []
        self.news = asyncio.Event()
        self.gone = False

    def do(self, **command: Any) -> None:
        """Give an order: send=MESSAGE, exit=STATUS, hang=True."""
        self.writer.write(json.dumps(command).encode() + b"\n")

    def send(self, **message: Any) -> None:
        """Have it send *message* to its supervisor."""
        self.do(send=message)

    async def get(self, op: str, timeout: float = 10.0, **fields: Any) -> dict[str, Any]:
        """The next message with this op and these fields; it is taken out."""
        end = asyncio.get_running_loop().time() + timeout
        while True:
            for message in self.seen:
                if message["op"] == op and all(message.get(k) == v for k, v in fields.items()):
                    self.seen.remove(message)
                    return message
            self.news.clear()
            left = end - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self.news.wait(), max(0.001, left))
            except TimeoutError:
                raise AssertionError(
                    f"no {op} {fields} within {timeout:g} s: {self.seen}"
                ) from None


class Puppets:
    """Waits for fake workers."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "puppets.sock"
        self.all: list[Puppet] = []
        self._server: asyncio.Server | None = None
        self._seen = 0

    async def __aenter__(self) -> Puppets:
        self._server = await asyncio.start_unix_server(self._one, self.path, limit=1 << 20)
        os.environ["SLIM_TEST_PUPPETS"] = str(self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        os.environ.pop("SLIM_TEST_PUPPETS", None)
        self.path.unlink(missing_ok=True)
        for puppet in self.all:
            puppet.writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = json.loads(await reader.readline())
        puppet = Puppet(writer, first["config"], first["pid"])
        self.all.append(puppet)
        try:
            while line := await reader.readline():
                puppet.seen.append(json.loads(line))
                puppet.news.set()
        except OSError:
            pass
        puppet.gone = True
        puppet.news.set()

    async def worker(self, name: str, after: Puppet | None = None, timeout: float = 10.0) -> Puppet:
        """The living fake worker of endpoint *name*, other than *after*."""
        end = asyncio.get_running_loop().time() + timeout
        while asyncio.get_running_loop().time() < end:
            for puppet in reversed(self.all):
                if puppet.config["name"] == name and not puppet.gone and puppet is not after:
                    return puppet
            await asyncio.sleep(0.01)
        raise AssertionError(f"no worker {name} within {timeout:g} s")
