# SPDX-License-Identifier: Apache-2.0
"""A worker for tests: passes on what its supervisor says, says what the test wants.

It connects to the Unix socket in SLIM_TEST_PUPPETS and writes one JSON line for
each message of the supervisor; each line that it reads is an order:
``{"send": MESSAGE}``, ``{"exit": STATUS}``, ``{"hang": true}``.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from typing import Any


def _cookie(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as sock:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 71, 8))[0])


def _look(message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """*message* with what can be told of its descriptors."""
    message["fds"] = len(fds)
    if message["op"] == "config":
        with socket.socket(fileno=os.dup(fds[0])) as data:
            message["data_name"] = list(data.getsockname()[:2])
            message["listening"] = data.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        message["netns_inode"] = os.fstat(fds[1]).st_ino
    if message["op"] == "shim":
        message["cookie"] = _cookie(fds[0])
        with socket.socket(fileno=os.dup(fds[0])) as shim:
            shim.send(b"served")
    return message


def main(link: socket.socket) -> int:
    """Be a worker."""
    data, fds, _unused, _unused = socket.recv_fds(link, 65536, 4)
    if not data:
        return 0
    config = _look(json.loads(data), fds)
    puppets = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    puppets.connect(os.environ["SLIM_TEST_PUPPETS"])
    lines = puppets.makefile("rwb", buffering=0)
    lines.write(json.dumps({"config": config, "pid": os.getpid()}).encode() + b"\n")
    link.send(json.dumps({"op": "ready", "pid": os.getpid()}).encode())
    buffer = b""
    while True:
        readable, _unused, _unused = select.select([link, puppets], [], [])
        if link in readable:
            data, fds, _unused, _unused = socket.recv_fds(link, 65536, 4)
            if not data:
                return 0
            message = _look(json.loads(data), fds)
            for fd in fds:
                os.close(fd)
            lines.write(json.dumps(message).encode() + b"\n")
            if message["op"] == "stop":
                return 0
        if puppets in readable:
            chunk = puppets.recv(1 << 16)
            if not chunk:
                return 0
            buffer += chunk
            *orders, buffer = buffer.split(b"\n")
            for line in orders:
                order = json.loads(line)
                if "send" in order:
                    link.send(json.dumps(order["send"]).encode())
                elif "raw" in order:
                    link.send(order["raw"].encode())
                elif "exit" in order:
                    return int(order["exit"])
                elif "hang" in order:
                    time.sleep(3600)
