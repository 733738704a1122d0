# SPDX-License-Identifier: Apache-2.0
"""Cold connects, each to a listener that nobody has connected to before.

    cold.py serve ADDRESS FIRST COUNT     listens on COUNT ports from FIRST on, echoes;
                                          prints "ready"
    cold.py connect ADDRESS FIRST COUNT blocking|epoll|poll|select|asyncio
                                          one connect to each port; prints
                                          "slim=S overlay=O slowest-us=U"

The path is judged on the connected socket itself: a host connection belongs to another
network namespace (SO_NETNS_COOKIE).
"""

from __future__ import annotations

import asyncio
import errno
import select
import selectors
import socket
import sys
import time

import pyconf

slowest = 0.0


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
    while True:
        for fd, _unused in poller.poll():
            if fd in listeners:
                try:
                    sock, _unused = listeners[fd].accept()
                except BlockingIOError:
                    continue
                sock.setblocking(False)
                links[sock.fileno()] = sock
                poller.register(sock, select.EPOLLIN)
            else:
                try:
                    data = links[fd].recv(65536)
                except OSError:
                    data = b""
                if data:
                    links[fd].sendall(data)
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
    global slowest
    with socket.socket() as sock:
        sock.setblocking(False)
        begin = time.perf_counter()
        status = sock.connect_ex(address)
        slowest = max(slowest, time.perf_counter() - begin)
        pyconf.check(status in (0, errno.EINPROGRESS), f"connect {status}")
        if way == "poll":
            poller = select.poll()
            poller.register(sock, select.POLLOUT)
            pyconf.check(poller.poll(8000), "no event")
        elif way == "select":
            pyconf.check(select.select([], [sock], [], 8)[1], "no event")
        else:
            with selectors.EpollSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                pyconf.check(selector.select(8), "no event")
        pyconf.check(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "SO_ERROR")
        use(sock)


async def by_asyncio(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    sock = writer.get_extra_info("socket")
    pyconf.note_path(sock)
    writer.write(b"cold")
    pyconf.check(await reader.readexactly(4) == b"cold", "echo differs")
    writer.close()
    await writer.wait_closed()


def connect(address: str, first: int, count: int, way: str) -> None:
    for port in range(first, first + count):
        if way == "blocking":
            with socket.create_connection((address, port)) as sock:
                use(sock)
        elif way == "asyncio":
            asyncio.run(by_asyncio((address, port)))
        else:
            by_loop((address, port), way)
    print(f"slim={pyconf.slim} overlay={pyconf.overlay} slowest-us={slowest * 1e6:.0f}")


if sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
else:
    connect(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
