# SPDX-License-Identifier: Apache-2.0
"""The zygote: a process that has imported what a worker needs, and forks workers.

It is started as a program of its own (``python -I -S``), not forked from the
supervisor: workers then share the pages of an interpreter that never imported
asyncio or ssl, whatever the supervisor had loaded before, and a zygote that
died can be replaced while workers and supervisor go on.

Talk with the supervisor: SEQPACKET, one JSON object a message.

===========  ==========================  ==================================
from         message                     descriptors
===========  ==========================  ==================================
supervisor   spawn: id, name             the worker's end of its socket pair
zygote       hello: pid
zygote       spawned: id, pid            the worker's pidfd
zygote       failed: id, error
zygote       exited: pid, status         (status as waitpid(2) gives it)
===========  ==========================  ==================================

It ends when the supervisor's end is closed. It must stay small and must import
nothing that a worker does not need.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import types

MESSAGE_MAX = 4096


def _complain(text: str) -> None:
    try:
        os.write(2, f"level=error event=zygote {text}\n".encode())
    except OSError:
        pass


def _raise_file_limit() -> None:
    """Workers hold many sockets: take the whole hard limit."""
    import resource

    _unused, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):
        pass


def _child(module: types.ModuleType, fd: int, name: str) -> int:
    """What the forked child does; returns its exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Keep standard streams and the link (moved to 3); drop whatever else there is.
    if fd != 3:
        os.dup2(fd, 3, inheritable=False)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(f"slim-w-{name}"[:15])
    except OSError:
        pass
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, 3)
    return int(module.main(link) or 0)


class Zygote:
    """The loop: messages of the supervisor, ends of the children."""

    def __init__(self, control: socket.socket, module: types.ModuleType) -> None:
        self.control = control
        self.module = module
        self.children: dict[int, int] = {}  # pidfd -> pid
        self.poll = select.poll()

    def tell(self, message: dict[str, object], fds: list[int] | None = None) -> None:
        """One message to the supervisor; blocking: it has nothing better to do than read."""
        data = json.dumps(message).encode()
        if fds:
            socket.send_fds(self.control, [data], fds)
        else:
            self.control.send(data)

    def spawn(self, request: dict[str, object], fd: int) -> None:
        """Fork a worker that owns *fd*."""
        try:
            pid = os.fork()
        except OSError as error:
            self.tell({"op": "failed", "id": request["id"], "error": str(error)})
            return
        if pid == 0:
            status = 70  # EX_SOFTWARE, sysexits.h
            try:
                status = _child(self.module, fd, str(request["name"]))
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status & 0xFF)
        pidfd = os.pidfd_open(pid)
        self.children[pidfd] = pid
        self.poll.register(pidfd, select.POLLIN)
        self.tell({"op": "spawned", "id": request["id"], "pid": pid}, [pidfd])

    def reap(self, pidfd: int) -> None:
        """A child has ended."""
        pid = self.children.pop(pidfd)
        self.poll.unregister(pidfd)
        os.close(pidfd)
        _unused, status = os.waitpid(pid, 0)
        self.tell({"op": "exited", "pid": pid, "status": status})

    def receive(self) -> bool:
        """One message of the supervisor; False when it is gone."""
        data, fds, _unused, _unused = socket.recv_fds(self.control, MESSAGE_MAX, 4)
        try:
            if not data:
                return False
            request = json.loads(data)
            if request.get("op") == "spawn" and len(fds) == 1:
                self.spawn(request, fds[0])
        except ValueError as error:
            _complain(f"cause={error}")
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def run(self) -> int:
        """Serve until the supervisor is gone."""
        self.poll.register(self.control, select.POLLIN)
        self.tell({"op": "hello", "pid": os.getpid()})
        while True:
            for fd, _unused in self.poll.poll():
                if fd in self.children:
                    self.reap(fd)
                elif not self.receive():
                    return 0


def main(fd: int, module_name: str = "slim_router.worker") -> int:
    """Serve the supervisor behind *fd*; returns the exit status."""
    # A service manager signals every process of the unit; the supervisor alone
    # decides, and we see that by the end of its socket.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    control.set_inheritable(False)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        cause = json.dumps(f"cannot import {module_name}: {error!r}")
        _complain(f'cause={cause} next="reinstall the router"')
        return 1
    _raise_file_limit()
    gc.collect()
    gc.freeze()
    try:
        return Zygote(control, module).run()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            return 0
        raise


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:3]))
