# SPDX-License-Identifier: Apache-2.0
"""The switch between three nodes and more, and between any with a delay.

    -m lab.vm.switch DIRECTORY DELAY_US NODE...

Node N's cable is a Unix datagram socket DIRECTORY/N.cable; the switch's end of it is
DIRECTORY/N.port. Frames go where their destination was last seen as a source, else
everywhere (IEEE 802.1D); each waits DELAY_US microseconds. A frame that a full queue
refuses is lost, as on a real switch.
"""

from __future__ import annotations

import collections
import contextlib
import selectors
import socket
import sys
import time
from pathlib import Path

#: Frames that may wait at once; above that they are lost.
QUEUE = 20_000


class Switch:
    """Ports, what was learnt about them, and frames on their way."""

    def __init__(self, directory: Path, delay_s: float, nodes: list[str]) -> None:
        self.delay_s = delay_s
        self.ports: dict[str, socket.socket] = {}
        self.cables = {node: str(directory / f"{node}.cable") for node in nodes}
        self.learnt: dict[bytes, str] = {}
        #: Due time, port and frame; in order, because every frame waits as long.
        self.waiting: collections.deque[tuple[float, str, bytes]] = collections.deque()
        for node in nodes:
            path = directory / f"{node}.port"
            path.unlink(missing_ok=True)
            port = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            port.bind(str(path))
            self.ports[node] = port

    def take(self, source: str, frame: bytes, now: float) -> None:
        """A frame came from `source`."""
        if len(frame) < 14:
            return
        to, sender = frame[:6], frame[6:12]
        # A group address (its first bit) is nobody's own.
        if not sender[0] & 1:
            self.learnt[sender] = source
        known = None if to[0] & 1 else self.learnt.get(to)
        ports = [known] if known else [port for port in self.ports if port != source]
        for port in ports:
            if port == source or len(self.waiting) >= QUEUE:
                continue
            if self.delay_s:
                self.waiting.append((now + self.delay_s, port, frame))
            else:
                self.send(port, frame)

    def send(self, port: str, frame: bytes) -> None:
        """A frame goes out."""
        with contextlib.suppress(OSError):
            self.ports[port].sendto(frame, self.cables[port])

    def run(self) -> None:
        """Until somebody ends us."""
        selector = selectors.DefaultSelector()
        for node, own in self.ports.items():
            selector.register(own, selectors.EVENT_READ, node)
        while True:
            now = time.monotonic()
            while self.waiting and self.waiting[0][0] <= now:
                _due, port, frame = self.waiting.popleft()
                self.send(port, frame)
            wait = max(0.0, self.waiting[0][0] - now) if self.waiting else None
            for key, _events in selector.select(wait):
                source = self.ports[key.data]
                now = time.monotonic()
                for _frame in range(64):
                    try:
                        frame = source.recv(65536)
                    except BlockingIOError:
                        break
                    self.take(key.data, frame, now)


if __name__ == "__main__":
    Switch(Path(sys.argv[1]), int(sys.argv[2]) / 1e6, sys.argv[3:]).run()
