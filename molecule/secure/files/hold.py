# SPDX-License-Identifier: Apache-2.0
"""Connects COUNT times to an echo service, sends BYTES on each, and reads until it ends.

hold.py ADDRESS PORT COUNT BYTES      prints how each reader ended: an errno's name, or "eof"
"""

import errno
import json
import socket
import sys
import threading
import time

PATIENCE_S = 60.0
address, port, count, size = sys.argv[1], *map(int, sys.argv[2:])
ended: list[str] = []


def dial() -> socket.socket:
    """The service may still be starting."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return socket.create_connection((address, port))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def hold(sock: socket.socket) -> None:
    try:
        sock.sendall(bytes(size))
        left = size
        while left > 0:
            left -= len(sock.recv(65536))
        ended.append("data" if sock.recv(1) else "eof")
    except OSError as error:
        ended.append(errno.errorcode.get(error.errno or 0, str(error)))


def connected() -> threading.Thread:
    thread = threading.Thread(target=hold, args=(dial(),))
    thread.start()
    return thread


for holder in [connected() for _unused in range(count)]:
    holder.join()
print(json.dumps(ended))
