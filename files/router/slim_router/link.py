# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of the socket to one worker.

Messages are JSON objects, descriptors beside them (docs/architecture.md,
"Supervisor and worker"). Sending never blocks: what the worker does not take is
queued within bounds, and a worker that takes nothing for too long is given up.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import json
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MESSAGE_MAX = 60_000
"""Bytes of one message, the contract's bound."""

QUEUE_MAX = 4096
"""Messages that wait for a slow worker; one more and it is given up."""

SHIM_QUEUE_MAX = 256
"""Of those, new shims: a container that floods us must not cost its worker's life."""

STALL_S = 5.0
"""Seconds without progress after which a worker that has mail is given up."""

SEND_BUFFER = 4 << 20
READ_BATCH = 64
SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h

Message = dict[str, Any]


class WorkerLink:
    """One worker's socket on the supervisor's loop.

    *on_message* gets each decoded message, *on_closed* a reason, once; after
    that the link is dead.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self.sock = sock
        self.on_message = on_message
        self.on_closed = on_closed
        self.closed = False
        self.dropped_shims = 0
        self._queue: collections.deque[tuple[bytes, tuple[int, ...], bool]] = collections.deque()
        self._queued_shims = 0
        self._stall: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        except OSError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self._loop.add_reader(sock.fileno(), self._readable)

    # --- out ------------------------------------------------------------------

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send or queue one message. The caller keeps its *fds*.

        False when the link is dead, or dies of this message.
        """
        return self._submit(_encode(message), fds, shim=False)

    def send_encoded(self, data: bytes) -> bool:
        """:meth:`send` of a message that is encoded already, at most MESSAGE_MAX bytes."""
        return self._submit(data, (), shim=False)

    def send_shim(self, fd: int) -> bool:
        """Hand over a new shim connection; False if it cannot be taken: close it."""
        return self._submit(b'{"op":"shim"}', (fd,), shim=True)

    def send_vips(self, op: str, vips: Iterable[str]) -> None:
        """`unlocate` of many vips, cut to messages of a lawful size."""
        batch = list(vips)
        for start in range(0, len(batch), 1000):
            self.send({"op": op, "vips": batch[start : start + 1000]})

    def _submit(self, data: bytes, fds: Sequence[int], *, shim: bool) -> bool:
        if self.closed:
            return False
        if not self._queue:
            try:
                if self._transmit(data, fds):
                    return True
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS and shim:
                    # Too many descriptors in flight for our user (unix(7)).
                    self.dropped_shims += 1
                    return False
                if error.errno != errno.ETOOMANYREFS:
                    self.close(f"send: {error.strerror}")
                    return False
        if shim:
            if self._queued_shims >= SHIM_QUEUE_MAX:
                self.dropped_shims += 1
                return False
            self._queued_shims += 1
        elif len(self._queue) >= QUEUE_MAX:
            self.close(f"{QUEUE_MAX} messages wait for it")
            return False
        self._queue.append((data, tuple(os.dup(fd) for fd in fds), shim))
        if len(self._queue) == 1:
            self._loop.add_writer(self.sock.fileno(), self._writable)
            self._watch()
        return True

    def _transmit(self, data: bytes, fds: Sequence[int]) -> bool:
        """True when the kernel took it, False when it is full. Raises OSError."""
        try:
            if fds:
                socket.send_fds(self.sock, [data], list(fds), socket.MSG_NOSIGNAL)
            else:
                self.sock.send(data, socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return False
            raise
        return True

    def _writable(self) -> None:
        progress = False
        for _unused in range(READ_BATCH):
            if not self._queue:
                break
            data, fds, shim = self._queue[0]
            try:
                if not self._transmit(data, fds):
                    break
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:
                    break
                self.close(f"send: {error.strerror}")
                return
            progress = True
            self._queue.popleft()
            self._queued_shims -= shim
            for fd in fds:
                os.close(fd)
        if not self._queue:
            self._loop.remove_writer(self.sock.fileno())
        if progress:
            self._watch()

    def _watch(self) -> None:
        """(Re)start the clock of a worker that has mail."""
        if self._stall is not None:
            self._stall.cancel()
        self._stall = None
        if self._queue:
            self._stall = self._loop.call_later(
                STALL_S, self.close, f"takes no messages for {STALL_S:g} s"
            )

    # --- in -------------------------------------------------------------------

    def _readable(self) -> None:
        # A bounded batch: one talkative worker does not starve the others.
        for _unused in range(READ_BATCH):
            try:
                data = self.sock.recv(MESSAGE_MAX + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self.close(f"receive: {error.strerror}")
                return
            if not data:
                self.close("it has ended")
                return
            try:
                message = json.loads(data) if len(data) <= MESSAGE_MAX else None
                if not isinstance(message, dict):
                    raise ValueError("not an object of a lawful size")
            except (ValueError, RecursionError) as error:
                self.close(f"sent garbage: {error}")
                return
            self.on_message(message)
            if self.closed:
                return

    def close(self, reason: str) -> None:
        """Give the worker up. Tells *on_closed* once."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self.sock.fileno())
        self._loop.remove_writer(self.sock.fileno())
        if self._stall is not None:
            self._stall.cancel()
        for _data, fds, _droppable in self._queue:
            for fd in fds:
                os.close(fd)
        self._queue.clear()
        self.sock.close()
        self.on_closed(reason)


def _encode(message: Message) -> bytes:
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_MAX:
        raise ValueError(f"op {message.get('op')}: {len(data)} bytes, {MESSAGE_MAX} are possible")
    return data
