# SPDX-License-Identifier: Apache-2.0
"""A listener that is shut down and listens again when a line comes.

relisten.py ADDRESS     prints "port N"; at a line: shutdown, listen, "port M"; then
                        accepts one connection, says "hello" to it, and ends
"""

from __future__ import annotations

import socket
import sys


def main() -> None:
    sock = socket.socket()
    sock.bind((sys.argv[1], 0))
    sock.listen(8)
    print(f"port {sock.getsockname()[1]}", flush=True)
    sys.stdin.readline()
    sock.shutdown(socket.SHUT_RDWR)
    sock.listen(8)
    # (a port that the kernel chose is given back by shutdown)
    print(f"port {sock.getsockname()[1]}", flush=True)
    fresh, _unused = sock.accept()
    fresh.sendall(b"hello")
    fresh.close()


main()
