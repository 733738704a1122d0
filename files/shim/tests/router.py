# SPDX-License-Identifier: Apache-2.0
"""A router of a few lines for the shim's tests: honest, or wrong in one way.

It answers what docs/protocol.md says a worker answers, with host connections to an echo
server of its own; or it lies (`Router.lie`), and then the shim has to cope.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

from slim_router import wire

VIP, PEER = "10.44.0.1", "10.44.0.2"
OURS = wire.pack_addr(VIP)
SO_COOKIE = 57
BOUNDS = 20_000 | 100_000 << 32  # event loops, blocking calls: microseconds
REPLY_US = 30_000
BUSY_S = 0.06  # longer than an event loop waits for a greeting
REPLIES = {
    wire.CONNECT: wire.PLAIN, wire.SWAP: wire.KEEP, wire.LISTEN: wire.LISTENING,
    wire.WHO: wire.NAMES, wire.SYNC: wire.SYNCED,
}  # fmt: skip


def cookie_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def pid_of(sock: socket.socket) -> int:
    """Who made this end's other end."""
    pid: int = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    return pid


class Echo(threading.Thread):
    """Sends everything back; of connections to a prepared port the COMMIT is taken off first."""

    def __init__(self, plain: list[socket.socket], prepared: list[socket.socket]) -> None:
        super().__init__(daemon=True)
        self.epoll = select.epoll()
        self.socks: dict[int, tuple[socket.socket, int]] = {}
        for sock in plain + prepared:
            self.socks[sock.fileno()] = (sock, -1 if sock in plain else -wire.COMMIT_SIZE - 1)
            self.epoll.register(sock.fileno(), select.EPOLLIN)
        self.start()

    def run(self) -> None:
        while True:
            for fd, _unused in self.epoll.poll():
                sock, left = self.socks[fd]
                if left < 0:
                    fresh, _unused = sock.accept()
                    self.socks[fresh.fileno()] = (fresh, -left - 1)
                    self.epoll.register(fresh.fileno(), select.EPOLLIN)
                else:
                    self._echo(sock, left)

    def _echo(self, sock: socket.socket, left: int) -> None:
        try:
            data = sock.recv(left or 4096)
            if data and left:
                self.socks[sock.fileno()] = (sock, left - len(data))
                return
            if data:
                sock.sendall(data)
                return
        except OSError:
            pass
        self.epoll.unregister(sock.fileno())
        del self.socks[sock.fileno()]
        sock.close()


def send(sock: socket.socket, data: bytes, *fds: int) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


class Router:
    """Serves one Unix socket path; `way` is how connects end, `lie` what is wrong."""

    def __init__(
        self, path: Path, host: tuple[str, int], prepared: tuple[str, int], way: str, lie: str,
        secure: bool = False,
    ) -> None:  # fmt: skip
        self.host, self.prepared, self.way, self.lie = host, prepared, way, lie
        self.greeting = wire.F_SECURE if secure else 0
        self.greetings = 0
        self.hung = False
        self.greeted: set[int] = set()  # processes that have been kept waiting once
        self.rows: dict[int, tuple[int, bytes, int]] = {}  # lport, peer, pport by cookie
        self.listeners: dict[int, socket.socket] = {}
        self.asked: set[int] = set()
        self.offers: dict[int, tuple[bytes, int]] = {}
        self.sport = 20000
        self.door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door.bind(str(path))
        path.chmod(0o666)
        self.door.listen(256)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _unused = self.door.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while True:
                raw, ancillary, _unused, _unused = sock.recvmsg(200, socket.CMSG_SPACE(64))
                fds = array.array("i")
                for _unused, _unused, data in ancillary:
                    fds.frombytes(data)
                try:
                    if len(raw) != wire.MSG_SIZE:
                        return
                    fields = wire.MSG.unpack(raw)
                    kind, seq, flags = fields[2:5]
                    peer, lport, pport = fields[7:10]
                    cookie, value = fields[12:14]
                    self.asked.add(kind)
                    if self.lie and not self._honest_here(kind):
                        if not self._lied(sock, kind, seq):
                            return
                    else:
                        self._answer(sock, kind, seq, flags, peer, lport, pport, cookie, value, fds)
                finally:
                    for fd in fds:
                        os.close(fd)

    def _honest_here(self, kind: int) -> bool:
        """Lies about the greeting are told there, others after an honest one."""
        if kind in (wire.JOIN, wire.BEGIN, wire.CANCEL, wire.COMMITTED):
            return True
        if self.lie.startswith("welcome_"):
            return False
        if self.lie == "silent_swap":
            return kind != wire.SWAP
        if self.lie == "busy":
            return True
        if self.lie == "hangs_at_swap":
            self.hung = self.hung or kind == wire.SWAP
            return not self.hung
        return kind == wire.HELLO or self.lie.startswith("channel_")

    def _lied(self, sock: socket.socket, kind: int, seq: int) -> bool:
        """Answer wrongly; False: hang up."""
        right = REPLIES.get(kind, wire.WELCOME)
        lie = self.lie.removeprefix("welcome_")
        if lie == "truncated":
            send(sock, wire.message(right, seq)[:40])
        elif lie == "wrong_type":
            send(sock, wire.message(wire.SWAPPED if kind != wire.SWAP else wire.WARM, seq))
        elif lie == "wrong_seq":
            for step in range(1, 200):
                send(sock, wire.message(right, seq + step))
        elif lie == "extra_descriptors":
            with socket.socket() as spare:
                send(sock, wire.message(right, seq, error=1), *[spare.fileno()] * 20)
        elif lie == "count":
            send(sock, wire.message(wire.WELCOME, seq, count=65535) + bytes(20 * 300))
        elif lie == "bounds":  # every bound as long as it can be said
            head = wire.message(
                wire.WELCOME, seq, local=OURS, count=1, error=0x7FFFFFFF, value=0x7FFFFFFF7FFFFFFF
            )
            if kind == wire.HELLO:
                send(sock, head + wire.PREFIX.pack(wire.pack_addr("10.44.0.0"), 112))
        elif lie == "no_descriptor":
            send(
                sock,
                wire.message(
                    {wire.CONNECT: wire.WARM, wire.SWAP: wire.SWAPPED}.get(kind, right), seq
                ),
            )
        elif lie == "error":
            send(sock, wire.message(wire.ERROR, seq, error=0xFFFFFFF))
        elif lie == "garbage":
            send(sock, os.urandom(300))
        elif lie == "closes":
            return False
        else:
            assert lie in ("silent", "silent_swap", "hangs_at_swap"), lie
        return True

    def _answer(
        self, sock: socket.socket, kind: int, seq: int, flags: int, peer: bytes, lport: int, pport: int,
        cookie: int, value: int, fds: array.array[int],
    ) -> None:  # fmt: skip
        if kind == wire.HELLO:
            self.greetings += 1
            if self.lie == "busy" and (pid := pid_of(sock)) not in self.greeted:
                self.greeted.add(pid)
                time.sleep(BUSY_S)
            if self.way == "refused":
                send(sock, wire.message(wire.ERROR, seq, error=1))
                return
            head = wire.message(
                wire.WELCOME, seq, flags=self.greeting, local=OURS, count=1, error=REPLY_US,
                value=BOUNDS,
            )  # fmt: skip
            send(sock, head + wire.PREFIX.pack(wire.pack_addr("10.44.0.0"), 112))
        elif kind == wire.CONNECT:
            self._connect(sock, seq, flags, peer, lport, pport)
        elif kind == wire.SWAP:
            peer, pport = self.offers.get(value, (wire.ZERO16, 0))
            if self.way == "keep" or not pport:
                send(sock, wire.message(wire.KEEP, seq, error=wire.R_NOT_READY))
            else:
                self._hand(sock, wire.SWAPPED, seq, self.prepared, peer, self._port(), pport)
        elif kind == wire.LISTEN:
            listener = socket.socket(fileno=os.dup(fds[0]))
            channel = socket.socket(fileno=os.dup(fds[1]))
            self.listeners[cookie] = listener
            threading.Thread(target=self._pump, args=(listener, channel), daemon=True).start()
            send(sock, wire.message(wire.LISTENING, seq))
        elif kind == wire.WHO:
            row = self.rows.get(cookie)
            if row is None:
                send(sock, wire.message(wire.NAMES, seq, error=2))
            else:
                send(
                    sock,
                    wire.message(
                        wire.NAMES,
                        seq,
                        local=OURS,
                        lport=row[0],
                        peer=row[1],
                        pport=row[2],
                        family=2,
                    ),
                )
        elif kind == wire.SYNC:
            send(sock, wire.message(wire.SYNCED, seq))
        elif kind == wire.JOIN:
            end = socket.socket(fileno=os.dup(fds[0]))
            threading.Thread(target=self._serve, args=(end,), daemon=True).start()

    def _port(self) -> int:
        self.sport += 1
        return self.sport

    def _connect(
        self, sock: socket.socket, seq: int, flags: int, peer: bytes, lport: int, pport: int
    ) -> None:
        if self.way == "plain":
            send(sock, wire.message(wire.PLAIN, seq, error=wire.R_UNKNOWN_PEER))
        elif self.way == "forbidden":
            send(sock, wire.message(wire.REFUSED, seq, error=errno.ECONNREFUSED))
        elif self.way == "warm":
            self._hand(
                sock,
                wire.WARM,
                seq,
                self.host,
                peer,
                lport or self._port(),
                pport,
                flags & wire.F_NONBLOCK,
            )
        elif self.way == "cut":  # warm, and reset as soon as the application has spoken
            listener = socket.create_server((self.host[0], 0))
            self._hand(
                *(sock, wire.WARM, seq, listener.getsockname(), peer, self._port(), pport),
                flags & wire.F_NONBLOCK,
            )
            threading.Thread(target=self._cut, args=(listener,), daemon=True).start()
        elif self.way == "dead":  # warm, but nobody is there
            self._hand(
                sock,
                wire.WARM,
                seq,
                ("127.0.0.1", 1),
                peer,
                self._port(),
                pport,
                flags & wire.F_NONBLOCK,
            )
        else:
            number = self._port()
            self.offers[number] = (peer, pport)
            send(sock, wire.message(wire.COLD, seq, value=number))

    @staticmethod
    def _cut(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as sock:
            sock.recv(wire.HELLO_SIZE + 1, socket.MSG_WAITALL)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _hand(
        self, sock: socket.socket, kind: int, seq: int, to: tuple[str, int], peer: bytes, sport: int,
        pport: int, nonblock: int = 1,
    ) -> None:  # fmt: skip
        with socket.socket() as host:
            host.setblocking(False)
            host.connect_ex(to)
            if kind == wire.SWAPPED:
                ready = select.poll()
                ready.register(host, select.POLLOUT)
                ready.poll(1000)
            if not nonblock:
                host.setblocking(True)
            cookie = cookie_of(host)
            self.rows[cookie] = (sport, peer, pport)
            send(
                sock,
                wire.message(kind, seq, local=OURS, peer=peer, lport=sport, pport=pport, family=2, cookie=cookie,
                             commit=b"SLC" + bytes(21)),
                host.fileno(),
            )  # fmt: skip

    # --- accept channels ---------------------------------------------------------
    def _pump(self, listener: socket.socket, channel: socket.socket) -> None:
        listener.setblocking(False)
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        poll.register(channel, 0)
        with listener, channel, contextlib.suppress(OSError):
            if self.lie.startswith("channel_"):
                self._spoil(channel)
            while True:
                for fd, _unused in poll.poll():
                    if fd == channel.fileno():
                        return
                    sock, peer = listener.accept()
                    if self.way == "host":
                        self._deliver(channel, sock, peer)
                        continue
                    with sock:
                        sock.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                        send(
                            channel,
                            wire.message(wire.ACCEPTED, flags=wire.F_OVERLAY, local=OURS, lport=7100,
                                         peer=wire.pack_addr(peer[0]), pport=peer[1], cookie=cookie_of(sock)),
                            sock.fileno(),
                        )  # fmt: skip

    def _deliver(self, channel: socket.socket, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A host connection in the place of the overlay's *sock*, to the same client."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs, _unused = server.accept()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            send(
                channel,
                wire.message(wire.ACCEPTED, local=OURS, lport=7100, peer=wire.pack_addr(peer[0]),
                             pport=peer[1], cookie=cookie_of(theirs)),
                theirs.fileno(),
            )  # fmt: skip
        for source, sink in ((ours, sock), (sock, ours)):
            threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with source, contextlib.suppress(OSError):
            source.setblocking(True)
            while data := source.recv(4096):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _spoil(self, channel: socket.socket) -> None:
        """What no worker sends, before what it does."""
        null = os.open("/dev/null", os.O_RDWR)
        good = wire.message(wire.ACCEPTED, local=OURS, peer=OURS, cookie=1)
        lie = self.lie.removeprefix("channel_")
        if lie == "garbage":
            for size in (1, 95, 97, 300):
                send(channel, os.urandom(size))
                send(channel, os.urandom(size), null)
        elif lie == "descriptors":
            send(channel, good, *[null] * 30)
            send(channel, good)
            send(channel, good[:50], null, null)
        elif lie == "closes":
            channel.close()
        os.close(null)
