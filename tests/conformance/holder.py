# SPDX-License-Identifier: Apache-2.0
"""Opens connections to echo services when told to, holds them, and says how they are.

holder.py ADDRESS ...       commands on standard input, one JSON answer a line

open PORT COUNT [HOST]      {"began": [NUMBER, ...]}; they connect at once, in threads
wait                        {"NUMBER": "slim" | "overlay" | errno's name, ...} of all
                            that were opened, when none is connecting any more
look                        {"NUMBER": "ok" | errno's name | "end", ...} of all that were
                            open: each is asked for an echo
pulse SECONDS               {} and from now on each that opens is asked for an echo this
                            often, by a thread of its own, until there is none
signs                       {"NUMBER": [TIME, TIME], ...}: when it was connected, and when the last
                            byte that came back had left, on CLOCK_MONOTONIC; of all from which
                            one has come
begun                       {"NUMBER": TIME, ...}: when each that was opened began to connect
patience SECONDS            {} and from now on a connect gives up after this time
close                       {} and all are closed

this program ---- connections ---- echo servers
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import threading
import time

import pyconf

patience_s = 8.0
opened: dict[int, socket.socket] = {}
said: dict[int, str] = {}
connected: dict[int, float] = {}
last: dict[int, float] = {}
begun: dict[int, float] = {}
threads: list[threading.Thread] = []
turns: dict[int, threading.Lock] = {}
pulse_s = 0.0


def name_of(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return errno.errorcode.get(error.errno or 0, str(error))


def connect(number: int, host: str, port: int) -> None:
    begun[number] = time.monotonic()
    try:
        sock = socket.create_connection((host, port), timeout=patience_s)
    except OSError as error:
        said[number] = name_of(error)
        return
    connected[number] = time.monotonic()
    said[number] = "slim" if pyconf.note_path(sock) else "overlay"
    turns[number] = threading.Lock()
    opened[number] = sock
    if pulse_s:
        threading.Thread(target=pulse, args=(number, sock), daemon=True).start()


def look(number: int, sock: socket.socket) -> str:
    """Does an echo come back?"""
    word = number.to_bytes(4, "big")
    with turns[number]:
        # Before it leaves: whoever is kept from running would make it later than it was.
        left = time.monotonic()
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
        last[number] = left
    return "ok" if back == word else "wrong"


def pulse(number: int, sock: socket.socket) -> None:
    while look(number, sock) == "ok":
        time.sleep(pulse_s)


def main() -> None:
    global patience_s, pulse_s
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
        elif verb == "pulse":
            pulse_s = float(words[0])
        elif verb == "signs":
            answer = {number: [connected[number], when] for number, when in dict(last).items()}
        elif verb == "begun":
            answer = dict(begun)
        elif verb == "patience":
            patience_s = float(words[0])
        elif verb == "close":
            while opened:
                opened.popitem()[1].close()
        print(json.dumps(answer), flush=True)


main()
