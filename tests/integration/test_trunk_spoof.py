# SPDX-License-Identifier: Apache-2.0
"""A host may speak only for the vips that the map puts on it.

node1 (a valid certificate, its router held)      node2
a trunk of the test's own, frames by hand  --->   router; c2, c4
c1, c3 are node1's
"""

from __future__ import annotations

from typing import Any

import pytest

from lab.client import Lab, wait_for
from slim_router import frames
from slim_router.wire import pack_addr
from tests.integration.helpers import PEER_PORT, PYTHON, Words, build, run_program, start_peer

#: Speaks the trunk protocol of docs/protocol.md with the files of the node it runs on.
ROGUE = r"""
import socket, ssl, sys, time
host, what, sent = sys.argv[1:4]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.load_verify_locations("/etc/slim/tls/ca.pem")
if what != "no-certificate":
    context.load_cert_chain("/etc/slim/tls/host.pem", "/etc/slim/tls/host.key")
context.check_hostname = False
raw = socket.create_connection((host, 6790), 5)
try:
    s = context.wrap_socket(raw)
    s.settimeout(5)
    s.sendall(bytes.fromhex(sent))
    end = time.monotonic() + 4
    said = b""
    while time.monotonic() < end:
        piece = s.recv(4096)
        if not piece:
            print("closed"); break
        said += piece
    else:
        print("open")
except (OSError, ssl.SSLError) as error:
    print("closed", type(error).__name__)
"""


@pytest.fixture
def rogue_lab(slim_lab: Lab):
    """node1's router is held away, so that the test has its place."""
    start_peer(slim_lab, "c2", "slim")
    slim_lab.keeper("node1", "hold")
    slim_lab.kill_router("node1")
    yield slim_lab
    slim_lab.keeper("node1", "resume")
    slim_lab.wait_router("node1")
    wait_for(
        lambda: all(t["state"] == "up" for t in slim_lab.slimctl("node1", "status")["trunks"]),
        20,
        "the trunk is up again",
    )


def events(lab: Lab) -> dict[str, Any]:
    return dict(lab.slimctl("node2", "status")["events"])


def vip(number: int) -> bytes:
    return pack_addr(f"10.44.0.{number}")


def claims() -> bytes:
    """What only node2 may say of c2 and c4, its own endpoints."""
    said = (
        frames.Announce("default", vip(4), 20000, True, 1),
        frames.Announce("default", vip(2), 20000, True, 1),
        frames.Withdraw("default", vip(4), vip(2), 7000),
        frames.Query(5, "default", vip(4), 4000, vip(2), 7000),
    )
    return b"".join(frames.encode(frame) for frame in said) * 3


def opening(name: str = "node1") -> bytes:
    return frames.encode(frames.Open(99, b"k" * 32, name))


def rogue(lab: Lab, sent: bytes, what: str = "") -> str:
    """Open a trunk from node1, send these bytes; "open" or "closed" at the end of 4 s."""
    words: Words = [PYTHON, "-c", ROGUE, lab.hostip("node2"), what, sent.hex()]
    return str(lab.run("node1", words, timeout=30).stdout).strip()


def local_peers_work(lab: Lab) -> None:
    """c4 reaches c2, both on node2, over the host path: they were not touched."""
    words: Words = [build() / "test_connect_blocking", lab.ip("c2"), str(PEER_PORT)]
    for _unused in range(2):  # the first may be cold
        outcome = run_program(lab, "c4", "slim", words)
        assert outcome.status == 0, f"\n{outcome.said}"
    assert outcome.slim, outcome.said


def test_claims_of_anothers_vips_are_counted_and_void(rogue_lab: Lab) -> None:
    local_peers_work(rogue_lab)
    before = events(rogue_lab)
    rogue(rogue_lab, opening() + claims())
    after = events(rogue_lab)
    for what in ("announce", "withdraw", "query"):
        key = f"{what}_not_its_vip"
        assert after.get(key, 0) > before.get(key, 0), f"{key} did not rise: {after}"
    local_peers_work(rogue_lab)


MALFORMED = {
    "truncated": frames.encode(frames.Announce("default", vip(1), 20000, True, 1))[:-3]
    + frames.encode(frames.Ping(bytes(8))),
    "garbage": b"\xff" * 4000,
    "oversized": frames.HEADER.pack(frames.MAGIC, frames.VERSION, frames.ANNOUNCE, 1 << 30),
    "another version": frames.HEADER.pack(frames.MAGIC, 99, frames.PING, 8) + bytes(8),
    "opened twice": opening(),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_frames_end_the_trunk(rogue_lab: Lab, what: str) -> None:
    assert rogue(rogue_lab, opening() + MALFORMED[what]).startswith("closed")
    local_peers_work(rogue_lab)


def test_another_hosts_name_is_refused(rogue_lab: Lab) -> None:
    """node1's certificate, node2's (or nobody's) name in OPEN."""
    for name in ("node2", "node9", "x" * 200):
        assert rogue(rogue_lab, opening(name) + claims()).startswith("closed"), name
    local_peers_work(rogue_lab)


def test_without_a_certificate_there_is_no_trunk(rogue_lab: Lab) -> None:
    before = events(rogue_lab).get("trunk_handshake_failed", 0)
    assert rogue(rogue_lab, opening(), "no-certificate").startswith("closed")
    wait_for(
        lambda: events(rogue_lab).get("trunk_handshake_failed", 0) > before, 10, "it is counted"
    )
    local_peers_work(rogue_lab)
