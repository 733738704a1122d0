# SPDX-License-Identifier: Apache-2.0
"""asyncio: streams as client and server, many at once, refused, given up."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pyconf


async def client(peer: pyconf.Peer, number: int) -> None:
    reader, writer = await asyncio.open_connection(*peer.at(pyconf.ECHO))
    sock = writer.get_extra_info("socket")
    pyconf.check(writer.get_extra_info("peername") == peer.at(pyconf.ECHO), "peername")
    pyconf.check(writer.get_extra_info("sockname")[0] == peer.own, "sockname")
    pyconf.note_path(sock)
    data = pyconf.pattern(50_000, number)
    writer.write(data)
    back = await reader.readexactly(len(data))
    pyconf.check(back == data, "echo differs")
    writer.write_eof()
    pyconf.check(await reader.read() == b"", "stray bytes")
    writer.close()
    await writer.wait_closed()


async def clients(peer: pyconf.Peer) -> None:
    for number in range(5):
        await client(peer, number)
    await asyncio.gather(*(client(peer, number) for number in range(40)))
    pyconf.ok("forty clients at once")

    try:
        await asyncio.open_connection(*peer.at(pyconf.CLOSED))
        pyconf.fail("connected to a closed port")
    except ConnectionRefusedError:
        pyconf.ok("refused")

    nobody = ".".join(peer.address.split(".")[:2]) + ".250.250"
    for _unused in range(5):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.open_connection(nobody, 80), 0.05)
            pyconf.fail("connected to nobody")
    await client(peer, 77)
    pyconf.ok("connects given up")

    # Given up while in progress to a live peer.
    for _unused in range(20):
        task = asyncio.create_task(asyncio.open_connection(*peer.at(pyconf.ECHO)))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            _unused, writer = await task
            writer.close()
    await client(peer, 78)
    pyconf.ok("cancelled")

    # The loop itself must not be held by a connect to nobody.
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    begin = loop.time()
    attempt = asyncio.create_task(loop.sock_connect(sock, (nobody, 80)))
    await asyncio.sleep(0.01)
    pyconf.check(loop.time() - begin < 0.25, "the loop was held")
    attempt.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await attempt
    sock.close()
    pyconf.ok("the loop goes on")


async def servers(peer: pyconf.Peer) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pyconf.check(writer.get_extra_info("peername")[0] == peer.address, "accepted peername")
        pyconf.note_path(writer.get_extra_info("socket"))
        writer.write(await reader.readexactly(8))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, peer.own, 0, backlog=300)
    port = server.sockets[0].getsockname()[1]
    pyconf.check(server.sockets[0].getsockname()[0] == peer.own, "listener's name")
    async with server:
        order = await asyncio.to_thread(peer.dial_me, 200, "id", port)
        await asyncio.to_thread(peer.all_ok, order, 200)
    pyconf.ok("server, two hundred clients")


def main() -> None:
    peer = pyconf.start(40)
    asyncio.run(clients(peer))
    asyncio.run(servers(peer))
    pyconf.done()


main()
