# SPDX-License-Identifier: Apache-2.0
"""Strangers get a reset and a count; nobody else notices.

node1                              node2
c1 ------ a real connection ---->  c2, worker's data port
host: sniffs a real hello,   --->  the same data port, from the other host
      plays it back                (and from node2 itself)
c1: garbage and odd descriptors to the router's Unix socket, from inside
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    PEER_PORT,
    PYTHON,
    Words,
    build,
    read_until,
    run_program,
    start_peer,
)

HELLO_SIZE = 80  # docs/protocol.md

#: Prints the first whole hello that passes, as hexadecimal digits.
SNIFF = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.settimeout(20)
print("sniffing", flush=True)
while True:
    frame = s.recv(65536)
    at = frame.find(b"SLH1")
    if at >= 0 and len(frame) >= at + 80:
        print("hello", frame[at:at + 80].hex(), flush=True)
        break
"""

#: Sends each hexadecimal argument on a connection of its own; how each ended.
KNOCK = """
import socket, sys
host, port, half = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "half"
for text in sys.argv[4:]:
    s = socket.create_connection((host, port), 5)
    s.settimeout(10)
    try:
        s.sendall(bytes.fromhex(text.replace("-", "")))
        if half:
            s.shutdown(socket.SHUT_WR)
        got = s.recv(4096)
        print("data" if got else "end", flush=True)
    except ConnectionResetError:
        print("reset", flush=True)
    except TimeoutError:
        print("nothing", flush=True)
    s.close()
"""

#: Misbehaves on the router's Unix socket in every way that its argument names.
HOSTILE = r"""
import array, os, random, socket, sys
PATH = "/run/slim/shim/router.sock"
rng = random.Random(int(sys.argv[2]))
def dial():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.connect(PATH)
    return s
def hello():
    return bytes.fromhex("534c0101") + bytes(60) + (1).to_bytes(8, "little") + bytes(24)
def record(kind, **at):
    raw = bytearray(hello()); raw[3] = kind
    for where, value in at.items():
        raw[int(where[1:]):int(where[1:]) + len(value)] = value
    return bytes(raw)
def fds(s, data, numbers):
    try:
        s.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))])
    except OSError:
        pass
def ended(s):
    try:
        while s.recv(8192):
            pass
        return True
    except (ConnectionResetError, BrokenPipeError):
        return True
    except TimeoutError:
        return False
assert len(hello()) == 96, len(hello())
what, count = sys.argv[1], int(sys.argv[3])
bad = 0
for number in range(count):
    s = dial()
    try:
        if what == "garbage":
            s.send(rng.randbytes(rng.choice([1, 4, 95, 96, 97, 500])))
        elif what == "oversized":
            s.send(hello() + rng.randbytes(rng.choice([1, 96, 60000])))
        elif what == "kinds":
            s.send(hello()); s.recv(8192)
            s.send(record(rng.choice([0, 2, 4, 9, 13, 18, 19, 21, 77, 255])))
        elif what == "fds":
            r, w = os.pipe()
            null = os.open("/dev/null", os.O_RDWR)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            pool = [r, w, null, udp.fileno(), tcp.fileno(), a.fileno(), b.fileno(), s.fileno()]
            s.send(hello()); s.recv(8192)
            for _ in range(8):
                some = [rng.choice(pool) for _ in range(rng.choice([0, 1, 2, 3, 4, 20]))]
                fds(s, record(12, o52=bytes([2, 0]), o64=bytes([128])), some)
            for fd in (r, w, null): os.close(fd)
            for each in (udp, tcp, a, b): each.close()
            s.settimeout(0.2)
        elif what == "silent":
            pass
        if what not in ("fds", "silent") and not ended(s):
            bad += 1
    except (ConnectionResetError, BrokenPipeError):
        pass
    s.close()
print("bad", bad)
"""


def endpoint_row(lab: Lab, name: str) -> dict[str, Any]:
    """What the router says of an endpoint of its host."""
    for row in lab.slimctl(name, "endpoints")["endpoints"]:
        if row["name"] == name:
            return dict(row)
    raise AssertionError(f"{name} is not there")


def sum_of(lab: Lab, name: str, prefix: str) -> int:
    counters = endpoint_row(lab, name)["counters"]
    return sum(value for key, value in counters.items() if key.startswith(prefix))


def works(lab: Lab, program: str = "test_connect_blocking") -> int:
    """A real program still works; how many of its connections took the host path."""
    words: list[Any] = [build() / program, lab.ip("c2"), str(PEER_PORT)]
    outcome = run_program(lab, "c1", "slim", words)
    assert outcome.status == 0, f"\n{outcome.said}"
    return outcome.slim


@pytest.fixture
def hello(slim_lab: Lab) -> Iterator[bytes]:
    """A real hello of c1 to c2, overheard on the wire between the hosts."""
    start_peer(slim_lab, "c2", "slim")
    works(slim_lab)
    sniffer = slim_lab.popen("node1", [PYTHON, "-c", SNIFF], stdout=subprocess.PIPE, text=True)
    read_until(sniffer, "sniffing")
    works(slim_lab)
    said = read_until(sniffer, "\n", 15)
    if "hello" not in said:
        said += read_until(sniffer, "hello ", 15)
    match = re.search(r"hello ([0-9a-f]{160})", said)
    assert match, said
    yield bytes.fromhex(match[1])


def knock(lab: Lab, source: str, records: list[bytes], half: bool = False) -> list[str]:
    port = endpoint_row(lab, "c2")["data_port"]
    words: Words = [PYTHON, "-c", KNOCK, lab.hostip("c2"), str(port), "half" if half else "open"]
    said = lab.run(source, [*words, *(f"-{record.hex()}" for record in records)], timeout=120)
    return str(said.stdout).split()


@pytest.mark.parametrize("source", ["node1", "node2"])
def test_replayed_truncated_and_flipped_hellos(slim_lab: Lab, hello: bytes, source: str) -> None:
    before = sum_of(slim_lab, "c2", "hello_")
    flipped = []
    for bit in range(0, HELLO_SIZE * 8, 7):
        one = bytearray(hello)
        one[bit // 8] ^= 1 << (bit % 8)
        flipped.append(bytes(one))
    cases = [hello, hello, *flipped]
    ends = knock(slim_lab, source, cases)
    assert set(ends) == {"reset"}, ends
    assert sum_of(slim_lab, "c2", "hello_") - before >= len(cases)
    cut = [hello[:size] for size in (1, 4, 40, 79)]
    assert set(knock(slim_lab, source, cut, half=True)) == {"reset"}
    assert sum_of(slim_lab, "c2", "hello_") - before >= len(cases) + len(cut)
    assert works(slim_lab) > 0


@pytest.mark.parametrize("source", ["node1", "node2"])
def test_a_stranger_on_the_data_port_gets_nothing(slim_lab: Lab, source: str) -> None:
    """No data of others; a reset within the bound of 3 s once it has said anything.

    One that says nothing stays in the kernel's queue (TCP_DEFER_ACCEPT) and costs nobody.
    """
    start_peer(slim_lab, "c2", "slim")
    works(slim_lab)
    before = sum_of(slim_lab, "c2", "hello_")
    ends = knock(slim_lab, source, [b"GET / HTTP/1.0\r\n\r\n" * 10, b"S", b"SLH1", bytes(80)])
    assert set(ends) == {"reset"}, ends
    assert sum_of(slim_lab, "c2", "hello_") - before >= 4
    assert works(slim_lab, "test_speaks_first") > 0


def test_a_container_cannot_reach_a_data_port_with_anothers_hello(
    slim_lab: Lab, hello: bytes
) -> None:
    """From inside a container there is no way to the host's address at all, or a reset."""
    port = endpoint_row(slim_lab, "c2")["data_port"]
    words: Words = [
        PYTHON,
        "-c",
        KNOCK,
        slim_lab.hostip("c2"),
        str(port),
        "open",
        f"-{hello.hex()}",
    ]
    done = slim_lab.run("c3", words, check=False, timeout=30)
    assert done.returncode != 0 or done.stdout.split() == ["reset"], done.stdout


def test_strangers_in_number_do_not_shut_others_out(slim_lab: Lab) -> None:
    """More silent strangers than the worker keeps: real hellos still get through."""
    start_peer(slim_lab, "c2", "slim")
    works(slim_lab)
    port = endpoint_row(slim_lab, "c2")["data_port"]
    crowd = (
        "import socket, sys, time\n"
        "s = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) for _ in range(700)]\n"
        "for x in s: x.send(b'S')\n"
        "print('crowd', flush=True)\n"
        "time.sleep(30)\n"
    )
    words: Words = [PYTHON, "-c", crowd, slim_lab.hostip("c2"), str(port)]
    process = slim_lab.popen("node1", words, stdout=subprocess.PIPE, text=True)
    read_until(process, "crowd", 20)
    assert works(slim_lab) > 0


@pytest.mark.parametrize("what", ["garbage", "oversized", "kinds", "fds", "silent"])
def test_hostile_messages_on_the_unix_socket(slim_lab: Lab, what: str) -> None:
    start_peer(slim_lab, "c2", "slim")
    works(slim_lab)
    row = endpoint_row(slim_lab, "c1")
    before = sum_of(slim_lab, "c1", "shim_hostile") + sum_of(slim_lab, "c1", "listen_refused")
    count = 50 if what == "silent" else 200
    words: Words = [PYTHON, "-c", HOSTILE, what, "7", str(count)]
    done = slim_lab.run("c1", words, "overlay", check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "bad 0", "the router kept a connection that broke the protocol"
    after = endpoint_row(slim_lab, "c1")
    assert after["pid"] == row["pid"], "the worker did not survive"
    if what != "silent":
        hostile = sum_of(slim_lab, "c1", "shim_hostile") + sum_of(slim_lab, "c1", "listen_refused")
        assert hostile > before
    assert works(slim_lab) > 0


def test_odd_descriptors_do_not_pile_up_in_the_worker(slim_lab: Lab) -> None:
    """Every descriptor that is sent and refused is closed."""
    pid = endpoint_row(slim_lab, "c1")["pid"]

    def held() -> int:
        listing = slim_lab.run("node1", ["ls", f"/proc/{pid}/fd"]).stdout
        return len(listing.split())

    before = held()
    for seed in ("1", "2"):
        words: Words = [PYTHON, "-c", HOSTILE, "fds", seed, "150"]
        slim_lab.run("c1", words, "overlay", timeout=120)
    wait_for(lambda: held() <= before + 8, 10, f"descriptors are closed ({before} before)")


def test_a_namespace_without_an_endpoint_is_turned_away(slim_lab: Lab) -> None:
    """The host's own namespace is nobody's: its programs get no worker."""
    before = slim_lab.slimctl("node1", "status")["events"].get("shim_unknown_namespace", 0)
    words: Words = [PYTHON, "-c", HOSTILE, "garbage", "3", "20"]
    slim_lab.run("node1", words, check=False, timeout=60)
    after = slim_lab.slimctl("node1", "status")["events"].get("shim_unknown_namespace", 0)
    assert after - before >= 20
