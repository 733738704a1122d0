# SPDX-License-Identifier: Apache-2.0
"""Waits until a server answers: ready.py IP PORT SECONDS [http].

Plain standard library: it runs inside endpoints, with and without SlimSocket.
"""

import http.client
import socket
import sys
import time


def answers(ip: str, port: int, web: bool) -> bool:
    """True if a connection (a request) succeeds now."""
    try:
        if not web:
            socket.create_connection((ip, port), timeout=2).close()
            return True
        connection = http.client.HTTPConnection(ip, port, timeout=2)
        connection.request("GET", "/")
        status = connection.getresponse().status
        connection.close()
        return status == 200
    except (OSError, http.client.HTTPException):
        return False


def main() -> int:
    """0 when the server answers, 1 if it does not within the time."""
    ip, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    deadline = time.monotonic() + seconds
    while not answers(ip, port, sys.argv[4:] == ["http"]):
        if time.monotonic() > deadline:
            print(f"{ip}:{port}: no answer within {seconds:.0f} s", file=sys.stderr)
            return 1
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
