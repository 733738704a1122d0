# SPDX-License-Identifier: Apache-2.0
"""Reload: a new map is applied without touching whom it leaves alone.

node1: supervisor -- a1, a2 (fake)  <== trunk ==>  node2: supervisor -- b1 (fake)
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from slim_router.admin import AdminError
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

A1, A2, B1, B2 = "10.44.0.1", "10.44.0.3", "10.44.0.2", "10.44.0.4"


@contextlib.asynccontextmanager
async def scene(fleet, *hosts):
    async with Puppets(fleet.directory) as puppets:
        made = [fleet.router(host) for host in hosts]
        try:
            for router in made:
                await router.start()
            yield puppets, *made
        finally:
            for router in made:
                await router.stop()


@pytest.fixture
def trio(pair):
    pair.endpoint("a2", A2, "node1", pair.netns())
    pair.write()
    return pair


def test_endpoints_are_added_and_removed_and_the_others_go_on(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            a1.send(op="locate", vip=A2)
            await a1.get("located", vip=A2, found=True)
            trio.endpoints = [e for e in trio.endpoints if e["name"] != "a2"]
            trio.endpoint("a9", "10.44.0.9", "node1", trio.netns())
            trio.revision = 2
            trio.write()
            result = await one.reload()
            assert result["revision"] == 2
            assert result["added"] == ["default/10.44.0.9"]
            assert result["removed"] == [f"default/{A2}"]
            await a2.get("stop")
            await puppets.worker("a9")
            assert A2 in (await a1.get("unlocate"))["vips"]
            got = await a1.get("located", vip=A2, found=False)
            assert got["reason"] in (1, 10)
            await until(
                lambda: one.registry.endpoints["default", "10.44.0.9"].up, "the new one is up"
            )
            assert not a1.gone
            assert one.registry.endpoints["default", A1].restarts == 0

    run(body())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: f.endpoint("dup", A1, "node1", "/run/netns/x"), "already held by node1/a1"),
        (lambda f: f.endpoint("out", "10.99.0.1", "node1", "/x"), "outside the overlay"),
        (lambda f: f.changes["node1"].update(trunk_port=6791), "port 6791"),
        (lambda f: f.changes["node1"].update(data_ports=[21000, 21009]), "restart it"),
        (lambda f: f.changes["node1"].update(colour="red"), "unknown key"),
        (
            lambda f: f.changes["node1"].update(
                tls={"ca": "/missing", "cert": "/missing", "key": "/missing"}
            ),
            "tls: ca /missing",
        ),
    ],
)
def test_what_is_invalid_changes_nothing_and_is_reported(trio, spoil, words):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1 = await puppets.worker("a1")
            before = (one.config, one.fleet)
            spoil(trio)
            trio.write("node1")
            with pytest.raises(AdminError, match=words):
                await one.reload()
            assert (one.config, one.fleet) == before
            assert one.directory.fleet is one.fleet
            assert words in one.last_reload
            assert one.reloads == {"refused": 1}
            assert not a1.gone
            assert sorted(ep.state for ep in one.registry.endpoints.values()) == ["up", "up"]

    run(body())


def test_a_peer_that_moves_to_another_host_is_found_there(trio):
    """b1 moves from node2 to node1; its old host may no longer speak for it."""

    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, two):
            a1, b1 = await puppets.worker("a1"), await puppets.worker("b1")
            await until(lambda: one.trunks.get("node2"), "trunk")
            await until(lambda: one.trunks.get("node2").claims, "announcement")
            key_id = one.trunks.get("node2").key_id
            a1.send(op="pair", key_id=key_id, vip=B1)
            assert (await a1.get("pair"))["ok"] is True
            a1.send(op="locate", vip=B1)
            await a1.get("located", vip=B1, found=True)
            moved = next(e for e in trio.endpoints if e["name"] == "b1")
            moved.update(host="node1", netns=trio.netns())
            trio.write()
            await one.reload()
            # node2 does not know yet, and goes on announcing b1: of no effect.
            assert key_id in (await a1.get("unpair"))["key_ids"]
            assert B1 in (await a1.get("unlocate"))["vips"]
            new = await puppets.worker("b1", after=b1)
            got = await until(
                lambda: next(
                    (
                        m
                        for m in a1.seen
                        if m["op"] == "located"
                        and m.get("address") == trio.hosts["node1"]["address"]
                    ),
                    None,
                ),
                "b1 is found on node1",
            )
            assert got["port"] == new.config["data_port"]
            a1.send(op="pair", key_id=key_id, vip=B1)
            assert (await a1.get("pair"))["ok"] is False
            await two.reload()
            await b1.get("stop")

    run(body())


def test_an_announcement_that_was_ahead_of_our_map_counts_once_the_map_is_here(trio):
    """node2 gets the new map first: the push reaches node1 a moment later."""

    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, two):
            a1 = await puppets.worker("a1")
            await until(lambda: one.trunks.get("node2"), "trunk")
            a1.send(op="locate", vip=B2)
            assert (await a1.get("located", vip=B2))["reason"] == 1
            trio.endpoint("b2", B2, "node2", trio.netns())
            trio.write()
            await two.reload()
            await until(lambda: one.counters["announce_not_its_vip"], "node1 hears of it")
            a1.send(op="locate", vip=B2)
            assert (await a1.get("located", vip=B2))["found"] is False
            await one.reload()
            await a1.get("located", vip=B2, found=True)

    run(body())


def test_a_host_that_leaves_the_map_loses_its_trunk_and_one_that_comes_gets_one(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, two):
            a1 = await puppets.worker("a1")
            await until(lambda: one.trunks.get("node2"), "trunk")
            hosts, endpoints = dict(trio.hosts), list(trio.endpoints)
            del trio.hosts["node2"]
            trio.endpoints = [e for e in endpoints if e["host"] == "node1"]
            trio.write("node1")
            await one.reload()
            assert one.trunks.get("node2") is None
            # node2 still believes in us, and is turned away.
            await until(lambda: one.counters["trunk_refused"], "node2 is refused")
            trio.hosts, trio.endpoints = hosts, endpoints
            trio.write("node1")
            await one.reload()
            await until(lambda: one.trunks.get("node2"), "trunk again", 10)
            await until(lambda: two.trunks.get("node1"), "trunk again", 10)
            assert not a1.gone

    run(body())


def test_bounds_that_workers_know_restart_them_others_do_not(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1 = await puppets.worker("a1")
            trio.changes["node1"]["bounds"] = {"ping_s": 0.3}
            trio.write()
            await one.reload()
            await asyncio.sleep(0.1)
            assert not a1.gone
            trio.changes["node1"]["bounds"] = {"swap_us": 3000}
            trio.write()
            await one.reload()
            new = await puppets.worker("a1", after=a1)
            assert new.config["bounds"]["swap_us"] == 3000
            assert new.config["data_port"] == a1.config["data_port"]

    run(body())


def test_new_certificates_serve_the_next_trunk(trio, tmp_path):
    async def body():
        from tests.unit.router.fleet import Ca

        async with scene(trio, "node1", "node2") as (_unused, one, two):
            old = await until(lambda: one.trunks.get("node2"), "trunk")
            trio.ca = Ca(tmp_path / "new", "new CA")
            for host in trio.hosts:
                trio.tls[host] = trio.ca.host(host)
            trio.write()
            await one.reload()
            await two.reload()
            assert one.trunks.get("node2") is old, "a live trunk stays"
            old.close("test")
            await until(lambda: one.trunks.get("node2"), "a trunk under the new CA")

    run(body())


def test_many_reloads_leak_no_descriptor_and_no_task(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            await puppets.worker("a1")
            spare = trio.netns()

            async def cycle():
                trio.endpoint("a9", "10.44.0.9", "node1", spare)
                trio.write()
                await one.reload()
                await until(lambda: one.registry.endpoints["default", "10.44.0.9"].up, "up")
                trio.endpoints = [e for e in trio.endpoints if e["name"] != "a9"]
                trio.write()
                await one.reload()
                gone = [p for p in puppets.all if p.config["name"] == "a9"]
                await until(lambda: all(p.gone for p in gone), "gone")
                for puppet in gone:
                    puppet.writer.close()
                puppets.all = [p for p in puppets.all if p not in gone]
                await asyncio.sleep(0.02)

            await cycle()
            fds, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())  # noqa: PTH208
            for _unused in range(5):
                await cycle()
            await until(
                lambda: len(os.listdir("/proc/self/fd")) <= fds,  # noqa: PTH208
                "no descriptor leaked",
            )
            assert len(asyncio.all_tasks()) <= tasks

    run(body())
