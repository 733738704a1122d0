# SPDX-License-Identifier: Apache-2.0
"""Connects one after another to an echo service, and holds what it has until it is ended.

    dial.py ADDRESS PORT COUNT blocking|polled      prints
                                                    "slim=S overlay=O slowest-ms=M"

M is the longest that one connect took from its call to its outcome, without what the thread
waited for a CPU.
"""

from __future__ import annotations

import errno
import select
import socket
import sys

import pyconf

address, port, count, way = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
watch = pyconf.Watch()
held = []
for number in range(count):
    sock = socket.socket()
    held.append(sock)
    sock.setblocking(way == "blocking")
    watch.look_away()
    status = sock.connect_ex((address, port))
    if way == "polled" and status == errno.EINPROGRESS:
        poller = select.poll()
        poller.register(sock, select.POLLOUT)
        pyconf.check(poller.poll(20000), f"connect {number}: no outcome")
        status = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    watch.look()
    pyconf.check(status == 0, f"connect {number}: {errno.errorcode.get(status, status)}")
    pyconf.note_path(sock)
    sock.settimeout(8)
    sock.sendall(b"dial")
    pyconf.check(sock.recv(16) == b"dial", f"connect {number}: echo differs")
print(
    f"slim={pyconf.slim} overlay={pyconf.overlay} slowest-ms={watch.longest * 1e3:.0f}", flush=True
)
sys.stdin.read()
