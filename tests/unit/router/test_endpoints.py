# SPDX-License-Identifier: Apache-2.0
"""Endpoints come and go with their network namespaces.

node1: supervisor -- a1 (fake), its namespace made and deleted by the test
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from slim_router import endpoints, netns
from slim_router.endpoints import make_listener
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

A1 = ("default", "10.44.0.1")


@pytest.fixture
def lone(fleet):
    fleet.host("node1")
    fleet.endpoint("a1", A1[1], "node1", fleet.netns())
    fleet.write()
    return fleet


@contextlib.asynccontextmanager
async def scene(fleet):
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1")
        try:
            await router.start()
            yield puppets, router
        finally:
            await router.stop()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=10)


def test_a_cookie_is_read_without_moving_this_process(lone):
    path = lone.endpoints[0]["netns"]
    before, here = netns.own_cookie(), Path("/proc/self/ns/net").stat().st_ino
    fd, identity = netns.open_path(path)
    try:
        cookie = netns.cookie_of_fd(fd)
        assert cookie != before
        assert cookie == netns.cookie_of_fd(fd)
    finally:
        os.close(fd)
    assert identity == netns.identify(path)
    assert netns.own_cookie() == before
    assert Path("/proc/self/ns/net").stat().st_ino == here
    assert not [t for t in threading.enumerate() if t.name == "slim-netns"]


def test_what_is_no_network_namespace_is_none(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert netns.identify(str(plain)) is None
    assert netns.identify(str(tmp_path / "missing")) is None
    with pytest.raises(OSError, match="not a namespace"):
        netns.open_path(str(plain))
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="setns"):
            netns.cookie_of_fd(fd)
    finally:
        os.close(fd)


def test_a_namespace_that_comes_later_is_found(lone):
    async def body():
        path = lone.endpoints[0]["netns"]
        name = Path(path).name
        ip("netns", "del", name)
        async with scene(lone) as (puppets, one):
            ep = one.registry.endpoints[A1]
            assert ep.state == "absent"
            assert path in ep.detail
            ip("netns", "add", name)
            await puppets.worker("a1")
            await until(lambda: ep.up, "up")

    run(body())


def test_a_namespace_that_goes_ends_the_worker_and_refuses_peers(lone):
    async def body():
        name = Path(lone.endpoints[0]["netns"]).name
        async with scene(lone) as (puppets, one):
            a1 = await puppets.worker("a1")
            ep = one.registry.endpoints[A1]
            ip("netns", "del", name)
            await a1.get("stop")
            await until(lambda: ep.state == "absent", "absent")
            assert not one.registry.by_cookie
            await until(lambda: a1.gone, "the worker has ended")
            target = (lone.hosts["node1"]["address"], ep.port)

            def refused() -> bool:
                with socket.socket() as sock:
                    return sock.connect_ex(target) == errno.ECONNREFUSED

            await until(refused, "peers are refused")
            assert ep.restarts == 0, "an orderly end is no crash"

    run(body())


def test_a_namespace_made_anew_under_the_same_name_gets_a_new_worker(lone):
    async def body():
        name = Path(lone.endpoints[0]["netns"]).name
        async with scene(lone) as (puppets, one):
            a1 = await puppets.worker("a1")
            ep = one.registry.endpoints[A1]
            cookie = ep.cookie
            ip("netns", "del", name)
            ip("netns", "add", name)
            new = await puppets.worker("a1", after=a1)
            await until(lambda: ep.up and ep.cookie != cookie, "up in the new namespace")
            assert new.config["netns_inode"] == Path(lone.endpoints[0]["netns"]).stat().st_ino
            assert new.config["data_port"] == a1.config["data_port"]
            assert list(one.registry.by_cookie) == [ep.cookie]

    run(body())


def test_the_hosts_own_namespace_is_refused(fleet):
    async def body():
        fleet.host("node1")
        fleet.endpoint("a1", A1[1], "node1", "/proc/self/ns/net")
        fleet.write()
        async with scene(fleet) as (_unused, one):
            ep = one.registry.endpoints[A1]
            assert ep.state == "refused"
            assert "host's own" in ep.detail

    run(body())


def test_one_namespace_serves_one_endpoint(lone, tmp_path):
    async def body():
        alias = tmp_path / "alias"
        alias.symlink_to(lone.endpoints[0]["netns"])
        lone.endpoint("a2", "10.44.0.2", "node1", str(alias))
        lone.write()
        async with scene(lone) as (puppets, one):
            states = {ep.spec.name: ep for ep in one.registry.endpoints.values()}
            assert sorted(ep.state for ep in states.values()) == ["refused", "up"]
            holder = next(ep for ep in states.values() if ep.up)
            other = next(ep for ep in states.values() if not ep.up)
            assert f"namespace of node1/{holder.spec.name}" in other.detail
            # When the holder leaves the map, the other takes over.
            lone.endpoints = [e for e in lone.endpoints if e["name"] == other.spec.name]
            lone.write()
            await one.reload()
            await puppets.worker(other.spec.name)
            await until(lambda: other.up, "the other is up")

    run(body())


def test_the_listener_is_dual_stack_and_wants_data_first(fleet):
    address = fleet.host("node1")
    with make_listener(address, 20005) as sock:
        assert sock.family == socket.AF_INET6
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) >= 5
        with socket.create_connection((address, 20005)) as client:
            client.send(b"x")
            sock.setblocking(True)
            sock.settimeout(5)
            server, name = sock.accept()
            server.close()
            assert name[0].startswith("::ffff:127.")
        # A predecessor's live connections do not keep the port.
        sock.close()
        make_listener(address, 20005).close()


def test_the_listener_falls_back_to_ipv4(fleet, monkeypatch):
    address = fleet.host("node1")
    real = socket.socket

    def without_ipv6(family=socket.AF_INET, *rest, **named):
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest, **named)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    with make_listener(address, 20006) as sock:
        assert sock.family == socket.AF_INET
        assert sock.getsockname() == (address, 20006)


def test_a_data_port_that_a_stranger_holds_is_exchanged(lone, monkeypatch):
    monkeypatch.setattr(endpoints, "BIND_PATIENCE", 2)

    async def body():
        address = lone.hosts["node1"]["address"]
        with socket.create_server((address, 20000)):
            async with scene(lone) as (puppets, one):
                a1 = await puppets.worker("a1")
                assert a1.config["data_port"] == 20001
                assert one.counters["data_port_exchanged"] == 1
        async with scene(lone) as (puppets, _unused):
            assert (await puppets.worker("a1")).config["data_port"] == 20001

    run(body())


def test_an_address_that_the_host_has_not_is_named_and_tried_again(lone):
    async def body():
        lone.hosts["node1"]["address"] = "192.0.2.77"
        lone.write()
        router = lone.router("node1")
        from slim_router.supervisor import StartError

        async with Puppets(lone.directory):
            with pytest.raises(StartError, match=r"192\.0\.2\.77.*give the host this address"):
                await router.start()

    run(body())
