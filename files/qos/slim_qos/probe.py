# SPDX-License-Identifier: Apache-2.0
"""Do our filters match what they should, and nothing else? Tried on lo with packets of
our own, whose mark is that of no endpoint.

Kernels have accepted selectors that they cannot evaluate (u32's ``match mark`` without
support then matches everything), so that an answer without an error proves nothing.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from slim_qos import plan
from slim_qos.kernel import Space
from slim_qos.settings import NORMAL, PROBE_INDEX, Settings
from slim_qos.shaper import ShaperError

PATIENCE_S = 2.0
PACKETS = 5
MINOR = PROBE_INDEX << 3 | NORMAL


def _counted(space: Space, device: str, handle: int) -> int:
    """Packets that the probe's class has seen."""
    index = space.links()[device].index
    return space.counters(index, handle).get(MINOR, (0, 0, 0))[1]


def _grown(count: Callable[[], int], before: int, by: int) -> int:
    """The growth, once it is *by* or the patience is over."""
    end = time.monotonic() + PATIENCE_S
    while (now := count() - before) < by and time.monotonic() < end:
        time.sleep(0.01)
    return now


def _datagrams(mark: int) -> None:
    """PACKETS datagrams over lo with *mark*, each awaited. Raises OSError."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(PATIENCE_S)
        if mark:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        for _unused in range(PACKETS):
            sender.sendto(b"slim", receiver.getsockname())
            receiver.recv(16)


def _stream(mark: int) -> None:
    """Some bytes into a socket with *mark*, over lo. Raises OSError."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        if mark:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        listener.settimeout(PATIENCE_S)
        client.settimeout(PATIENCE_S)
        client.connect(listener.getsockname())
        server, _address = listener.accept()
        with server:
            server.settimeout(PATIENCE_S)
            for _unused in range(PACKETS):
                client.sendall(b"slim")
                server.recv(16)


def probe(settings: Settings, space: Space) -> list[str]:
    """What was tried. Raises ShaperError where a filter does not do what it should."""
    mark = settings.mark | MINOR
    tried = []
    for side, device, handle, send in (
        ("egress", plan.OUT_DEVICE, plan.OUT, _datagrams),
        ("ingress", plan.IN_DEVICE, plan.IN, _stream),
    ):
        if not plan.shaped(settings, side):
            continue

        def count(device: str = device, handle: int = handle) -> int:
            return _counted(space, device, handle)

        for wanted, chosen in ((True, mark), (False, 0)):
            before = count()
            lost = ""
            try:
                send(chosen)
            except OSError as error:
                lost = f" and packets were lost ({error})"
            seen = _grown(count, before, PACKETS if wanted else 0)
            if lost or (seen < PACKETS if wanted else seen):
                raise ShaperError(
                    f"{device}: {seen} packets {'with' if wanted else 'without'} our mark met the"
                    f" class, {f'{PACKETS} or more' if wanted else 'none'} should{lost}: this kernel's"
                    " filters cannot be trusted; remove the rates, or try another kernel"
                )
        tried.append(side)
    return tried


def up(space: Space) -> bool:
    """Is lo there to be tried on?"""
    with contextlib.suppress(KeyError):
        return space.links()["lo"].up
    return False
