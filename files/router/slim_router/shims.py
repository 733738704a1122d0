# SPDX-License-Identifier: Apache-2.0
"""One connection from a shim, and what it may ask. Everything it sends is hostile."""

from __future__ import annotations

import array
import os
import socket
from typing import TYPE_CHECKING

from . import wire
from .listeners import Listener
from .loop import HUP
from .sockets import cookie_of

if TYPE_CHECKING:
    from .worker import Worker

SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since 5.14
MAX_FDS = 3
ANCILLARY = socket.CMSG_SPACE(MAX_FDS * 4)
SHIMS = 8192  # connections per endpoint


class Hostile(Exception):
    """The shim broke the protocol; the connection to it is closed."""


def taken(fd: int) -> socket.socket:
    """A socket of our own for *fd*, which the caller closes. Raises Hostile, OSError."""
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError as error:
        os.close(copy)  # socket() does not take what it refuses
        raise Hostile("a descriptor that is no socket") from error


class Shim:
    """A kept SEQPACKET connection from one process of the container."""

    __slots__ = ("worker", "sock", "greeted")

    def __init__(self, worker: Worker, sock: socket.socket) -> None:
        self.worker = worker
        self.sock = sock
        self.greeted = False
        sock.setblocking(False)
        worker.loop.add(sock.fileno(), 1, self.on_message)

    def reply(self, message: bytes, *fds: int) -> None:
        """Send one record; a shim that does not read is let go."""
        ancillary = ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds)),) if fds else ()
        try:
            self.sock.sendmsg((message,), ancillary, socket.MSG_NOSIGNAL)
        except OSError:
            self.worker.count("shim_gone")
            self.worker.loop.next_pass(self.close)

    def close(self) -> None:
        if self.sock.fileno() >= 0:
            self.worker.loop.remove(self.sock.fileno())
            self.sock.close()
            self.worker.shims.discard(self)
            self.worker.outbound.abandon(self)

    def on_message(self, mask: int) -> None:
        if mask & HUP:
            # It has given up on whatever it asked: doing it now would leave a
            # connection at the peer that nobody holds.
            self.close()
            return
        fds: list[int] = []
        try:
            data, ancillary, flags, _unused = self.sock.recvmsg(wire.MSG_SIZE + 1, ANCILLARY)
            for level, kind, raw in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
            if not data:
                self.close()
                return
            if len(data) != wire.MSG_SIZE or flags & socket.MSG_CTRUNC:
                raise Hostile("record of a wrong size")
            self.handle(data, fds)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionResetError:
            self.close()
        except (OSError, Hostile):
            self.worker.count("shim_hostile")
            self.close()
        finally:
            for fd in fds:
                if fd >= 0:
                    os.close(fd)

    def handle(self, data: bytes, fds: list[int]) -> None:
        """Act on one record. Descriptors left in *fds* are closed by the caller."""
        (
            magic, version, kind, seq, flags, error, _local, peer,
            lport, pport, family, count, cookie, value, _commit,
        ) = wire.MSG.unpack(data)  # fmt: skip
        if magic != wire.MSG_MAGIC:
            raise Hostile("not a record of ours")
        outbound = self.worker.outbound
        if kind == wire.CONNECT and self.greeted:
            if family not in (2, 10) or not pport:
                raise Hostile("connect to nowhere")
            outbound.connect(self, seq, flags, peer, pport, lport, family, cookie, value)
        elif kind == wire.BEGIN and self.greeted:
            outbound.begin(value, lport)
        elif kind == wire.SWAP and self.greeted:
            outbound.swap(self, seq, value, error)
        elif kind == wire.COMMITTED and self.greeted:
            outbound.committed(cookie)
        elif kind == wire.CANCEL and self.greeted:
            if value:
                outbound.cancel(outbound.attempts.get(value))
            elif cookie:
                outbound.warm_failed(cookie)
            else:
                # connections that took the overlay without an answer of ours
                self.worker.counters["connect_overlay_no_router"] += count
                self.worker.gate.watch_on_demand()
        elif kind == wire.LISTEN and self.greeted:
            self.listen(seq, flags, family, value, cookie, fds)
        elif kind == wire.WHO and self.greeted:
            self.who(seq, cookie)
        elif kind == wire.SYNC and self.greeted:
            self.sync(seq)
        elif kind == wire.JOIN and self.greeted:
            self.join(fds)
        elif kind == wire.HELLO and not self.greeted:
            self.greet(seq, version, value)
        else:
            raise Hostile("a record that makes no sense here")

    def greet(self, seq: int, version: int, highest: int) -> None:
        if version > wire.VERSION or highest < wire.VERSION:
            self.reply(wire.message(wire.ERROR, seq, error=93))  # EPROTONOSUPPORT
            return
        worker = self.worker
        if worker.tag is not None and not worker.may_serve(self.sock):
            self.reply(wire.message(wire.ERROR, seq, error=1))  # EPERM: do not ask again soon
            worker.loop.next_pass(self.close)
            return
        self.greeted = True
        worker.count("shim_greetings")
        bounds = worker.bounds
        head = wire.message(
            wire.WELCOME, seq, flags=wire.F_SECURE if worker.tag is not None else 0,
            local=worker.vip, count=len(worker.prefixes), error=bounds["reply_us"],
            value=bounds["swap_us"] | bounds["blocking_swap_us"] << 32,
        )  # fmt: skip
        self.reply(head + b"".join(wire.PREFIX.pack(addr, bits) for addr, bits in worker.prefixes))

    def join(self, fds: list[int]) -> None:
        """JOIN: serve the other end of a pair that the shim made."""
        if len(fds) != 1:
            raise Hostile("join without its descriptor")
        sock = taken(fds[0])
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            sock.close()
            raise Hostile("a connection that is none")
        if self.worker.tag is not None and not self.worker.of_endpoint(sock):
            sock.close()
            self.worker.count("shim_refused_namespace")
            return
        self.worker.add_shim(sock)

    def sync(self, seq: int) -> None:
        """SYNC: answer when every end of a listener has been seen, and its peers know."""
        for listener in self.worker.listeners.by_cookie.values():
            listener.unshare()
        done = wire.message(wire.SYNCED, seq)
        self.worker.loop.next_pass(lambda: self.worker.when_withdrawn(lambda: self.reply(done)))

    # --- listeners -----------------------------------------------------------
    def listen(
        self, seq: int, flags: int, family: int, backlog: int, cookie: int, fds: list[int]
    ) -> None:
        """LISTEN: take the overlay listener over, put a channel in its place."""
        recover = bool(flags & wire.F_RECOVER)
        if len(fds) != (3 if recover else 2):
            raise Hostile("listen without its descriptors")
        sock = taken(fds[0])
        try:
            self._check_listener(sock)
        except (OSError, Hostile):
            sock.close()
            self.worker.count("listen_refused")
            self.reply(wire.message(wire.ERROR, seq, error=22))
            return
        known = self.worker.listeners.by_cookie.get(cookie_of(sock))
        if known is not None:
            sock.close()
            if known.shared is not None:
                self.reply(wire.message(wire.LISTENING, seq), known.shared)
            else:
                self.reply(wire.message(wire.ERROR, seq, error=16))  # EBUSY
            return
        try:
            channel = taken(fds[1])
        except Hostile:
            sock.close()
            raise
        if channel.family != socket.AF_UNIX or channel.type != socket.SOCK_SEQPACKET:
            sock.close()
            channel.close()
            raise Hostile("a channel that is none")
        if self.worker.tag is not None and not self.worker.of_endpoint(channel):
            sock.close()
            channel.close()
            raise Hostile("a channel of another namespace")
        name = sock.getsockname()
        listener = Listener(
            self.worker, sock, channel, cookie, wire.pack_addr(name[0].partition("%")[0]), name[1],
            min(backlog, 65535), os.dup(fds[2]) if recover else None,
        )  # fmt: skip
        self.worker.listeners.add(listener)
        self.worker.count("listens")
        self.reply(wire.message(wire.LISTENING, seq))

    def _check_listener(self, sock: socket.socket) -> None:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
            raise Hostile("not a TCP socket")
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL) != socket.IPPROTO_TCP:
            raise Hostile("not a TCP socket")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise Hostile("not listening")
        owner = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        if owner != self.worker.netns_cookie:
            raise Hostile("a listener of another namespace")

    def who(self, seq: int, cookie: int) -> None:
        """WHO: the virtual names of a socket that a process has inherited."""
        listener = self.worker.listeners.by_channel.get(cookie)
        if listener is not None:
            self.reply(
                wire.message(
                    wire.NAMES,
                    seq,
                    flags=wire.F_LISTENER,
                    local=listener.addr,
                    lport=listener.port,
                    family=listener.sock.family,
                ),
                listener.sock.fileno(),
            )
            return
        row = self.worker.table.rows.get(cookie)
        if row is None or not row.slim:
            self.reply(wire.message(wire.NAMES, seq, error=2))  # ENOENT
            return
        ours, theirs = (row.src, row.sport), (row.dst, row.dport)
        if not row.outgoing:
            ours, theirs = theirs, ours
        self.reply(
            wire.message(
                wire.NAMES,
                seq,
                local=ours[0],
                lport=ours[1],
                peer=theirs[0],
                pport=theirs[1],
                cookie=cookie,
                family=row.family,
            )
        )
