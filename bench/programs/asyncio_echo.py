# SPDX-License-Identifier: Apache-2.0
"""Echo over asyncio streams: asyncio_echo.py serve IP PORT | ask IP PORT SECONDS.

Plain standard library: it runs inside endpoints, with and without SlimSocket.
"""

import asyncio
import itertools
import json
import sys
import time

TASKS = 16
SIZE = 64


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back until the client ends."""
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def serve(ip: str, port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.start_server(echo, ip, port, backlog=512)
    async with server:
        await server.serve_forever()


class Tally:
    """What all tasks counted."""

    def __init__(self) -> None:
        self.good = 0
        self.wrong = 0
        self.first = ""
        self.numbers = itertools.count()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One message there and back."""
        message = next(self.numbers).to_bytes(8, "big") * (SIZE // 8)
        writer.write(message)
        await writer.drain()
        if await asyncio.wait_for(reader.readexactly(SIZE), 10) == message:
            self.good += 1
        else:
            self.fail("another message came back")

    def fail(self, text: str) -> None:
        """Count an error and remember the first."""
        self.wrong += 1
        self.first = self.first or text


async def keep(ip: str, port: int, until: float, tally: Tally) -> None:
    """Messages on one connection."""
    try:
        reader, writer = await asyncio.open_connection(ip, port)
        while time.monotonic() < until:
            await tally.exchange(reader, writer)
        writer.close()
    except (OSError, EOFError, TimeoutError) as error:
        tally.fail(repr(error))


async def reconnect(ip: str, port: int, until: float, tally: Tally) -> None:
    """A connection per message."""
    while time.monotonic() < until and tally.wrong < 100:
        try:
            reader, writer = await asyncio.open_connection(ip, port)
            await tally.exchange(reader, writer)
            writer.close()
        except (OSError, EOFError, TimeoutError) as error:
            tally.fail(repr(error))


async def ask(ip: str, port: int, seconds: float) -> dict[str, object]:
    """Both loads, one after the other."""
    result: dict[str, object] = {"wrong": 0, "first": ""}
    for name, work in (("messages", keep), ("connects", reconnect)):
        tally = Tally()
        begun = time.monotonic()
        await asyncio.gather(*(work(ip, port, begun + seconds, tally) for _unused in range(TASKS)))
        result[name] = tally.good / (time.monotonic() - begun)
        result["wrong"] = int(str(result["wrong"])) + tally.wrong
        result["first"] = result["first"] or tally.first
    return result


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(sys.argv[2], int(sys.argv[3])))
    else:
        print(json.dumps(asyncio.run(ask(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))))
