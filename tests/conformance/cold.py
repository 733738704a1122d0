# SPDX-License-Identifier: Apache-2.0
"""Cold connects, each to a listener that nobody has connected to before.

    cold.py serve ADDRESS FIRST COUNT     listens on COUNT ports from FIRST on; says "slim"
                                          or "over" to who asks for the "path", else echoes;
                                          prints "ready"
    cold.py connect ADDRESS FIRST COUNT blocking|epoll|poll|select|asyncio
                                          one connect to each port; prints
                                          "slim=S overlay=O slowest-us=U held-us=H"

cold.js and Cold.java connect in the ways of their own. The path is judged on the connected
socket itself: a host connection belongs to another network namespace (SO_NETNS_COOKIE).
Those two, which cannot ask that, let the server look at its end.

U is the longest connect() of a non-blocking socket, H the longest that an event loop with a
timer of a millisecond was away from it: in epoll_wait, in connect(), in SO_ERROR (see
pyconf.Watch).
"""

from __future__ import annotations

import asyncio
import errno
import select
import selectors
import socket
import sys
import time
from collections.abc import Iterable

import pyconf

TICK_S = 0.001


call = pyconf.Watch()  # connect() of a non-blocking socket
turn = pyconf.Watch()  # of an event loop


def serve(address: str, first: int, count: int) -> None:
    listeners = {}
    poller = select.epoll()
    for port in range(first, first + count):
        listener = socket.create_server((address, port), backlog=16)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poller.register(listener, select.EPOLLIN)
    print("ready", flush=True)
    links: dict[int, socket.socket] = {}
    paths: dict[int, bytes] = {}
    while True:
        for fd, _unused in poller.poll():
            if fd in listeners:
                try:
                    sock, _unused = listeners[fd].accept()
                except BlockingIOError:
                    continue
                sock.setblocking(False)
                links[sock.fileno()] = sock
                paths[sock.fileno()] = b"slim" if pyconf.note_path(sock) else b"over"
                poller.register(sock, select.EPOLLIN)
            else:
                try:
                    data = links[fd].recv(65536)
                except OSError:
                    data = b""
                if data:
                    links[fd].sendall(paths[fd] if data == b"path" else data)
                else:
                    poller.unregister(fd)
                    links.pop(fd).close()


def use(sock: socket.socket) -> None:
    """The connection must carry data, whichever path it took."""
    pyconf.note_path(sock)
    sock.settimeout(8)
    sock.sendall(b"cold")
    pyconf.check(sock.recv(16) == b"cold", "echo differs")


def by_loop(address: tuple[str, int], way: str) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        call.look_away()
        turn.look_away()
        status = sock.connect_ex(address)
        call.look()
        pyconf.check(status in (0, errno.EINPROGRESS), f"connect {status}")
        if way == "poll":
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            pyconf.check(poller.poll(8000), "no event")
        elif way == "select":
            pyconf.check(select.select([], [sock], [], 8)[1], "no event")
        else:
            end = time.monotonic() + 8
            with selectors.EpollSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                turn.look()
                while not selector.select(TICK_S):
                    turn.look()
                    pyconf.check(time.monotonic() < end, "no event")
                turn.look()
        pyconf.check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "SO_ERROR")
        if way == "epoll":
            turn.look()
        use(sock)


async def by_asyncio(address: str, ports: Iterable[int]) -> None:
    loop = asyncio.get_running_loop()

    def tick() -> None:
        turn.look()
        loop.call_later(TICK_S, tick)

    turn.look_away()
    tick()
    for port in ports:
        reader, writer = await asyncio.open_connection(address, port)
        sock = writer.get_extra_info("socket")
        pyconf.note_path(sock)
        writer.write(b"cold")
        pyconf.check(await reader.readexactly(4) == b"cold", "echo differs")
        writer.close()
        await writer.wait_closed()


def connect(address: str, first: int, count: int, way: str) -> None:
    ports = range(first, first + count)
    if way == "asyncio":
        asyncio.run(by_asyncio(address, ports))
    for port in ports if way != "asyncio" else ():
        if way == "blocking":
            with socket.create_connection((address, port)) as sock:
                use(sock)
        else:
            by_loop((address, port), way)
    print(
        f"slim={pyconf.slim} overlay={pyconf.overlay}"
        f" slowest-us={call.longest * 1e6:.0f} held-us={turn.longest * 1e6:.0f}"
    )


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
