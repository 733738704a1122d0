# SPDX-License-Identifier: Apache-2.0
"""What the worker sets on host connections before it hands them over.

Shim --- CONNECT ---> Outbound --- TCP ---> Peer.host     the connecting side's socket
App <--- ACCEPTED --- Inbound <--- TCP ---- Peer.dial     the accepting side's
"""

from __future__ import annotations

import socket
import struct
import time

import pytest

from slim_router import wire
from slim_router.sockopts import SO_MAX_PACING_RATE, treatments
from tests.unit.worker.stand import PATIENCE
from tests.unit.worker.test_outbound import PORT, cold, warm

BULK, URGENT = 0x5C000019, 0x5C00001F
DEFAULT = {"mark": BULK, "priority": 2, "tos": 40, "pacing": 5_000_000_000}
LIMITS = {
    "default": DEFAULT,
    "ports": [
        [PORT + 1, PORT + 2, {"mark": URGENT, "priority": 6, "tos": 184, "pacing": 0}],
        [PORT + 2, PORT + 9, {"mark": BULK, "priority": 2, "tos": 40, "pacing": 0}],
    ],
}
UNLIMITED = 2**64 - 1


def options(sock: socket.socket) -> tuple[int, int, int, int]:
    """(mark, priority, type of service, pacing)."""
    pacing = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, 8))[0]
    return (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK),
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY),
        sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) & ~3,  # the rest is ECN's
        pacing,
    )


def limit(stand, limits) -> None:
    stand.sup.send(op="limits", limits=limits)
    stand.sup.sync()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connecting_socket_has_them_cold_and_warm(stand, family):
    limit(stand, LIMITS)
    shim = stand.shim()
    here, there = cold(stand, shim, family=int(family))
    assert options(here) == (BULK, 2, 40, 5_000_000_000)
    _unused, second, peer, _unused = warm(stand, shim, family=int(family))
    assert options(second) == (BULK, 2, 40, 5_000_000_000)
    for sock in (here, there, second, peer):
        sock.close()
    assert stand.worker.counters["not_dressed"] == 0


def test_a_port_of_its_own_has_its_own(stand):
    limit(stand, LIMITS)
    shim = stand.shim()
    for port, wanted in ((PORT + 2, (URGENT, 6, 184)), (PORT + 3, (BULK, 2, 40))):
        here, there = cold(stand, shim, port=port)
        assert options(here) == (*wanted, UNLIMITED)
        here.close()
        there.close()


def test_an_accepted_socket_has_them_cold_and_warm(stand):
    limit(stand, LIMITS)
    app = stand.app()
    _unused, accepted, ours = stand.peer.cold(app)
    assert options(accepted) == (BULK, 2, 40, 5_000_000_000)
    sock = stand.peer.dial(stand.peer.hello(wire.K_DELIVER, 1, app.port))
    _unused, delivered = app.accept()
    assert options(delivered) == (BULK, 2, 40, 5_000_000_000)
    for each in (accepted, ours, sock, delivered):
        each.close()


def test_a_change_reaches_the_next_connection_and_its_end_too(stand):
    shim = stand.shim()
    before, there = cold(stand, shim)
    untouched = options(before)
    assert untouched == (0, 0, 0, UNLIMITED)
    limit(stand, LIMITS)
    assert options(before) == untouched
    assert stand.worker.inbound.data.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == BULK
    _unused, second, peer, _unused = warm(stand, shim)
    assert options(second)[0] == BULK
    limit(stand, None)
    assert stand.worker.inbound.data.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0
    _unused, third, last, _unused = warm(stand, shim)
    assert options(third) == untouched
    for sock in (before, there, second, peer, third, last):
        sock.close()


def test_the_dscp_is_on_the_packets_from_the_first_on(stand):
    limit(stand, LIMITS)
    port = stand.peer.host.getsockname()[1]
    seen = {}
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as capture:
        capture.bind(("lo", 0x0800))
        here, there = cold(stand, stand.shim())
        end = time.monotonic() + PATIENCE
        # Ethernet 14, IPv4 without options 20: the flags of TCP are 13 bytes further on.
        while len(seen) < 2 and time.monotonic() < end:
            capture.settimeout(PATIENCE)
            packet = capture.recv(65600)
            if packet[14] == 0x45 and packet[23] == 6 and packet[36:38] == port.to_bytes(2, "big"):
                seen["syn" if packet[47] & 2 else "later"] = packet[15] >> 2
    assert seen == {"syn": 10, "later": 10}
    here.close()
    there.close()


def test_nothing_to_set_costs_nothing():
    assert treatments(None) is None
    assert treatments({"default": {}, "ports": []}) is None
