# SPDX-License-Identifier: Apache-2.0
"""Opens connections to echo services when told to, holds them, and says how they are.

holder.py ADDRESS ...       commands on standard input, one JSON answer a line

open PORT COUNT [HOST]      {"began": [NUMBER, ...]}; they connect at once, in threads
wait                        {"NUMBER": "slim" | "overlay" | errno's name, ...} of all
                            that were opened, when none is connecting any more
look                        {"NUMBER": "ok" | errno's name | "end", ...} of all that were
                            open: each is asked for an echo
close                       {} and all are closed

this program ---- connections ---- echo servers
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading

import pyconf

PATIENCE_S = 8.0
opened: dict[int, socket.socket] = {}
said: dict[int, str] = {}
threads: list[threading.Thread] = []


def name_of(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return errno.errorcode.get(error.errno or 0, str(error))


def connect(number: int, host: str, port: int) -> None:
    try:
        sock = socket.create_connection((host, port), timeout=PATIENCE_S)
    except OSError as error:
        said[number] = name_of(error)
        return
    opened[number] = sock
    said[number] = "slim" if pyconf.note_path(sock) else "overlay"


def look(number: int, sock: socket.socket) -> str:
    """Does an echo come back?"""
    word = number.to_bytes(4, "big")
    try:
        sock.sendall(word)
        back = b""
        while len(back) < len(word):
            piece = sock.recv(len(word) - len(back))
            if not piece:
                return "end"
            back += piece
    except OSError as error:
        return name_of(error)
    return "ok" if back == word else "wrong"


def main() -> None:
    count = 0
    for line in sys.stdin:
        verb, *words = line.split()
        answer: object = {}
        if verb == "open":
            host = words[2] if len(words) > 2 else sys.argv[1]
            numbers = list(range(count, count + int(words[1])))
            count += len(numbers)
            for number in numbers:
                thread = threading.Thread(target=connect, args=(number, host, int(words[0])))
                threads.append(thread)
                thread.start()
            answer = {"began": numbers}
        elif verb == "wait":
            while threads:
                threads.pop().join()
            answer = said
        elif verb == "look":
            while threads:
                threads.pop().join()
            answer = {number: look(number, sock) for number, sock in sorted(opened.items())}
        elif verb == "close":
            while opened:
                opened.popitem()[1].close()
        print(json.dumps(answer), flush=True)


main()
