# SPDX-License-Identifier: Apache-2.0
"""Threads: clients in a pool, socketserver with a thread or a child per connection,
time-outs, create_connection, multiprocessing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import socket
import socketserver
import threading
import time
from typing import Any

import pyconf


def client(peer: pyconf.Peer, number: int) -> None:
    with socket.create_connection(peer.at(pyconf.ECHO), timeout=8) as sock:
        pyconf.note_path(sock)
        pyconf.check(sock.getpeername() == peer.at(pyconf.ECHO), "getpeername")
        pyconf.check(sock.getsockname()[0] == peer.own, "getsockname")
        pyconf.check(sock.gettimeout() == 8, "timeout")
        data = pyconf.pattern(20_000, number)
        sock.sendall(data)
        back = b""
        while len(back) < len(data):
            back += sock.recv(65536)
        pyconf.check(back == data, "echo differs")
        sock.settimeout(0.05)
        begin = time.monotonic()
        try:
            sock.recv(1)
            pyconf.fail("data out of nowhere")
        except TimeoutError:
            pyconf.check(time.monotonic() - begin < 1, "the time-out is late")


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        pyconf.note_path(self.request)
        self.request.sendall(self.request.recv(8))


class Threads(socketserver.ThreadingTCPServer):
    request_queue_size = 128


class Children(socketserver.ForkingTCPServer):
    request_queue_size = 128


def serve(peer: pyconf.Peer, kind: type[socketserver.TCPServer], count: int) -> None:
    with kind((peer.own, 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        order = peer.dial_me(count, "id", server.server_address[1])
        peer.all_ok(order, count)
        server.shutdown()
        thread.join()


def child(peer: pyconf.Peer, number: int) -> None:
    client(peer, number)
    os._exit(0)


def main() -> None:
    peer = pyconf.start(40)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(client, peer, number) for number in range(60)]:
            future.result()
    pyconf.ok("sixteen threads connect")
    serve(peer, Threads, 60)
    pyconf.ok("a thread per connection")
    serve(peer, Children, 20)
    pyconf.ok("a child per connection")
    for method in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(method)
        children = [context.Process(target=child, args=(peer, n)) for n in range(4)]
        for process in children:
            process.start()
        for process in children:
            process.join(20)
            pyconf.check(process.exitcode == 0, f"{method}: exit code {process.exitcode}")
    pyconf.ok("multiprocessing: fork and spawn")
    pyconf.done()


if __name__ == "__main__":
    main()
