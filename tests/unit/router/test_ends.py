# SPDX-License-Identifier: Apache-2.0
"""Ends of sockets as the kernel tells them.

our namespace     client --- TCP, 127.0.0.1 --- server      Ends() hears both go
another (fd)      the same                                  Ends(fd) hears those, and no other
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import time

import pytest

from slim_router import ends as module
from slim_router import netns
from slim_router.ends import Ends, parse
from slim_router.wire import pack_addr

PATIENCE = 10.0


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")


def pair(port: int = 0) -> tuple[socket.socket, socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        client = socket.create_connection(listener.getsockname())
        server, _unused = listener.accept()
    return client, server


def hear(ends: Ends, cookies: set[int]) -> dict[int, module.End]:
    """The reports of these sockets, which must come."""
    found: dict[int, module.End] = {}
    deadline = time.monotonic() + PATIENCE
    while cookies - set(found):
        assert time.monotonic() < deadline, f"not reported: {cookies - set(found)}"
        found.update((end.cookie, end) for end in ends.read(100_000) if end.cookie in cookies)
        time.sleep(0.01)
    return found


def figures(end: module.End) -> dict[str, int]:
    """All of them, as this kernel has."""
    assert end.figures is not None
    assert None not in end.figures.values()
    return {name: value for name, value in end.figures.items() if value is not None}


@pytest.fixture
def opened():
    with contextlib.ExitStack() as stack:

        def make(*arguments, **options) -> Ends:
            made = Ends(*arguments, **options)
            stack.callback(made.close)
            assert not made.blind, made.blind
            return made

        yield make


def test_both_ends_come_with_their_names_and_figures(opened):
    ends = opened()
    client, server = pair()
    names = client.getsockname(), client.getpeername()
    ours, theirs = cookie(client), cookie(server)
    client.sendall(b"x" * 5000)
    server.sendall(b"y" * 300)
    assert len(server.recv(5000, socket.MSG_WAITALL)) == 5000
    assert len(client.recv(300, socket.MSG_WAITALL)) == 300
    client.close()
    server.recv(1)
    server.close()
    found = hear(ends, {ours, theirs})
    end = found[ours]
    assert (end.src, end.sport) == (pack_addr(names[0][0]), names[0][1])
    assert (end.dst, end.dport) == (pack_addr(names[1][0]), names[1][1])
    mine, other = figures(end), figures(found[theirs])
    # SYN and FIN take a number each, RFC 9293 3.4.
    assert 5000 <= mine["bytes_sent"] <= 5002
    assert 300 <= mine["bytes_received"] <= 301
    assert mine["retransmits"] == 0
    assert 0 < mine["min_rtt_us"] <= 10_000_000
    assert 5000 <= other["bytes_received"] <= 5001


def test_sockets_of_ipv6_are_reported_with_mapped_names(opened):
    """The accepting side of host connections are such ones."""
    ends = opened(None, (29_960, 29_969))
    with socket.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::ffff:127.0.0.1", 29_960))
        listener.listen()
        client = socket.create_connection(("127.0.0.1", 29_960))
        server, _unused = listener.accept()
    theirs = cookie(server)
    client.close()
    server.close()
    end = hear(ends, {theirs})[theirs]
    assert (end.src, end.sport) == (pack_addr("127.0.0.1"), 29_960)


def test_an_aborted_socket_is_reported_when_its_owner_lets_go(opened):
    ends = opened()
    client, server = pair()
    ours, theirs = cookie(client), cookie(server)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    hear(ends, {theirs})
    assert not [end for end in ends.read(100_000) if end.cookie == ours]
    client.close()
    hear(ends, {ours})


def test_only_ports_in_the_range_are_reported_then_others_too(opened):
    ends = opened(None, (29_990, 29_991))
    for port in (29_990, 29_991):
        inside, outside = pair(port), pair()
        wanted, others = {cookie(s) for s in inside}, {cookie(s) for s in outside}
        for sock in (*outside, *inside):
            sock.close()
        assert not others & set(hear(ends, wanted))
    ends.narrow((29_980, 29_991))
    more = pair(29_980)
    wanted = {cookie(sock) for sock in more}
    for sock in more:
        sock.close()
    hear(ends, wanted)


def test_who_lives_and_who_does_not(opened):
    ends = opened()
    first, second = pair(), pair()
    known = {cookie(sock) for sock in (*first, *second)}
    assert ends.living(known) == known
    gone = {cookie(sock) for sock in second}
    for sock in second:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    assert ends.living(known) == known - gone
    for sock in first:
        sock.close()


def test_a_listener_that_does_not_read_is_told_of_what_it_lost(opened, monkeypatch):
    monkeypatch.setattr(module, "BUFFER", 4096)
    # (the namespace is not ours alone: others' sockets would fill it, too)
    ends = opened(None, (29_970, 29_979))
    deadline = time.monotonic() + PATIENCE
    while not ends.overruns:
        assert time.monotonic() < deadline, "no overrun"
        for _unused in range(20):
            for sock in pair(29_970):
                sock.close()
        list(ends.read(1000))
    # Read to its end it is told again; what was still on its way may fill it once more.
    heard: set[int] = set()
    wanted: set[int] = set()
    while not wanted & heard:
        assert time.monotonic() < deadline, "nothing more is reported"
        heard |= {end.cookie for end in ends.read(1000)}
        last = pair(29_971)
        wanted |= {cookie(sock) for sock in last}
        for sock in last:
            sock.close()
        time.sleep(0.01)


def test_another_namespace_is_heard_by_its_descriptor_and_kept_apart(opened):
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces")
    name = f"ends-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True, timeout=20)
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        there, here = opened(fd), opened()
        away = netns.inside(fd, pair)
        os.close(fd)
        wanted = {cookie(sock) for sock in away}
        assert there.living(wanted) == wanted
        assert here.living(wanted) == set()
        for sock in away:
            sock.close()
        hear(there, wanted)
        assert not wanted & {end.cookie for end in here.read(100_000)}
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(88),
        struct.pack("=IHHII", 88, 20, 0, 0, 0),
        struct.pack("=IHHII", 400, 20, 0, 0, 0) + bytes(72),
        struct.pack("=IHHII", 10, 20, 0, 0, 0) + bytes(72),
        struct.pack("=IHHII", 88, 3, 0, 0, 0) + bytes(72),
    ],
)
def test_what_is_no_report_is_none(data):
    assert parse(data) is None


@pytest.mark.parametrize(
    "attributes",
    [b"", struct.pack("=HH", 2, 2), struct.pack("=HH", 300, 2), struct.pack("=HH", 3, 9) + b"\0"],
)
def test_a_report_without_whole_figures_has_none(attributes):
    length = 88 + len(attributes)
    data = struct.pack("=IHHII", length, 20, 0, 0, 0) + bytes([2]) + bytes(71) + attributes
    end = parse(data)
    assert end is not None
    assert end.figures is None


def test_figures_that_an_older_kernel_lacks_are_null():
    info = struct.pack("=HH", 4 + 136, 2) + bytes(136)
    data = struct.pack("=IHHII", 88 + len(info), 20, 0, 0, 0) + bytes([2]) + bytes(71) + info
    end = parse(data)
    assert end is not None
    assert end.figures is not None
    assert end.figures["bytes_received"] == 0
    assert end.figures["delivery_rate"] is None
