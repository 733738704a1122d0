# SPDX-License-Identifier: Apache-2.0
"""The worker: the SlimRouter process that serves one endpoint.

Single-threaded; nothing here may block. Forked from the zygote, it gets its
configuration, its data listener and the endpoint's network namespace over the
socket to the supervisor (docs/architecture.md), and exits when that closes.
"""

from __future__ import annotations

import array
import collections
import contextlib
import ctypes
import json
import os
import random
import select
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from ipaddress import ip_network
from typing import Any

from . import callers, secure, sockdiag, sockopts, wire
from .filters import Filters
from .flows import Flows
from .gate import Gate
from .inbound import Inbound
from .listeners import Listeners
from .loop import IN, Loop
from .outbound import Outbound
from .overlay import Found, Overlay
from .peers import Location
from .rowfile import RowFile
from .shims import SHIMS, SO_NETNS_COOKIE, Shim
from .table import PERIOD, Table, describe

CLONE_NEWNET = 0x40000000
MAX_MESSAGE = 65536
DUMP_PIECE = 100  # rows a message: below the 60,000 bytes of the contract
PRIORITY = -10
USING_LOOKS = 4  # looks at the kernel (table.PERIOD) between words on leases in use
USING_PIECE = 1000  # vips a message
BARRIERS = 64  # peers that a closing listener waits for
WITHDRAW_S = 0.03  # and for how long
UNTAGGED_S = 60.0  # between words to the supervisor on sockets that cannot be tagged
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(netns: int) -> None:
    """setns(2); os.setns exists from Python 3.12 only."""
    if _libc.setns(netns, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


class Worker:
    """State of one endpoint; the halves of the work live in Inbound, Outbound, Shim."""

    def __init__(
        self, link: socket.socket, config: dict[str, Any], data: socket.socket, netns: int,
        kept: RowFile | None = None,
    ) -> None:  # fmt: skip
        """*kept*: the connections that a predecessor of ours handed over."""
        self.link = link
        self.name: str = config["name"]
        self.vip = wire.pack_addr(config["vip"])
        self.bounds: dict[str, int] = config["bounds"]
        self.prefixes = [
            (
                wire.pack_addr(str(net.network_address)),
                net.prefixlen + (96 if net.version == 4 else 0),
            )
            for net in map(ip_network, config["overlay"])
        ]
        self.networks = [(int.from_bytes(addr, "big"), 128 - bits) for addr, bits in self.prefixes]
        self.loop = Loop()
        self.counters: collections.Counter[str] = collections.Counter()
        self.shims: set[Shim] = set()
        self.looks = 0
        self.flushing = False
        self.withdrawals: set[int] = set()  # questions behind withdrawals, unanswered
        self.waiting: list[Callable[[], None]] = []
        # In secure mode: tag a host socket, whose SO_COOKIE is known, or say that it must
        # not leave. None otherwise, which is all that the set-up path then looks at.
        self.tag: Callable[[socket.socket, int], bool] | None = None
        # Sets mark, priority and the like on a host socket; None where there is nothing to.
        self.dress: Callable[[socket.socket, int], None] | None = None
        self.mark = 0  # of the data listener
        self.backend: secure.Backend | None = None
        self.barred = -1  # pidfd of the refused process that the operator has been told of
        self.untagged_said = -UNTAGGED_S
        self.host_netns = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.endpoint_netns = netns
        self.diag = [sockdiag.open_netlink()]
        ports = (32768, 60999)
        _enter(netns)
        try:
            self.diag.append(sockdiag.open_netlink())
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                raw = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
                self.netns_cookie = int.from_bytes(raw, "little")
            # /proc/sys/net shows the namespace of whoever reads it.
            with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
                low, high = map(int, file.read().split())
                ports = (low, high)
        finally:
            _enter(self.host_netns)
        # A supervisor that has a policy sends our part of it before anything else.
        self.gate = Gate(self, awaited=bool(config.get("policy")))
        self.table = Table(self.live, self.loop.next_pass, self.live_parts, kept)
        self.loop.next_pass(self.table.reap)
        self.listeners = Listeners(self)
        self.inbound = Inbound(self, data)
        self.limit(config.get("limits"))
        self.outbound = Outbound(self, ports)
        self.overlay = Overlay(self, ports)
        patience = self.bounds.get("filters_s", 0)
        self.filters = Filters(self, patience) if patience else None
        self.pending: collections.deque[bytes] = collections.deque()
        # Notes for the flow log; None where there is none, which is all that costs then.
        self.flows = Flows(self) if config.get("flow_log") else None
        self.data_name: tuple[str, int] = data.getsockname()[:2]
        link.setblocking(False)
        self.loop.add(link.fileno(), IN, self.on_link)
        self.loop.after(PERIOD, self._look)

    # --- rates and classes of service ------------------------------------------
    def limit(self, message: dict[str, Any] | None) -> None:
        """Host connections are made with these options from now on; None: with none."""
        chosen = sockopts.treatments(message)
        mark = 0 if chosen is None else chosen.default.mark
        if mark != self.mark:
            self.mark = mark
            self.inbound.mark_listener()
        if chosen is None:
            self.dress = None
            return
        treatments = chosen

        def dress(sock: socket.socket, port: int) -> None:
            try:
                treatments.dress(sock, port)
            except OSError:
                # Better a connection without than none; the counter tells the operator.
                self.count("not_dressed")

        self.dress = dress

    # --- secure mode -----------------------------------------------------------
    def guard(self, backend: secure.Backend) -> None:
        """Hand no host socket over that *backend*, which is open, has not tagged."""

        def tag(sock: socket.socket, cookie: int) -> bool:
            try:
                backend.tag(sock.fileno(), cookie)
            except OSError as error:
                self._untagged(error)
                return False
            return True

        self.tag, self.backend = tag, backend

    def _untagged(self, error: OSError) -> None:
        self.count("not_tagged")
        now = time.monotonic()
        if now - self.untagged_said >= UNTAGGED_S:
            self.untagged_said = now
            self.tell(op="untagged", cause=str(error))

    def may_serve(self, sock: socket.socket) -> bool:
        """Secure mode: is the process behind *sock* one that a tag holds?"""
        found, pidfd = callers.judge(sock, os.fstat(self.endpoint_netns).st_ino)
        if found is None:
            return True
        self.count("shim_refused_capability" if found.pid else "shim_refused_unknown")
        if self.barred >= 0 or pidfd < 0:
            # One at a time is told of; the operator has to look at the container anyway.
            if pidfd >= 0:
                os.close(pidfd)
            return False
        self.barred = pidfd
        self.loop.add(pidfd, IN, self._unbar)
        self.tell(op="barred", who=found.who, cause=found.cause, next=found.step)
        return False

    def _unbar(self, _mask: int) -> None:
        """The process that was refused has ended."""
        self.loop.remove(self.barred)
        os.close(self.barred)
        self.barred = -1
        self.tell(op="barred", who="", cause="", next="")

    def of_endpoint(self, sock: socket.socket) -> bool:
        """Was *sock* made in the endpoint's network namespace?"""
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        return int.from_bytes(raw, "little") == self.netns_cookie

    def endpoint_socket(self, family: int) -> socket.socket:
        """A new non-blocking TCP socket in the endpoint's own namespace."""
        _enter(self.endpoint_netns)
        try:
            return socket.socket(
                family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        finally:
            _enter(self.host_netns)

    def open_diag(self, place: int) -> socket.socket:
        """A socket to ask the kernel on that nobody else asks on: *place* 0 of the host's
        namespace, 1 of the endpoint's. Raises OSError."""
        if not place:
            return sockdiag.open_netlink()
        _enter(self.endpoint_netns)
        try:
            return sockdiag.open_netlink()
        finally:
            _enter(self.host_netns)

    def live(self, want_info: bool) -> Iterator[sockdiag.Sock]:
        """Every live TCP socket of the host's and of the endpoint's namespace."""
        for part in self.live_parts(want_info):
            yield from part

    def live_parts(self, want_info: bool = False) -> list[Iterator[sockdiag.Sock]]:
        """The same by namespace and family; each must be exhausted before the next."""
        return [
            sockdiag.dump(diag, family, sockdiag.LIVE, want_info)
            for diag in self.diag
            for family in (socket.AF_INET, socket.AF_INET6)
        ]

    def _look(self) -> None:
        self.table.reap()
        self.gate.look()
        self.inbound.prune()
        self.outbound.prune()
        self.looks += 1
        if self.looks % USING_LOOKS == 0:
            self._say_using()
        self.loop.after(PERIOD * random.uniform(0.8, 1.2), self._look)

    def _say_using(self) -> None:
        """Tell the supervisor whose leases we hold: their trunks must stay."""
        now = time.monotonic()
        leases = self.outbound.leases.items()
        vips = list({peer for (peer, _unused), lease in leases if lease.until > now})
        for start in range(0, len(vips), USING_PIECE):
            piece = vips[start : start + USING_PIECE]
            self.tell(op="using", vips=[wire.unpack_addr(vip) for vip in piece])

    def count(self, what: str) -> None:
        self.counters[what] += 1

    def may_be_slim(self, addr: bytes) -> bool:
        """Could an overlay connection from *addr* be the shadow of a cold connect?"""
        return addr != self.vip and self.covers(addr)

    def covers(self, addr: bytes) -> bool:
        """Is it an address of the overlay?"""
        value = int.from_bytes(addr, "big")
        return any((value ^ network) >> shift == 0 for network, shift in self.networks)

    def withdraw(self, port: int) -> None:
        """We accept no more on *port*: peers with a lease must hear of it."""
        now = time.monotonic()
        # The admissions themselves stay: the site's filters have not changed, and
        # a server that is back at once takes what was sent in good faith.
        admitted = self.inbound.admitted.items()
        vips = [
            src for (src, admitted_port), until in admitted if admitted_port == port and until > now
        ]
        if vips:
            self.tell(op="withdraw", port=port, vips=[wire.unpack_addr(src) for src in vips])
            # Messages keep their order all the way: an answer to a question that
            # was sent behind the withdrawal says that the withdrawal has arrived.
            for src in vips[:BARRIERS]:
                self.withdrawals.add(self.inbound.ask(src, 0, port))

    def when_withdrawn(self, call: Callable[[], None]) -> None:
        """Run *call* when no peer can hold a withdrawn lease, or after ``WITHDRAW_S``."""
        if not self.withdrawals:
            call()
            return
        if not self.waiting:
            self.loop.after(WITHDRAW_S, self._withdrawn)
        self.waiting.append(call)

    def _withdrawn(self) -> None:
        self.withdrawals.clear()
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    # --- supervisor ------------------------------------------------------------
    def tell(self, **message: object) -> None:
        """Queue one message to the supervisor."""
        self.pending.append(json.dumps(message, separators=(",", ":")).encode())
        self._flush()

    def _flush_again(self) -> None:
        self.flushing = False
        self._flush()

    def _flush(self) -> None:
        while self.pending:
            try:
                self.link.send(self.pending[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                if not self.flushing:
                    self.flushing = True
                    self.loop.after(0.005, self._flush_again)
                return
            except OSError:
                self.loop.running = False
                return
            self.pending.popleft()

    def on_link(self, _mask: int) -> None:
        for _unused in range(32):
            try:
                data, ancillary, _flags, _unused = self.link.recvmsg(
                    MAX_MESSAGE, socket.CMSG_SPACE(8)
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, ancillary = b"", []
            if not data:
                self.loop.running = False  # no supervisor, no worker: shims find the next one
                return
            message = json.loads(data)
            self.handle(message, _descriptors(ancillary))
            if message["op"] == "policy":
                return  # a piece takes milliseconds: whoever connects comes first

    def await_policy(self) -> None:
        """Return when our part of the policy is in force: nobody may be served before."""
        while self.gate.awaited and self.loop.running:
            select.select([self.link], [], [])
            self.on_link(IN)

    def add_shim(self, sock: socket.socket) -> None:
        """Serve one more shim connection, if there is room."""
        if len(self.shims) >= SHIMS:
            self.count("shim_crowded")
            sock.close()
        else:
            self.shims.add(Shim(self, sock))

    def handle(self, message: dict[str, Any], fds: list[int]) -> None:
        """One message from the supervisor, which we trust."""
        op = message["op"]
        if op == "shim":
            for fd in fds:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
                self.add_shim(sock)
        elif op == "located":
            found = bool(message["found"])
            location = Location(
                wire.pack_addr(message["vip"]), found, int(message.get("reason") or 0)
            )
            if found:
                location.address, location.port = message["address"], int(message["port"])
                location.key_id = int(message["key_id"])
                location.mac = wire.keyed_mac(bytes.fromhex(message["key"]))
            self.outbound.on_located(location)
        elif op == "unlocate":
            vips = message["vips"]
            self.outbound.on_unlocate(
                None if vips is None else [wire.pack_addr(vip) for vip in vips]
            )
        elif op == "pair":
            key = bytes.fromhex(message["key"]) if message["ok"] else None
            self.inbound.on_pair(int(message["key_id"]), wire.pack_addr(message["vip"]), key)
        elif op == "unpair":
            self.inbound.on_unpair(set(message["key_ids"]))
        elif op == "withdraw":
            self.outbound.on_withdraw(wire.pack_addr(message["vip"]), int(message["port"]))
        elif op == "query":
            self.loop.next_pass(lambda: self.on_query(message, 5))
        elif op == "answer":
            number = int(message["id"])
            if number in self.withdrawals:
                self.withdrawals.discard(number)
                if not self.withdrawals:
                    self._withdrawn()
            else:
                self.inbound.on_answer(number, bool(message["probe"]))
        elif op == "dump":
            self.dump(message["id"], bool(message.get("connections", True)))
        elif op == "policy":
            self.gate.on_piece(message)
        elif op == "limits":
            self.limit(message["limits"])
        elif op == "revoke":
            self.gate.revoke(int(message["id"]), message["cookies"])
        elif op == "flow_log":
            if bool(message["on"]) != (self.flows is not None):
                self.flows = Flows(self) if message["on"] else None
        elif op == "stop":
            if self.flows is not None:
                self.flows.finish()
            self.loop.running = False

    def on_query(self, message: dict[str, Any], patience: int) -> None:
        """Are we probing? An attempt without a port yet is given *patience* ms to tell."""
        if message["sport"] == 0:  # only asks whether what came before has arrived
            self.tell(op="answer", id=message["id"], probe=False)
            return
        probing = self.outbound.probing(
            wire.pack_addr(message["dst"]), int(message["dport"]), int(message["sport"])
        )
        if probing is None and patience > 0:
            self.loop.after(0.001, lambda: self.on_query(message, patience - 1))
            return
        self.tell(op="answer", id=message["id"], probe=bool(probing))

    def dump(self, number: int, connections: bool) -> None:
        """Answer with the counters, or with the connections besides: the table's, and what the
        kernel has over the overlay. Applications have their turn between the two."""
        if not connections:
            self._answer(number, [])
            return
        rows = self.table.report(self.name)

        def done(found: Found) -> None:
            now = time.monotonic()
            self._answer(
                number, rows + [describe(self.name, row, sock, now) for row, sock in found]
            )

        self.loop.in_steps(self._unasked(), done)

    def _unasked(self) -> Generator[None, None, Found]:
        try:
            return (yield from self.overlay.unasked())
        except OSError:
            self.count("look_failed")
            return []

    def _answer(self, number: int, rows: list[dict[str, object]]) -> None:
        for start in range(0, max(1, len(rows)), DUMP_PIECE):
            last = start + DUMP_PIECE >= len(rows)
            self.tell(
                op="dumped", id=number, last=last, connections=rows[start : start + DUMP_PIECE],
                listeners=self.listeners.report()[:200] if last else [],
                counters=self.counters | {"rows_unkept": self.table.unkept} if last else {},
            )  # fmt: skip


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
    return fds


def _row_file(fd: int) -> RowFile | None:
    try:
        return RowFile(fd)
    except OSError as error:  # a full disk: serve without
        os.write(2, f"level=warning event=rows-not-kept cause={error}\n".encode())
        os.close(fd)
        return None


def main(link: socket.socket) -> int:
    """Serve one endpoint until the supervisor goes; *link* is the socket to it."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Applications wait for us, event loops for a few milliseconds only: a busy host
    # must not keep us from answering.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    data, ancillary, _flags, _unused = link.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(12))
    fds = _descriptors(list(ancillary))
    if not data:
        return 0
    config = json.loads(data)
    if config.get("op") != "config" or len(fds) not in (2, 3):
        raise ValueError("worker: the first message is not a configuration with its descriptors")
    kept = _row_file(fds[2]) if len(fds) == 3 else None
    worker = Worker(link, config, socket.socket(fileno=fds[0]), fds[1], kept)
    # First: the end of a link with unread mail would swallow what we say below.
    worker.await_policy()
    try:
        backend = secure.make(config["secure"])
        if backend is not None:
            backend.open()
            secure.prove(
                backend, lambda: _enter(worker.endpoint_netns), lambda: _enter(worker.host_netns)
            )
            worker.guard(backend)
    except secure.SecureError as error:
        worker.tell(op="insecure", cause=str(error))
        return 0
    worker.tell(op="ready", pid=os.getpid())
    worker.loop.run()
    return 0
