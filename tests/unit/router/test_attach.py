# SPDX-License-Identifier: Apache-2.0
"""Attached endpoints: what a container runtime starts and ends, on two hosts with one pool.

node1: supervisor -- a1 (map), attached workers  <== trunk ==>  node2: supervisor -- b1 (map)
            \\______________ pool 10.44.7.0/24 of the tenant default ______________/
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from slim_router import attachments, pools, slimctl
from slim_router.frames import Announce
from slim_router.reader import ConfigError
from slim_router.wire import pack_addr
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

REAL = "slim_router.worker"
VIP = "10.44.7.5"
KEY = ("default", VIP)


@pytest.fixture
def pooled(pair):
    pair.pools = [{"tenant": "default", "prefix": "10.44.7.0/24", "hosts": ["node1", "node2"]}]
    pair.write()
    return pair


@contextlib.asynccontextmanager
async def scene(fleet, *hosts, worker=REAL):
    made = [fleet.router(host, worker) for host in hosts]
    try:
        for router in made:
            await router.start()
        if len(made) > 1:
            await until(lambda: all(router.trunks.all() for router in made), "the trunk")
        yield made
    finally:
        for router in made:
            await router.stop()


async def ask(fleet, host, op, **arguments):
    path = fleet.paths(host).admin_socket
    return await asyncio.to_thread(slimctl.ask, path, op, **arguments)


def wanted(netns, container="c0ffee", **more):
    return {
        "network": "slim", "container": container, "ifname": "eth0", "netns": netns,
        "addresses": [VIP], **more,
    }  # fmt: skip


def name_of(request):
    return {key: request[key] for key in ("network", "container", "ifname")}


def files(fleet, host):
    return sorted(path.name for path in fleet.paths(host).attached.glob("*"))


def test_attach_serves_and_detach_ends_and_both_may_be_said_twice(pooled):
    async def body():
        async with scene(pooled, "node1", "node2") as (one, two):
            request = wanted(pooled.netns(), name="web")
            got = await ask(pooled, "node1", "attach", **request)
            assert (got["vip"], got["name"], got["state"]) == (VIP, "web", "up")
            assert got["changed"]
            again = await ask(pooled, "node1", "attach", **request)
            assert not again["changed"]
            assert again["born"] == got["born"]
            assert one.registry.endpoints[KEY].restarts == 0
            await until(lambda: two.directory.host_of(KEY) == "node1", "node2 knows")
            (listed,) = (await ask(pooled, "node1", "attached"))["attached"]
            assert (listed["container"], listed["state"]) == ("c0ffee", "up")
            assert len(files(pooled, "node1")) == 1
            for expected in (True, False):
                gone = await ask(pooled, "node1", "detach", **name_of(request))
                assert gone == {"detached": expected}
            assert KEY not in one.registry.endpoints
            assert files(pooled, "node1") == []
            assert len(list(one.paths.rows.iterdir())) == 1, "the file of the map's endpoint"
            await until(lambda: KEY not in two.trunks.get("node1").claims, "node2 knows the end")

    run(body())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addresses": ["10.44.8.1"]}, "lies in a pool of tenant default that host node1"),
        ({"tenant": "blue"}, "lies in a pool of tenant blue"),
        ({"addresses": []}, "no address in it"),
        ({"addresses": ["nonsense"]}, "not an IPv4 or IPv6 address"),
        ({"addresses": ["10.44.0.1"]}, "lies in a pool"),
        ({"netns": "/proc/self/ns/net"}, "the host's own"),
        ({"netns": "/etc/passwd"}, "not a namespace file"),
        ({"netns": "/nowhere"}, "No such file"),
        ({"netns": "x"}, "relative path"),
        ({"container": "a b"}, "holds a space"),
        ({"ifname": "e" * 16}, "longer than 15 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_and_leaves_nothing(pooled, change, words):
    async def body():
        async with scene(pooled, "node1") as (one,):
            before = set(one.registry.endpoints)
            with pytest.raises(slimctl.Refused, match=words):
                await ask(pooled, "node1", "attach", **(wanted(pooled.netns()) | change))
            assert set(one.registry.endpoints) == before
            assert files(pooled, "node1") == []

    run(body())


def test_a_vip_and_a_namespace_have_one_holder(pooled):
    async def body():
        async with scene(pooled, "node1") as (one,):
            first = wanted(pooled.netns())
            await ask(pooled, "node1", "attach", **first)
            with pytest.raises(slimctl.Refused, match=r"already held by c0ffee \(container c0ffee"):
                await ask(pooled, "node1", "attach", **wanted(pooled.netns(), "other"))
            second = {**first, "network": "another", "addresses": ["10.44.7.9"]}
            with pytest.raises(slimctl.Refused, match="already that of c0ffee"):
                await ask(pooled, "node1", "attach", **second)
            got = await ask(pooled, "node1", "attach", **{**second, "once": True})
            assert (got["network"], got["changed"]) == ("slim", False)
            mapped = one.registry.endpoints["default", "10.44.0.1"].spec.netns
            used = wanted(mapped, "x") | {"addresses": ["10.44.7.8"]}
            with pytest.raises(slimctl.Refused, match="endpoint node1/a1 of the map"):
                await ask(pooled, "node1", "attach", **used)
            named = wanted(pooled.netns(), "feedface", name="a1") | {"addresses": ["10.44.7.6"]}
            assert (await ask(pooled, "node1", "attach", **named))["name"] == "a1-feedface"

    run(body())


def test_the_address_is_found_in_the_namespace(pooled):
    async def body():
        async with scene(pooled, "node1"):
            netns = pooled.netns()
            for words in ("link set lo up", f"addr add {VIP}/32 dev lo"):
                subprocess.run(
                    ["ip", "-n", Path(netns).name, *words.split()], check=True, timeout=10
                )
            request = wanted(netns)
            del request["addresses"]
            for new in (True, False):
                got = await ask(pooled, "node1", "attach", **request)
                assert (got["vip"], got["changed"]) == (VIP, new)

    run(body())


def test_a_namespace_that_goes_without_a_word_takes_its_endpoint_along(pooled):
    async def body():
        async with scene(pooled, "node1") as (one,):
            netns = pooled.netns()
            await ask(pooled, "node1", "attach", **wanted(netns))
            subprocess.run(["ip", "netns", "del", Path(netns).name], check=True, timeout=10)
            await until(lambda: KEY not in one.registry.endpoints, "it is gone")
            assert files(pooled, "node1") == []

    run(body())


def test_what_is_attached_outlives_the_router_and_what_went_meanwhile_does_not(pooled):
    async def body():
        stays, goes, comes = (pooled.netns() for _unused in range(3))
        async with scene(pooled, "node1"):
            got = await ask(pooled, "node1", "attach", **wanted(stays))
            other = wanted(goes, "gone") | {"addresses": ["10.44.7.6"]}
            await ask(pooled, "node1", "attach", **other)
        subprocess.run(["ip", "netns", "del", Path(goes).name], check=True, timeout=10)
        late = wanted(comes, "late") | {"addresses": ["10.44.7.7"]}
        name = attachments.file_name(("slim", "late", "eth0"))
        (pooled.paths("node1").attached / name).write_text(json.dumps({"version": 1, **late}))
        async with scene(pooled, "node1") as (one,):
            listed = (await ask(pooled, "node1", "attached"))["attached"]
            assert {(row["container"], row["vip"]) for row in listed} == {
                ("c0ffee", VIP),
                ("late", "10.44.7.7"),
            }
            kept = one.attach_ops.attachments.records["slim", "c0ffee", "eth0"]
            assert kept.born == got["born"]
            # Left once more by a plugin that had no answer in time: nothing is served anew.
            ep = one.registry.endpoints["default", "10.44.7.7"]
            place = pooled.paths("node1").attached / name
            place.write_text(json.dumps({"version": 1, **late}))
            os.utime(place.parent)
            await until(lambda: json.loads(place.read_text()).get("vip"), "it is completed again")
            assert one.registry.endpoints["default", "10.44.7.7"] is ep
            # Taken away, and left, beside a router that runs: it looks.
            (pooled.paths("node1").attached / name).unlink()
            await until(lambda: ("default", "10.44.7.7") not in one.registry.endpoints, "seen")

    run(body())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1}', '{"version": 2}'])
def test_a_file_that_cannot_be_read_is_named_and_harms_nobody(pooled, content):
    async def body():
        directory = pooled.paths("node1").attached
        directory.mkdir(parents=True)
        (directory / "x.json").write_text(content)
        async with scene(pooled, "node1") as (one,):
            report = (await ask(pooled, "node1", "status"))["attached"]
            assert "x.json" in report["unreadable"][0]
            assert one.registry.endpoints["default", "10.44.0.1"].up

    run(body())


def test_a_vip_that_moves_is_found_and_given_up(pooled):
    async def body():
        async with scene(pooled, "node1", "node2") as (one, two):
            request = wanted(pooled.netns())
            before = await ask(pooled, "node1", "attach", **request)
            await until(lambda: two.directory.host_of(KEY) == "node1", "node2 knows")
            after = await ask(pooled, "node2", "attach", **wanted(pooled.netns(), "moved"))
            assert after["born"] > before["born"]
            assert after["state"] == "up"
            await until(lambda: KEY not in one.registry.endpoints, "node1 gives it up")
            assert files(pooled, "node1") == []
            assert one.directory.host_of(KEY) == two.directory.host_of(KEY) == "node2"
            assert two.registry.endpoints[KEY].up

    run(body())


def test_peers_learn_of_a_move_and_the_old_host_speaks_for_it_no_more(pooled):
    async def body():
        async with (
            Puppets(pooled.directory) as puppets,
            scene(pooled, "node1", "node2", worker="fake_worker") as (one, two),
        ):
            a1 = await puppets.worker("a1")
            a1.send(op="locate", vip=VIP)
            await a1.get("located", vip=VIP, found=False)
            await ask(pooled, "node2", "attach", **wanted(pooled.netns()))
            got = await a1.get("located", vip=VIP, found=True)
            assert got["address"] == pooled.hosts["node2"]["address"]
            trunk = one.trunks.get("node2")
            a1.send(op="pair", key_id=trunk.key_id, vip=VIP)
            assert (await a1.get("pair", vip=VIP))["ok"]
            # It comes up here: leases of the old place are void.
            await ask(pooled, "node1", "attach", **wanted(pooled.netns(), "moved"))
            assert VIP in (await a1.get("unlocate"))["vips"]
            got = await a1.get("located", vip=VIP, found=True)
            assert got["address"] == pooled.hosts["node1"]["address"]
            assert trunk.key_id in (await a1.get("unpair"))["key_ids"]
            a1.send(op="pair", key_id=trunk.key_id, vip=VIP)
            assert not (await a1.get("pair", vip=VIP))["ok"]
            # (a fake worker never says what it has: the detach waits for it in vain)
            await until(lambda: KEY not in two.registry.endpoints, "node2 gives it up", 20)

    run(body())


def test_a_host_cannot_claim_what_its_pool_does_not_give_it(pooled):
    async def body():
        pooled.pools = [{"tenant": "default", "prefix": "10.44.7.0/24", "hosts": ["node1"]}]
        pooled.write()
        async with scene(pooled, "node1", "node2") as (one, two):
            await ask(pooled, "node1", "attach", **wanted(pooled.netns()))
            trunk = two.trunks.get("node1")
            future = attachments.now_us() + 1000
            for born in (0, future):
                trunk.send(Announce("default", pack_addr(VIP), 20001, True, 7, born))
            trunk.send(Announce("default", pack_addr("10.44.0.1"), 20001, True, 7, future))
            await until(lambda: one.counters["announce_not_its_vip"] >= 3, "they are refused")
            assert one.directory.host_of(KEY) == "node1"
            assert one.directory.host_of(("default", "10.44.0.1")) == "node1"
            assert one.registry.endpoints[KEY].up

    run(body())


def test_a_time_that_is_far_ahead_wins_nothing(pooled):
    async def body():
        async with scene(pooled, "node1", "node2") as (one, two):
            await ask(pooled, "node1", "attach", **wanted(pooled.netns()))
            far = attachments.now_us() + 2 * attachments.AHEAD_US
            two.trunks.get("node1").send(Announce("default", pack_addr(VIP), 20001, True, 7, far))
            await until(lambda: KEY in one.trunks.get("node2").claims, "it was heard")
            assert one.directory.host_of(KEY) == "node1"
            assert one.registry.endpoints[KEY].up

    run(body())


def test_a_pool_that_goes_takes_its_endpoints_along_and_one_that_comes_back_brings_them(pooled):
    async def body():
        async with scene(pooled, "node1", "node2") as (one, two):
            await ask(pooled, "node1", "attach", **wanted(pooled.netns()))
            await until(lambda: two.directory.host_of(KEY) == "node1", "node2 knows")
            kept, pooled.pools = pooled.pools, []
            pooled.revision += 1
            pooled.write()
            for router in (two, one):
                await router.reload()
            assert KEY not in one.registry.endpoints
            assert two.directory.host_of(KEY) is None
            assert (
                "no pool"
                in (await ask(pooled, "node1", "status"))["attached"]["refused"][0]["cause"]
            )
            pooled.pools = kept
            pooled.revision += 1
            pooled.write()
            for router in (one, two):
                await router.reload()
            await until(lambda: two.directory.host_of(KEY) == "node1", "and back")
            assert one.registry.endpoints[KEY].up

    run(body())


# --- the map's pools ----------------------------------------------------------------------


def pool(**change):
    return {"tenant": "default", "prefix": "10.44.7.0/24", "hosts": ["node1"], **change}


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ({}, "not a list"),
        ([pool(prefix="10.44.7.1/24")], "is not a prefix"),
        ([pool(prefix=7)], "is not a prefix"),
        ([pool(hosts=[])], "not a list of names"),
        ([pool(hosts=["node9"])], "node9 is not among"),
        ([pool(colour="red")], "unknown key"),
        ([pool(), pool(prefix="10.44.0.0/16")], "overlap"),
        ([pool(), pool()], "overlap"),
        ([pool(hosts=[f"h{n}" for n in range(65)])], "64 are possible"),
    ],
)
def test_wrong_pools_are_refused(listed, words):
    with pytest.raises(ConfigError, match=words):
        pools.parse(listed, "map.json", ["node1", *(f"h{n}" for n in range(65))])


def test_a_vip_is_found_in_its_pool_and_no_other():
    found = pools.parse(
        [pool(), pool(tenant="blue", prefix="10.44.0.0/16"), pool(prefix="fd44::/64")],
        "map.json",
        ["node1"],
    )
    assert found.hosts_of(("default", "10.44.7.255")) == {"node1"}
    assert not found.hosts_of(("default", "10.44.8.0"))
    assert found.hosts_of(("blue", "10.44.8.0")) == {"node1"}
    assert found.hosts_of(("default", "fd44::7")) == {"node1"}
    assert not found.hosts_of(("default", "fd45::7"))
