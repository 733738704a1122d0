# SPDX-License-Identifier: Apache-2.0
"""The supervisor's side of the zygote: starts it, asks it for workers, replaces it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import log
from .zygote import MESSAGE_MAX

START_S = 30.0  # a starved machine; normally a tenth of a second
SPAWN_S = 5.0
PACKAGE_DIR = Path(__file__).resolve().parent.parent

_START = (
    "import sys; sys.path[:0] = sys.argv[3:]; from slim_router import zygote;"
    " sys.exit(zygote.main(int(sys.argv[1]), sys.argv[2]))"
)


class NurseryError(RuntimeError):
    """No zygote, or no worker, to be had; the text says why."""


@dataclass(slots=True)
class Child:
    """A worker that was forked. Owns the pidfd and, until taken, the link."""

    pid: int
    pidfd: int
    link: socket.socket

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def release(self) -> None:
        """Forget the process."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Nursery:
    """One zygote at a time. *on_exit* gets (pid, wait status) of each worker's end."""

    def __init__(
        self,
        on_exit: Callable[[int, int], None],
        module: str = "slim_router.worker",
        search: tuple[Path, ...] = (),
    ) -> None:
        self.on_exit = on_exit
        self.module = module
        self.search = (PACKAGE_DIR, *search)
        self.pid = 0
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._hello: asyncio.Future[int] | None = None
        self._next = 0
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Start the zygote and wait until it is ready. Raises NurseryError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # A worker must not speak to the service manager in the supervisor's name.
        hidden = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        environment = {key: value for key, value in os.environ.items() if key not in hidden}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _START, str(theirs.fileno()), self.module]
                + [str(path) for path in self.search],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=environment,
            )
        self._control = ours
        loop = asyncio.get_running_loop()
        self._hello = loop.create_future()
        loop.add_reader(ours.fileno(), self._readable)
        try:
            self.pid = await asyncio.wait_for(self._hello, START_S)
        except TimeoutError:
            await self.stop()
            raise NurseryError(f"zygote: no sign of life within {START_S:g} s") from None
        self.starts += 1

    async def spawn(self, name: str) -> Child:
        """Fork a worker; starts a new zygote if there is none. Raises NurseryError."""
        async with self._lock:
            if self._control is None:
                log.warning("zygote-restart", starts=self.starts)
                await self.start()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._next += 1
        number = self._next
        future: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            with theirs:
                request = json.dumps({"op": "spawn", "id": number, "name": name}).encode()
                await self._send(request, theirs.fileno())
            pid, pidfd = await asyncio.wait_for(asyncio.shield(future), SPAWN_S)
        except BaseException as error:
            ours.close()
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled() and future.exception() is None:
                os.close(future.result()[1])
            if isinstance(error, (OSError, TimeoutError)):
                raise NurseryError(f"zygote: {error or 'no answer'}") from error
            raise
        return Child(pid, pidfd, ours)

    async def _send(self, data: bytes, fd: int) -> None:
        for _unused in range(200):
            if self._control is None:
                raise NurseryError("zygote: it has ended")
            try:
                socket.send_fds(self._control, [data], [fd])
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)
        raise NurseryError("zygote: it takes no requests")

    def _readable(self) -> None:
        while self._control is not None:
            try:
                data, fds, _unused, _unused = socket.recv_fds(self._control, MESSAGE_MAX, 4)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._lost()
                return
            self._handle(json.loads(data), fds)

    def _handle(self, message: dict[str, Any], fds: list[int]) -> None:
        op = message.get("op")
        if op == "hello" and self._hello is not None and not self._hello.done():
            self._hello.set_result(message["pid"])
        elif op == "spawned":
            future = self._waiting.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_result((message["pid"], fds.pop()))
        elif op == "failed":
            future = self._waiting.pop(message["id"], None)
            if future is not None and not future.done():
                future.set_exception(NurseryError(f"zygote: fork: {message['error']}"))
        elif op == "exited":
            self.on_exit(message["pid"], message["status"])
        for fd in fds:
            os.close(fd)

    def _lost(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        log.warning("zygote-ended", pid=self.pid)
        self.pid = 0
        cause = NurseryError("zygote: it has ended; its own line on stderr says why")
        if self._hello is not None and not self._hello.done():
            self._hello.set_exception(cause)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(cause)
        self._waiting.clear()
        if self._process is not None:
            self._reap(self._process)

    @staticmethod
    def _reap(process: subprocess.Popen[bytes], tries: int = 100) -> None:
        """Collect the zygote's status; it ends at once after its socket does."""
        if process.poll() is None:
            if tries == 0:
                process.kill()
            asyncio.get_running_loop().call_later(0.05, Nursery._reap, process, max(0, tries - 1))

    async def stop(self) -> None:
        """End the zygote. Workers end with their own sockets."""
        control, self._control = self._control, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control.fileno())
            control.close()
        if self._process is not None:
            for _unused in range(100):
                if self._process.poll() is not None:
                    return
                await asyncio.sleep(0.02)
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
