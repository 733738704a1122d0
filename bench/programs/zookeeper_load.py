# SPDX-License-Identifier: Apache-2.0
"""Reads and writes of one ZooKeeper node: zookeeper_load.py IP:PORT SECONDS.

Needs kazoo (python3-kazoo); runs inside an endpoint.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from kazoo.client import KazooClient  # type: ignore[import-not-found, unused-ignore] # a Debian package

IN_FLIGHT = 16
VALUE = b"z" * 100


def rate(ask: Callable[[], Any], check: Callable[[Any], None], seconds: float) -> float:
    """Requests per second with a fixed number in flight."""
    waiting = deque(ask() for _unused in range(IN_FLIGHT))
    begun = time.monotonic()
    count = 0
    while time.monotonic() - begun < seconds:
        check(waiting.popleft().get(timeout=10))
        waiting.append(ask())
        count += 1
    elapsed = time.monotonic() - begun
    for result in waiting:
        check(result.get(timeout=10))
    return count / elapsed


def main() -> int:
    """Print one JSON object."""
    client = KazooClient(hosts=sys.argv[1], timeout=10.0)
    client.start(timeout=15)
    seconds = float(sys.argv[2])
    wrong = 0

    def compare(answer: Any) -> None:
        nonlocal wrong
        wrong += answer[0] != VALUE

    path = client.create("/bench-", VALUE, ephemeral=True, sequence=True)
    reads = rate(lambda: client.get_async(path), compare, seconds)
    writes = rate(lambda: client.set_async(path, VALUE), lambda answer: None, seconds)
    client.stop()
    client.close()
    print(json.dumps({"reads": reads, "writes": writes, "wrong": wrong}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
