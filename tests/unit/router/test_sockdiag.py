# SPDX-License-Identifier: Apache-2.0
"""The socket dump against sockets that this process holds.

client (127.0.0.1 or ::1) <---> listener, both in this process
"""

from __future__ import annotations

import os
import resource
import socket
import struct
import time

import pytest

from slim_router import sockdiag
from slim_router.row import HostName
from slim_router.wire import pack_addr

SO_COOKIE = 57


def cookie(sock: socket.socket) -> int:
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0])


@pytest.fixture
def netlink():
    nl = sockdiag.open_netlink()
    yield nl
    nl.close()


def connect(family: int, address: str):
    """*address* "::": of IPv4, accepted by a listener of both families."""
    both = address == "::"
    listener = socket.create_server((address, 0), family=family, backlog=16, dualstack_ipv6=both)
    client = socket.create_connection(("127.0.0.1" if both else address, listener.getsockname()[1]))
    server, _unused = listener.accept()
    return listener, client, server


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_both_ends_of_a_connection_are_found(netlink, family, address):
    listener, client, server = connect(family, address)
    with listener, client, server:
        client.sendall(b"x" * 5000)
        got = 0
        while got < 5000:
            got += len(server.recv(5000))
        found = {s.cookie: s for s in sockdiag.dump(netlink, family, want_info=True)}
        ours, theirs = found[cookie(client)], found[cookie(server)]
        assert ours.src == ours.dst == pack_addr(address)
        assert (ours.sport, ours.dport) == (client.getsockname()[1], listener.getsockname()[1])
        assert (theirs.sport, theirs.dport) == (ours.dport, ours.sport)
        assert sockdiag.STATES[ours.state] == "established"
        assert ours.bytes_acked >= 5000
        assert theirs.bytes_received == 5000
        assert ours.inode == os.fstat(client.fileno()).st_ino
        assert ours.uid == os.getuid()
        assert cookie(listener) not in found


def test_without_info_the_byte_counts_are_zero(netlink):
    listener, client, server = connect(socket.AF_INET, "127.0.0.1")
    with listener, client, server:
        client.sendall(b"x")
        server.recv(1)
        found = {s.cookie: s for s in sockdiag.dump(netlink, socket.AF_INET)}
        assert found[cookie(server)].bytes_received == 0


def test_a_mapped_connection_is_in_the_ipv6_dump_with_its_ipv4_name(netlink):
    with socket.socket(socket.AF_INET6) as listener, socket.socket(socket.AF_INET6) as client:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::ffff:127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname()[:2])
        found = {s.cookie: s for s in sockdiag.dump(netlink, socket.AF_INET6)}
        assert found[cookie(client)].dst == pack_addr("127.0.0.1")


def name_of(sock: socket.socket) -> HostName:
    ours, theirs = sock.getsockname(), sock.getpeername()
    return HostName(pack_addr(ours[0]), ours[1], pack_addr(theirs[0]), theirs[1])


@pytest.mark.parametrize(
    ("family", "address", "asked"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET),
        (socket.AF_INET6, "::1", socket.AF_INET6),
        (socket.AF_INET6, "::", socket.AF_INET),
    ],
)
def test_sockets_are_found_and_aborted_by_name(netlink, family, address, asked):
    listener, client, server = connect(family, address)
    with listener, client, server:
        client.sendall(b"x" * 5000)
        server.recv(5000, socket.MSG_WAITALL)
        own, name = sockdiag.named(name_of(server), cookie(server))
        assert own == asked
        _unused, gone = sockdiag.named(name_of(server)._replace(rport=1), cookie(server))
        _unused, later = sockdiag.named(name_of(server), cookie(client))
        (found,) = sockdiag.ask(netlink, own, [gone, name, later])
        assert found.sock.cookie == cookie(server)
        assert found.sock.bytes_received == 5000
        assert sockdiag.destroy(netlink, own, [gone, later]) == 0
        client.sendall(b"y")
        assert server.recv(1) == b"y", "another name, or another cookie, aborts nothing"
        assert sockdiag.destroy(netlink, own, [gone, found.name]) == 0
        with pytest.raises(ConnectionAbortedError):
            server.recv(1)
        assert sockdiag.ask(netlink, own, [name]) == []


def test_the_mask_selects_states(netlink):
    listener, client, server = connect(socket.AF_INET, "127.0.0.1")
    with listener, client, server:
        listening = {s.cookie for s in sockdiag.dump(netlink, socket.AF_INET, 1 << 10)}
        assert cookie(listener) in listening
        assert cookie(client) not in listening


def test_a_dump_that_was_dropped_half_way_does_not_spoil_the_next(netlink):
    pairs = [connect(socket.AF_INET, "127.0.0.1") for _unused in range(400)]
    try:
        half = sockdiag.dump(netlink, socket.AF_INET)
        next(half)
        del half
        found = {s.cookie for s in sockdiag.dump(netlink, socket.AF_INET)}
        assert {cookie(client) for _unused, client, _unused in pairs} <= found
    finally:
        for trio in pairs:
            for sock in trio:
                sock.close()


def test_an_error_of_the_kernel_is_an_oserror(netlink):
    with pytest.raises(OSError):
        list(sockdiag.dump(netlink, 200))


def test_ten_thousand_sockets_take_less_than_200_ms(netlink):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 10_200:
        pytest.skip(f"hard limit of {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    held = [listener]
    try:
        for _unused in range(5000):
            client = socket.create_connection(listener.getsockname())
            held += [client, listener.accept()[0]]
        times = []
        for _unused in range(3):
            began = time.process_time()
            count = sum(1 for _unused in sockdiag.dump(netlink, socket.AF_INET))
            times.append(time.process_time() - began)
            assert count >= 10_000
        assert min(times) < 0.2, times
    finally:
        for sock in held:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_imports_nothing_but_the_standard_library():
    import subprocess
    import sys

    package = str(__import__("pathlib").Path(sockdiag.__file__).parent.parent)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from slim_router import sockdiag;"
        " print([m for m in sys.modules if m in ('asyncio', 'ssl', 'pyroute2', 'ctypes')])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, package],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
