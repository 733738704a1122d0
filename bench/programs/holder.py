# SPDX-License-Identifier: Apache-2.0
"""Both ends of many connections, and a connector that takes the time.

    holder.py serve IP PORT...          accepts, reads what comes; commands as below:
        read PORT                       {"bytes": N}: read of all connections to it
    holder.py hold IP                   commands on standard input, one JSON answer a line:
        open PORT COUNT                 {"slim": N}: connections opened and held
        die PORT                        waits until each of that port is dead:
                                        {"first", "last": monotonic s, "dead": N}
        close PORT                      {}: closes what is held
        look PORT                       {"alive": N}: a byte is written to each
        pour PORT                       {}: blocks are written to one after the other ...
        halt PORT                       {"bytes": N}: ... until now; written so far, in all
    holder.py connect IP PORT           the same with
        start                           {}: connects and closes, every 5 ms
        stop                            {"us": [latency of each connect]}

Not in the tables of programs: `python -m bench.revoke` uses it.
"""

from __future__ import annotations

import contextlib
import json
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

SO_NETNS_COOKIE = 71  # asm-generic/socket.h
RESET = struct.pack("ii", 1, 0)
PAUSE_S = 0.005  # between connects: delays are to be seen, not made
BLOCKS, BLOCK = 10, bytes(512)  # written in each pause


def _many_files() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(address: str, ports: list[str]) -> None:
    epoll = select.epoll()
    listeners: dict[int, socket.socket] = {}
    held: dict[int, tuple[socket.socket, int]] = {}
    found = dict.fromkeys(map(int, ports), 0)
    for port in found:
        sock = socket.create_server((address, port), backlog=4096)
        sock.setblocking(False)
        listeners[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
    epoll.register(sys.stdin, select.EPOLLIN)
    print("READY", flush=True)
    while True:
        for fd, _event in epoll.poll():
            if fd == sys.stdin.fileno():
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps({"bytes": found[int(line.split()[1])]}), flush=True)
                continue
            if fd in listeners:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _peer = listeners[fd].accept()
                        sock.setblocking(False)
                        held[sock.fileno()] = sock, listeners[fd].getsockname()[1]
                        epoll.register(sock, select.EPOLLIN)
                continue
            sock, port = held[fd]
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            found[port] += len(data)
            if not data:
                epoll.unregister(fd)
                held.pop(fd)[0].close()


class _Holder:
    def __init__(self, address: str) -> None:
        self.address = address
        self.held: dict[int, list[socket.socket]] = {}
        self.sent: dict[int, int] = {}
        self.stop = threading.Event()
        self.pouring: threading.Thread | None = None
        with socket.socket() as probe:
            self.home = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)

    def tell(self, verb: str, *words: str) -> dict[str, object]:
        port, *count = map(int, words)
        if verb == "open":
            return self.open(port, *count)
        verbs = {
            "die": self.die, "look": self.look, "close": self.close, "pour": self.pour,
            "halt": self.halt,
        }  # fmt: skip
        return verbs[verb](port)

    def open(self, port: int, count: int) -> dict[str, object]:
        slim = 0
        for _unused in range(count):
            sock = socket.create_connection((self.address, port), timeout=30)
            slim += sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8) != self.home
            self.held.setdefault(port, []).append(sock)
        return {"slim": slim}

    def die(self, port: int) -> dict[str, object]:
        epoll = select.epoll()
        socks = self.held.pop(port)
        for sock in socks:
            epoll.register(sock, 0)  # errors and hang-ups only
        dead, first, last = 0, 0.0, 0.0
        deadline = time.monotonic() + 30
        while dead < len(socks) and time.monotonic() < deadline:
            for fd, _event in epoll.poll(1, 4096):
                last = time.monotonic()
                first = first or last
                dead += 1
                epoll.unregister(fd)
        epoll.close()
        for sock in socks:
            sock.close()
        return {"first": first, "last": last, "dead": dead}

    def look(self, port: int) -> dict[str, object]:
        alive = 0
        for sock in self.held.get(port, []):
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
                self.sent[port] = self.sent.get(port, 0) + 1
                alive += sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        return {"alive": alive}

    def pour(self, port: int) -> dict[str, object]:
        def run() -> None:
            at = 0
            while not self.stop.wait(PAUSE_S):
                for _unused in range(BLOCKS):
                    sock = self.held[port][at % len(self.held[port])]
                    sock.sendall(BLOCK)  # an error ends the thread, and bytes will be missing
                    self.sent[port] = self.sent.get(port, 0) + len(BLOCK)
                    at += 1

        self.stop.clear()
        self.pouring = threading.Thread(target=run)
        self.pouring.start()
        return {}

    def halt(self, port: int) -> dict[str, object]:
        assert self.pouring is not None
        self.stop.set()
        self.pouring.join()
        return {"bytes": self.sent.get(port, 0)}

    def close(self, port: int) -> dict[str, object]:
        for sock in self.held.pop(port, []):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        return {}


class _Connector:
    def __init__(self, address: str, port: int) -> None:
        self.name = (address, port)
        self.stop = threading.Event()
        self.us: list[float] = []
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        while not self.stop.is_set():
            began = time.monotonic()
            sock = socket.create_connection(self.name, timeout=30)
            self.us.append(round((time.monotonic() - began) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
            self.stop.wait(PAUSE_S)

    def tell(self, verb: str) -> dict[str, object]:
        if verb == "start":
            self.stop.clear()
            self.us = []
            self.thread = threading.Thread(target=self.run)
            self.thread.start()
            return {}
        assert self.thread is not None
        self.stop.set()
        self.thread.join()
        return {"us": self.us}


def main() -> None:
    """Play the part that the arguments name."""
    signal.signal(signal.SIGTERM, lambda *_unused: sys.exit(0))
    _many_files()
    part, address, *rest = sys.argv[1:]
    if part == "serve":
        _serve(address, rest)
    holder, connector = _Holder(address), _Connector(address, int(rest[0]) if rest else 0)
    print("READY", flush=True)
    for line in sys.stdin:
        verb, *words = line.split()
        answer = connector.tell(verb) if part == "connect" else holder.tell(verb, *words)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
