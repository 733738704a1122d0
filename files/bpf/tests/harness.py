# SPDX-License-Identifier: Apache-2.0
"""Connections, and processes in other namespaces, for cases.py. Guest only, root.

host namespace                       foreign namespace (one for each process)
router: listener 127.0.0.1           holder: has the client's socket by fork, dup,
  client (tagged) <---> server         exec, SCM_RIGHTS or pidfd_getfd
"""

import ctypes
import json
import os
import signal
import socket
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim_bpf import attempts
from slim_bpf.check import cookie_of
from slim_bpf.tags import Tags

DEADLINE_S = 60


@dataclass
class Pair:
    """One TCP connection over loopback."""

    client: socket.socket
    server: socket.socket

    @property
    def cookie(self) -> int:
        return cookie_of(self.client)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def pair(family: int = socket.AF_INET) -> Pair:
    """A connection; AF_INET6: by IPv4-mapped addresses, as the router makes them."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = socket.socket(family, socket.SOCK_STREAM)
        prefix = "::ffff:" if family == socket.AF_INET6 else ""
        client.connect((prefix + "127.0.0.1", listener.getsockname()[1]))
        server, _unused = listener.accept()
    return Pair(client, server)


def tagged(tags: Tags, family: int = socket.AF_INET) -> Pair:
    """A connection whose client side is tagged."""
    made = pair(family)
    tags.tag(made.client.fileno(), made.cookie)
    return made


class Foreign:
    """A process in a network namespace of its own that runs a function and tells its result."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        uid: int = 0,
        bound_s: int = DEADLINE_S,
    ) -> None:
        self._channel, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid:
            theirs.close()
            return
        status = 1
        try:
            signal.alarm(bound_s)
            self._channel.close()
            attempts.leave_namespace()
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            theirs.sendall(b"+")  # in place
            answer = function(*arguments)
            theirs.sendall(json.dumps(answer).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def ready(self) -> "Foreign":
        """Wait until it is in its namespace."""
        assert self._channel.recv(1) == b"+"
        return self

    def result(self) -> Any:
        """What the function returned. AssertionError if the process failed."""
        data = b""
        while piece := self._channel.recv(1 << 16):
            data += piece
        self._channel.close()
        _unused, status = os.waitpid(self.pid, 0)
        assert status == 0, f"process {self.pid}: status {status}"
        return json.loads(data)


def foreign(function: Callable[..., Any], *arguments: Any, uid: int = 0) -> Any:
    """Run function in a namespace of its own, and wait."""
    return Foreign(function, *arguments, uid=uid).ready().result()


def wrong_answers(fd: int) -> list[str]:
    """Make all attempts of the load check on fd; those answered wrongly."""
    wrong = []
    for attempt in attempts.ATTEMPTS:
        number = attempt.run(fd)
        if number != attempt.expected and (attempt.expected or number == attempts.EPERM):
            wrong.append(f"{attempt.name}: {number}")
    return wrong


def send_fd(channel: socket.socket, fd: int) -> None:
    """Pass fd."""
    socket.send_fds(channel, [b"f"], [fd])


def recv_fd(channel: socket.socket) -> int:
    """Take one."""
    _unused, fds, _unused, _unused = socket.recv_fds(channel, 1, 1)
    return fds[0]


def pidfd_getfd(pid: int, fd: int) -> int:
    """pidfd_open(2) and pidfd_getfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    got = libc.syscall(438, os.pidfd_open(pid), fd, 0)
    if got < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return int(got)


def error_of(call: Callable[..., Any], *arguments: Any) -> int:
    """errno of a call, 0 if it went through."""
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def linger_reset(sock: socket.socket) -> None:
    """close() is to reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
