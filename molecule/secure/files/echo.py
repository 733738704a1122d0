# SPDX-License-Identifier: Apache-2.0
"""Sends back what it gets: echo.py PORT"""

import socket
import sys
import threading


def echo(sock: socket.socket) -> None:
    try:
        while data := sock.recv(65536):
            sock.sendall(data)
    except OSError:
        pass
    sock.close()


with socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64) as listener:
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()
