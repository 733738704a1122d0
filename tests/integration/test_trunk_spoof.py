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
from tests.integration.helpers import PEER_PORT, PYTHON, build, run_program, start_peer

#: Speaks the trunk protocol of docs/protocol.md with the files of the node it runs on.
ROGUE = r"""
import socket, ssl, struct, sys, time
host, name, what = sys.argv[1:4]
def vip(text): return bytes(10) + b"\xff\xff" + socket.inet_aton(text)
def frame(kind, body): return struct.pack("!HBBI", 0x5354, 1, kind, len(body)) + body
tenant = bytes([7]) + b"default"
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
    s.sendall(frame(1, struct.pack("!I", 99) + b"k" * 32 + name.encode()))
    if what == "claims":
        for _ in range(3):
            s.sendall(frame(2, tenant + vip("10.44.0.4") + struct.pack("!HB", 20000, 1)))
            s.sendall(frame(2, tenant + vip("10.44.0.2") + struct.pack("!HB", 20000, 1)))
            s.sendall(frame(3, tenant + vip("10.44.0.4") + vip("10.44.0.2") + struct.pack("!H", 7000)))
            s.sendall(frame(4, struct.pack("!Q", 5) + tenant + vip("10.44.0.4")
                      + struct.pack("!H", 4000) + vip("10.44.0.2") + struct.pack("!H", 7000)))
    elif what == "truncated":
        s.sendall(frame(2, tenant + vip("10.44.0.1"))[:-3] + frame(6, bytes(8)))
    elif what == "garbage":
        s.sendall(b"\xff" * 4000)
    elif what == "oversized":
        s.sendall(struct.pack("!HBBI", 0x5354, 1, 2, 1 << 30))
    elif what == "replayed-open":
        s.sendall(frame(1, struct.pack("!I", 99) + b"k" * 32 + name.encode()))
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
    return lab.slimctl("node2", "status")["events"]


def rogue(lab: Lab, what: str, name: str = "node1") -> str:
    words = [PYTHON, "-c", ROGUE, lab.hostip("node2"), name, what]
    return lab.run("node1", words, timeout=30).stdout.strip()


def local_peers_work(lab: Lab) -> None:
    """c4 reaches c2, both on node2, over the host path: they were not touched."""
    words: list = [build() / "test_connect_blocking", lab.ip("c2"), str(PEER_PORT)]
    for _ in range(2):  # the first may be cold
        outcome = run_program(lab, "c4", "slim", words)
        assert outcome.status == 0, f"\n{outcome.said}"
    assert outcome.slim, outcome.said


def test_claims_of_anothers_vips_are_counted_and_void(rogue_lab: Lab) -> None:
    local_peers_work(rogue_lab)
    before = events(rogue_lab)
    rogue(rogue_lab, "claims")
    after = events(rogue_lab)
    for what in ("announce", "withdraw", "query"):
        key = f"{what}_not_its_vip"
        assert after.get(key, 0) > before.get(key, 0), f"{key} did not rise: {after}"
    local_peers_work(rogue_lab)


@pytest.mark.parametrize("what", ["truncated", "garbage", "oversized", "replayed-open"])
def test_malformed_frames_end_the_trunk(rogue_lab: Lab, what: str) -> None:
    assert rogue(rogue_lab, what).startswith("closed")
    local_peers_work(rogue_lab)


def test_another_hosts_name_is_refused(rogue_lab: Lab) -> None:
    """node1's certificate, node2's (or nobody's) name in OPEN."""
    for name in ("node2", "node9", "x" * 300):
        assert rogue(rogue_lab, "claims", name).startswith("closed"), name
    local_peers_work(rogue_lab)


def test_without_a_certificate_there_is_no_trunk(rogue_lab: Lab) -> None:
    before = events(rogue_lab).get("trunk_handshake_failed", 0)
    assert rogue(rogue_lab, "no-certificate").startswith("closed")
    wait_for(
        lambda: events(rogue_lab).get("trunk_handshake_failed", 0) > before, 10, "it is counted"
    )
    local_peers_work(rogue_lab)
