# SPDX-License-Identifier: Apache-2.0
"""In a guest: open, prove, tag as the worker does it, look from elsewhere, revoke.

this process, host's namespace: backend, server on 127.0.0.1, tagged sockets
    | setns there and back
namespace of a child: the container
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, "/test")

from slim_router import secure
from slim_router.sockets import cookie_of

CLONE_NEWNET = 0x40000000
FASTOPEN = socket.MSG_FASTOPEN | socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
libc = ctypes.CDLL(None, use_errno=True)


def answer(call: Callable[[], object]) -> str:
    """ "ok", or the name of the errno."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


class Elsewhere:
    """The namespace of a child: the container's, as far as the kernel can tell."""

    def __init__(self) -> None:
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY)
        ours = os.fstat(self.home).st_ino
        self.child = os.fork()
        if self.child == 0:
            libc.unshare(CLONE_NEWNET)
            signal.pause()
        end = time.monotonic() + 60
        while Path(f"/proc/{self.child}/ns/net").stat().st_ino == ours:
            assert time.monotonic() < end, "the child has no namespace"
            time.sleep(0.01)
        self.away = os.open(f"/proc/{self.child}/ns/net", os.O_RDONLY)

    def __enter__(self) -> None:
        assert libc.setns(self.away, CLONE_NEWNET) == 0

    def __exit__(self, *_unused: object) -> None:
        assert libc.setns(self.home, CLONE_NEWNET) == 0


def connection(backend: secure.Backend, elsewhere: Elsewhere, family: int, address: str) -> None:
    """A warm connection of *family*, as outbound._warm makes it, and its end."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    backend.tag(sock.fileno(), cookie_of(sock))
    sock.setsockopt(socket.IPPROTO_TCP, 34, 1)  # TCP_FASTOPEN_NO_COOKIE
    assert sock.sendto(bytes(80), FASTOPEN, (address, port)) == 80
    accepted, _unused = server.accept()
    for _unused in range(2):  # prepared, then delivered
        backend.tag(accepted.fileno(), cookie_of(accepted))
    assert len(accepted.recv(80)) == 80
    with elsewhere:
        said = {
            "send": answer(lambda: sock.send(b"data")),
            "nodelay": answer(lambda: sock.setsockopt(socket.IPPROTO_TCP, 1, 1)),
            "linger": answer(lambda: sock.setsockopt(socket.SOL_SOCKET, 13, bytes(8))),
            "info": answer(lambda: sock.getsockopt(socket.IPPROTO_TCP, 11, 200)),
            "domain": answer(lambda: sock.getsockopt(socket.SOL_SOCKET, 39)),
            "protocol": answer(lambda: sock.getsockopt(socket.SOL_SOCKET, 38)),
            "cookies": answer(lambda: sock.getsockopt(socket.SOL_SOCKET, 71, 8)),
        }
        assert set(said.values()) == {"ok"}, said
        said = {
            "getsockname": answer(sock.getsockname),
            "getpeername": answer(accepted.getpeername),
            "tos": answer(lambda: sock.setsockopt(socket.IPPROTO_IP, 1, 0)),
            "connect": answer(lambda: sock.connect((address, port))),
            "listen": answer(accepted.listen),
            "sendto": answer(lambda: sock.sendto(b"x", (address, port))),
        }
        assert set(said.values()) == {"EPERM"}, said
    assert accepted.recv(10) == b"data"
    revoked = backend.revoke([cookie_of(sock), 1 << 60])
    assert revoked.revoked == 2
    with elsewhere:
        assert answer(lambda: sock.send(b"x")) == "ECONNABORTED"
        assert answer(lambda: sock.recv(1)) == "ECONNABORTED"
    assert answer(lambda: accepted.recv(1)) == "ECONNRESET"
    assert answer(lambda: backend.tag(sock.fileno(), cookie_of(sock))) in ("EALREADY", "EEXIST")
    for one in (server, sock, accepted):
        one.close()


def reader(sock: socket.socket, elsewhere: Elsewhere, told: int) -> None:
    """A process of the container: two threads that sleep in recv, and what each is told."""
    elsewhere.__enter__()

    def read() -> None:
        os.write(told, f"{answer(lambda: sock.recv(1))}\n".encode())

    threads = [threading.Thread(target=read) for _unused in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def sleeping(pid: int) -> int:
    """How many threads of the process sleep in recvfrom."""
    return sum(
        task.joinpath("syscall").read_text().split()[0] == "45"  # asm/unistd_64.h
        for task in Path(f"/proc/{pid}/task").iterdir()
    )


def blocked(backend: secure.Backend, elsewhere: Elsewhere) -> None:
    """Every reader that sleeps on a socket when it is revoked hears that it was aborted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock = socket.create_connection(server.getsockname())
        accepted, _unused = server.accept()
        backend.tag(sock.fileno(), cookie_of(sock))
        hear, told = os.pipe()
        pids = []
        for _unused in range(4):
            if not (pid := os.fork()):
                reader(sock, elsewhere, told)
            pids.append(pid)
        os.close(told)
        end = time.monotonic() + 60
        while sum(map(sleeping, pids)) < 8:
            assert time.monotonic() < end, "the readers do not sleep"
            time.sleep(0.05)
        backend.revoke([cookie_of(sock)])
        with os.fdopen(hear) as file:
            said = file.read().split()
        for pid in pids:
            os.waitpid(pid, 0)
        assert len(said) == 8 and set(said) <= {"ECONNABORTED"}, said
        sock.close()
        accepted.close()


def main(mode: str) -> None:
    backend = secure.make(mode)
    assert backend is not None
    elsewhere = Elsewhere()
    try:
        backend.open()
        secure.try_out(backend)
        secure.prove(backend, elsewhere.__enter__, elsewhere.__exit__)
        connection(backend, elsewhere, socket.AF_INET, "127.0.0.1")
        connection(backend, elsewhere, socket.AF_INET6, "::ffff:127.0.0.1")
        blocked(backend, elsewhere)
        print(f"ok     {mode}: {backend.identity()}")
    finally:
        os.kill(elsewhere.child, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
