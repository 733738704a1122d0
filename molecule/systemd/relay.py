# SPDX-License-Identifier: Apache-2.0
"""Relays TCP connections: relay.py ADDRESS PORT TO_HOST PIDFILE

Goes into the background when it listens. Lets the nodes of the scenario, whose
network has no way out, reach one host: the package mirror.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy one direction until its end, then end the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def serve(client: socket.socket, host: str, port: int) -> None:
    """One connection."""
    with client, contextlib.suppress(OSError), socket.create_connection((host, port), 30) as server:
        back = threading.Thread(target=pump, args=(server, client))
        back.start()
        pump(client, server)
        back.join()


def main() -> None:
    """Listen, detach, relay."""
    address, port, host, pidfile = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    listener = socket.create_server((address, port))
    if os.fork():
        os._exit(0)
    os.setsid()
    pidfile.write_text(f"{os.getpid()}\n")
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    while True:
        client = listener.accept()[0]
        threading.Thread(target=serve, args=(client, host, port), daemon=True).start()


main()
