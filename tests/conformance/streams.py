# SPDX-License-Identifier: Apache-2.0
"""Live connections under load: opens COUNT connections to an echo service, keeps data
going through each, and judges every byte.

    streams.py ADDRESS PORT COUNT      prints "up N slim=S", runs until standard input
                                       ends, then "done ok=N lost=N wrong=N bytes=B"

    this program ---- COUNT connections, data both ways ---- echo server
"""

from __future__ import annotations

import socket
import sys
import threading

import pyconf

ended = threading.Event()
lock = threading.Lock()
sums = {"ok": 0, "lost": 0, "wrong": 0, "bytes": 0}


def run(sock: socket.socket, number: int) -> None:
    """Ping-pong of numbered blocks, each of its own content, until told to end."""
    outcome = "ok"
    count = turn = 0
    try:
        sock.settimeout(15)
        while not ended.is_set():
            turn += 1
            block = turn.to_bytes(8, "big") + number.to_bytes(8, "big") + pyconf.pattern(2032, turn)
            sock.sendall(block)
            back = b""
            while len(back) < len(block):
                piece = sock.recv(len(block) - len(back))
                if not piece:
                    raise ConnectionError("end of data")
                back += piece
            if back != block:
                outcome = "wrong"
                break
            count += len(block)
        sock.shutdown(socket.SHUT_WR)
        if outcome == "ok" and sock.recv(1) != b"":
            outcome = "wrong"
    except OSError as error:
        print(f"connection {number} lost after {count} bytes: {error}", file=sys.stderr)
        outcome = "lost"
    finally:
        sock.close()
    with lock:
        sums[outcome] += 1
        sums["bytes"] += count


def main() -> None:
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    socks = [socket.create_connection((address, port), timeout=10) for _unused in range(count)]
    slim = sum(pyconf.note_path(sock) for sock in socks)
    threads = [threading.Thread(target=run, args=(s, n)) for n, s in enumerate(socks)]
    for thread in threads:
        thread.start()
    print(f"up {count} slim={slim}", flush=True)
    sys.stdin.read()
    ended.set()
    for thread in threads:
        thread.join()
    print("done", *(f"{k}={v}" for k, v in sums.items()), flush=True)
    sys.exit(0 if sums["ok"] == count else 1)


main()
