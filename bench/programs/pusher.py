# SPDX-License-Identifier: Apache-2.0
"""Pushes a policy to the router of the host that it runs on, and takes the time.

    pusher.py SOCKET < request      {"sent", "answered": monotonic s, "answer": the router's}

`python -m bench.revoke` uses it: slimctl takes longer to start than the router to do it.
"""

from __future__ import annotations

import json
import socket
import sys
import time


def main() -> None:
    """One request, one answer."""
    request = sys.stdin.buffer.read()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect(sys.argv[1])
        sent = time.monotonic()
        sock.sendall(request.strip() + b"\n")
        said = b""
        while not said.endswith(b"\n"):
            piece = sock.recv(1 << 20)
            if not piece:
                break
            said += piece
        answered = time.monotonic()
    print(json.dumps({"sent": sent, "answered": answered, "answer": json.loads(said)}))


if __name__ == "__main__":
    main()
