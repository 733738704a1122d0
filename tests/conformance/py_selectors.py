# SPDX-License-Identifier: Apache-2.0
"""selectors: each kind, connecting and accepting."""

from __future__ import annotations

import errno
import selectors
import socket

import pyconf


def connect(peer: pyconf.Peer, selector: selectors.BaseSelector, count: int) -> None:
    waiting = 0
    for number in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        status = sock.connect_ex(peer.at(pyconf.ECHO))
        pyconf.check(status in (0, errno.EINPROGRESS), f"connect_ex {status}")
        selector.register(sock, selectors.EVENT_WRITE, number)
        waiting += 1
    back: dict[int, bytes] = {}
    while waiting:
        events = selector.select(8)
        pyconf.check(events, f"{waiting} sockets wait in vain")
        for key, mask in events:
            assert isinstance(key.fileobj, socket.socket)
            sock = key.fileobj
            if mask & selectors.EVENT_WRITE:
                status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                pyconf.check(status == 0, f"SO_ERROR {status}")
                pyconf.note_path(sock)
                pyconf.check(sock.getpeername() == peer.at(pyconf.ECHO), "getpeername")
                pyconf.check(sock.getsockname()[0] == peer.own, "getsockname")
                sock.sendall(pyconf.pattern(3000, key.data))
                selector.modify(sock, selectors.EVENT_READ, key.data)
                back[key.data] = b""
            else:
                back[key.data] += sock.recv(4096)
                if len(back[key.data]) == 3000:
                    pyconf.check(back[key.data] == pyconf.pattern(3000, key.data), "echo differs")
                    selector.unregister(sock)
                    sock.close()
                    waiting -= 1


def accept(peer: pyconf.Peer, selector: selectors.BaseSelector, count: int) -> None:
    with socket.create_server((peer.own, 0), backlog=64) as listener:
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ)
        order = peer.dial_me(count, "id", listener.getsockname()[1])
        left = count
        while left:
            events = selector.select(8)
            pyconf.check(events, f"{left} connections are missing")
            for key, _unused in events:
                if key.fileobj is listener:
                    sock, address = listener.accept()
                    pyconf.check(address[0] == peer.address, "accept names another")
                    pyconf.note_path(sock)
                    sock.setblocking(False)
                    selector.register(sock, selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    sock = key.fileobj
                    sock.sendall(sock.recv(8))
                    selector.unregister(sock)
                    sock.close()
                    left -= 1
        peer.all_ok(order, count)
        selector.unregister(listener)


def main() -> None:
    peer = pyconf.start()
    for kind in (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector):
        with kind() as selector:
            connect(peer, selector, 1)
            connect(peer, selector, 30)
            accept(peer, selector, 30)
        pyconf.ok(kind.__name__)
    pyconf.done()


main()
