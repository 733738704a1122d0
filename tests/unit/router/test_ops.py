# SPDX-License-Identifier: Apache-2.0
"""Every op between supervisor and worker, with workers that the test plays.

node1: supervisor -- a1, a2 (fake)  <== trunk ==>  node2: supervisor -- b1 (fake)
vips: a1 10.44.0.1, a2 10.44.0.3 (both default), b1 10.44.0.2
      x1 10.44.0.1 of tenant blue on node2: same vip, never meets a1
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from slim_router import directory, trunk
from slim_router.wire import pack_addr, pair_key
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

A1, A2, B1 = "10.44.0.1", "10.44.0.3", "10.44.0.2"


@pytest.fixture
def trio(pair):
    pair.endpoint("a2", A2, "node1", pair.netns())
    pair.endpoint("x1", A1, "node2", pair.netns(), tenant="blue")
    pair.write()
    return pair


@contextlib.asynccontextmanager
async def scene(fleet, *hosts):
    """(puppets, supervisors); trunks are up if there are several hosts."""
    async with Puppets(fleet.directory) as puppets:
        made = [fleet.router(host) for host in hosts]
        try:
            for router in made:
                await router.start()
            for router in made:
                for other in hosts:
                    if other != router.config.host:
                        await until(lambda r=router, o=other: r.trunks.get(o), "trunk")
            yield puppets, *made
        finally:
            for router in made:
                await router.stop()


def mac(secret: bytes, src: str, dst: str, router, tenant: str = "default") -> str:
    """The pair key, where *router* serves *dst*."""
    generation = router.registry.endpoints[tenant, dst].generation
    return pair_key(secret, tenant, pack_addr(src), pack_addr(dst), generation).hex()


def test_config_carries_what_the_contract_says_and_two_descriptors(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            puppet = await puppets.worker("a1")
            got = puppet.config
            address = trio.hosts["node1"]["address"]
            port = one.registry.endpoints["default", A1].port
            assert (got["op"], got["name"], got["tenant"], got["vip"]) == (
                "config", "a1", "default", A1,
            )  # fmt: skip
            assert (got["host"], got["address"], got["data_port"]) == ("node1", address, port)
            assert got["overlay"] == ["10.44.0.0/16", "fd44::/64"]
            assert got["secure"] == "none"
            assert set(got["bounds"]) == {
                "swap_us", "blocking_swap_us", "reply_us", "lease_s", "filters_s",
            }  # fmt: skip
            assert got["fds"] == 3
            assert got["listening"] == 1
            assert got["data_name"] == [f"::ffff:{address}", port]
            assert got["netns_inode"] == Path(trio.endpoints[0]["netns"]).stat().st_ino
            other = await puppets.worker("a2")
            assert other.config["data_port"] != port

    run(body())


def test_located_gives_address_port_and_the_key_that_the_peer_will_accept(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, two):
            a1, b1 = await puppets.worker("a1"), await puppets.worker("b1")
            await until(lambda: one.trunks.get("node2").claims, "announcement")
            a1.send(op="locate", vip=B1)
            got = await a1.get("located", vip=B1)
            assert (got["found"], got["reason"]) == (True, 0)
            assert got["address"] == trio.hosts["node2"]["address"]
            assert got["port"] == b1.config["data_port"]
            # b1 meets a hello under this key_id and asks whether it may trust it.
            b1.send(op="pair", key_id=got["key_id"], vip=A1)
            answer = await b1.get("pair")
            assert (answer["ok"], answer["key_id"], answer["vip"]) == (True, got["key_id"], A1)
            assert answer["key"] == got["key"]
            trunk = two.trunks.get("node1")
            assert got["key"] == mac(trunk.key, A1, B1, two)
            assert got["key_id"] == trunk.key_id

    run(body())


def test_endpoints_of_one_host_meet_without_a_trunk(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            a1.send(op="locate", vip=A2)
            got = await a1.get("located", vip=A2)
            assert got["found"] is True
            assert got["address"] == trio.hosts["node1"]["address"]
            assert got["port"] == a2.config["data_port"]
            a2.send(op="pair", key_id=got["key_id"], vip=A1)
            answer = await a2.get("pair")
            assert (answer["ok"], answer["key"]) == (True, got["key"])
            assert got["key"] == mac(one.trunks.self_key, A1, A2, one)
            # Under the host's own key nobody speaks for another host's endpoint.
            a2.send(op="pair", key_id=got["key_id"], vip=B1)
            assert (await a2.get("pair", vip=B1))["ok"] is False

    run(body())


@pytest.mark.parametrize(("vip", "reason"), [("10.44.9.9", 1), (B1, 3), (A1, 6), ("fd44::1", 1)])
def test_a_peer_that_cannot_be_reached_has_a_reason(trio, vip, reason):
    async def body():
        async with scene(trio, "node1") as (puppets, _unused):
            a1 = await puppets.worker("a1")
            a1.send(op="locate", vip=vip)
            got = await a1.get("located", vip=vip)
            assert (got["found"], got["reason"]) == (False, reason)
            assert "key" not in got

    run(body())


def test_a_worker_that_asked_hears_when_the_trunk_comes_up_and_when_it_goes(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1 = await puppets.worker("a1")
            a1.send(op="locate", vip=B1)
            assert (await a1.get("located", vip=B1))["reason"] == 3
            two = trio.router("node2")
            await two.start()
            got = await a1.get("located", vip=B1, found=True)
            key_id = one.trunks.get("node2").key_id
            await two.stop()
            assert B1 in (await a1.get("unlocate"))["vips"]
            assert (await a1.get("located", vip=B1))["reason"] == 3
            assert (await a1.get("unpair"))["key_ids"] == [key_id]
            again = trio.router("node2")
            await again.start()
            new = await a1.get("located", vip=B1, found=True)
            assert new["port"] == got["port"], "data ports are stable over restarts"
            assert new["key"] != got["key"]
            await again.stop()

    run(body())


def test_pair_is_refused_for_vips_that_the_map_puts_elsewhere(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, _unused, two):
            b1 = await puppets.worker("b1")
            key_id = two.trunks.get("node1").key_id
            for vip, reason in (("10.44.9.9", 8), (B1, 8)):
                b1.send(op="pair", key_id=key_id, vip=vip)
                got = await b1.get("pair", vip=vip)
                assert (got["ok"], got["key"], got["reason"]) == (False, None, reason)
            b1.send(op="pair", key_id=12345, vip=A1)
            got = await b1.get("pair", key_id=12345)
            assert (got["ok"], got["reason"]) == (False, 3)
            # x1 is of another tenant: a1's vip in that tenant is x1 itself, a2's is nobody's.
            x1 = await puppets.worker("x1")
            for vip in (A1, A2):
                x1.send(op="pair", key_id=key_id, vip=vip)
                assert (await x1.get("pair", vip=vip))["ok"] is False
            assert two.counters["pair_refused"] == 4
            assert two.counters["pair_unknown_key"] == 1

    run(body())


def test_a_query_is_answered_by_the_worker_of_the_source(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, *_unused):
            a1, a2, b1 = [await puppets.worker(n) for n in ("a1", "a2", "b1")]
            for asker, dst, probe in ((b1, B1, True), (b1, B1, False), (a2, A2, True)):
                asker.send(op="query", id=7, vip=A1, sport=40000, dst=dst, dport=80)
                asked = await a1.get("query")
                assert (asked["vip"], asked["sport"]) == (A1, 40000)
                assert (asked["dst"], asked["dport"]) == (dst, 80)
                a1.send(op="answer", id=asked["id"], probe=probe)
                assert (await asker.get("answer", id=7))["probe"] is probe

    run(body())


def test_a_query_that_nobody_answers_is_answered_real_within_the_bound(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, two):
            a2, b1 = await puppets.worker("a2"), await puppets.worker("b1")
            for asker in (b1, a2):
                began = time.monotonic()
                asker.send(op="query", id=8, vip=A1, sport=40000, dst=B1, dport=80)
                assert (await asker.get("answer", id=8))["probe"] is False
                assert 0.03 < time.monotonic() - began < 2
            assert one.counters["query_expired"] >= 2
            # A late answer is nobody's.
            a1 = await puppets.worker("a1")
            late = await a1.get("query")
            a1.send(op="answer", id=late["id"], probe=True)
            await until(lambda: one.counters["answer_unasked"], "the late answer is counted")
            assert not [m for m in b1.seen if m["op"] == "answer"]
            # Unknown vip, and a host without a trunk: at once.
            for vip in ("10.44.9.9", A1):
                if vip == A1:
                    await one.stop()
                    await until(lambda: two.trunks.get("node1") is None, "the trunk is down")
                refused, expired = (two.counters[f"query_{w}"] for w in ("unanswerable", "expired"))
                b1.send(op="query", id=9, vip=vip, sport=1, dst=B1, dport=80)
                assert (await b1.get("answer", id=9))["probe"] is False
                assert two.counters["query_unanswerable"] == refused + 1
                assert two.counters["query_expired"] == expired

    run(body())


def test_withdraw_reaches_the_peers_that_hold_leases_and_nobody_else(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, *_unused):
            a1, a2, b1, x1 = [await puppets.worker(n) for n in ("a1", "a2", "b1", "x1")]
            a1.send(op="withdraw", port=80, vips=[A2, B1, "10.44.9.9"])
            for puppet in (a2, b1):
                got = await puppet.get("withdraw")
                assert (got["vip"], got["port"]) == (A1, 80)
            assert not [m for m in x1.seen if m["op"] == "withdraw"]

    run(body())


def test_a_worker_that_dies_comes_back_on_its_port_and_knows_its_locations(trio):
    async def body():
        async with scene(trio, "node1", "node2") as (puppets, one, _unused):
            a1, b1 = await puppets.worker("a1"), await puppets.worker("b1")
            await until(lambda: one.trunks.get("node2").claims, "announcement")
            a1.send(op="locate", vip=B1)
            await a1.get("located", vip=B1, found=True)
            b1.send(op="locate", vip=A1)
            before = await b1.get("located", vip=A1, found=True)
            os.kill(a1.pid, signal.SIGKILL)
            new = await puppets.worker("a1", after=a1)
            assert new.config["data_port"] == a1.config["data_port"]
            assert (await new.get("located", vip=B1))["found"] is True
            # Its peer drops what the dead one leased, and finds the successor.
            assert (await b1.get("unlocate"))["vips"] == [A1]
            after = await b1.get("located", vip=A1, found=True)
            assert after["port"] == before["port"]
            assert one.registry.endpoints["default", A1].restarts == 1

    run(body())


def test_connections_wait_in_the_data_listener_while_the_worker_is_replaced(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, _unused):
            a1 = await puppets.worker("a1")
            os.kill(a1.pid, signal.SIGKILL)
            name = (trio.hosts["node1"]["address"], a1.config["data_port"])
            for _unused in range(20):
                _unused, writer = await asyncio.open_connection(*name)
                writer.write(b"hello")
                writer.close()
                await asyncio.sleep(0.01)
            await puppets.worker("a1", after=a1)

    run(body())


def test_a_worker_that_dies_again_and_again_is_not_respawned_in_a_storm(trio):
    async def body():
        async with Puppets(trio.directory):
            one = trio.router("node1", "dying_worker")
            try:
                starting = asyncio.create_task(one.start())
                await asyncio.sleep(2)
                await starting
                # Pauses of 50 ms, doubled each time: 50 + 100 + ... + 800 = 1550.
                assert 2 <= one.registry.endpoints["default", A1].restarts <= 8
                assert one.registry.endpoints["default", A1].state in ("wait", "starting")
            finally:
                await one.stop()

    run(body())


@pytest.mark.parametrize(
    "raw",
    [
        "{",
        '{"op": "what"}',
        '{"op": "locate"}',
        '{"op": "locate", "vip": "nonsense"}',
        '{"op": "pair", "key_id": -1, "vip": "10.44.0.1"}',
        '{"op": "pair", "key_id": "1", "vip": "10.44.0.1"}',
        '{"op": "query", "id": 1, "vip": "10.44.0.1", "sport": 99999, "dport": 1}',
        '{"op": "withdraw", "port": 80, "vips": "10.44.0.1"}',
        '{"op": "using", "vips": [7]}',
        '{"op": "dumped", "id": []}',
    ],
)
def test_a_worker_that_talks_nonsense_is_replaced_and_the_others_go_on(trio, raw):
    async def body():
        async with scene(trio, "node1") as (puppets, _unused):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            a1.do(raw=raw)
            await puppets.worker("a1", after=a1)
            assert not a2.gone

    run(body())


def test_a_hanging_worker_is_killed_at_the_end(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1 = await puppets.worker("a1")
            a1.do(hang=True)
            await asyncio.sleep(0.05)
            began = time.monotonic()
            await one.stop()
            assert time.monotonic() - began < 4
            await until(lambda: a1.gone, "it is dead")

    run(body())


def test_stop_is_said_to_every_worker_and_nothing_is_left_behind(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            zygote = one.nursery.pid
            await one.stop()
            for puppet in (a1, a2):
                await until(lambda p=puppet: p.gone, "it has ended")
                assert puppet.seen[-1]["op"] == "stop"
            assert not Path(f"/proc/{zygote}").exists()
            paths = trio.paths("node1")
            assert not paths.shim_socket.exists()
            assert not paths.admin_socket.exists()
            assert not paths.pid_file.exists()

    run(body())


def test_a_killed_supervisor_takes_zygote_and_workers_along(trio):
    async def body():
        async with Puppets(trio.directory) as puppets:
            paths = trio.paths("node1")
            script = Path(__file__).resolve().parents[3] / "files/router/slim-router"
            import sys

            from tests.unit.router.fleet import FAKES

            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script), "run", "--config", str(paths.config),
                "--map", str(paths.map), "--runtime-dir", str(paths.runtime_dir),
                "--state-dir", str(paths.state_dir), "--worker-module", "fake_worker",
                "--worker-path", str(FAKES),
            )  # fmt: skip
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            assert int(paths.pid_file.read_text()) == process.pid
            process.kill()
            await process.wait()
            for puppet in (a1, a2):
                await until(lambda p=puppet: p.gone, "the worker ends")
            # Nothing of it stands in the way of the next one.
            again = trio.router("node1")
            await again.start()
            await puppets.worker("a1", after=a1)
            assert again.registry.endpoints["default", A1].port == a1.config["data_port"]
            await again.stop()

    run(body())


def test_in_large_fleets_a_trunk_lives_while_workers_use_it_and_comes_back_on_demand(
    trio, monkeypatch
):
    monkeypatch.setattr(trunk, "EAGER_HOSTS", 1)
    monkeypatch.setattr(directory, "WANTED_S", 1.0)
    for host in ("node1", "node2"):
        trio.changes[host]["bounds"] = {"ping_s": 0.1, "ping_misses": 100}
    trio.write()

    async def body():
        async with Puppets(trio.directory) as puppets:
            one, two = trio.router("node1"), trio.router("node2")
            try:
                await one.start()
                await two.start()
                a1, b1 = await puppets.worker("a1"), await puppets.worker("b1")
                await asyncio.sleep(0.3)
                assert not one.trunks.all(), "nobody has asked"
                a1.send(op="locate", vip=B1)
                assert (await a1.get("located", vip=B1))["reason"] == 3
                await a1.get("located", vip=B1, found=True)
                first = one.trunks.get("node2")
                end = time.monotonic() + 2.5
                while time.monotonic() < end:
                    a1.send(op="using", vips=[B1, "10.44.9.9"])
                    await asyncio.sleep(0.2)
                assert one.trunks.get("node2") is first, "its worker holds a lease"
                await until(lambda: first.closed, "nobody uses it any more")
                await a1.get("unlocate")
                assert (await a1.get("located", vip=B1, found=False))["reason"] == 3
                await asyncio.sleep(0.5)
                assert not one.trunks.all(), "and nobody dials"
                assert not two.trunks.all()
                # From the other side.
                b1.send(op="locate", vip=A1)
                await b1.get("located", vip=A1, found=True)
                await until(lambda: one.trunks.get("node2"), "the trunk is back")
            finally:
                await one.stop()
                await two.stop()

    run(body())


# --- who speaks for whom: a peer that the test plays -------------------------------


def test_a_host_that_claims_anothers_vips_gets_nowhere(trio):
    from slim_router.frames import Announce, Answer, Query, Withdraw
    from tests.unit.router.test_trunk import Played

    async def body():
        trio.host("node3")
        trio.write()
        async with scene(trio, "node1") as (puppets, one):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            a1.send(op="locate", vip=B1)
            await a1.get("located", vip=B1)
            evil = await Played.dial(trio, "node1", trio.tls["node3"])
            await evil.open("node3")
            await until(lambda: one.trunks.get("node3"), "node3's trunk")
            key_id = one.trunks.get("node3").key_id
            evil.send(
                Announce("default", pack_addr(B1), 666, True, 7),  # node2's
                Announce("default", pack_addr(A2), 666, True, 7),  # our own
                Announce("default", pack_addr("10.44.9.9"), 666, True, 7),  # nobody's
                Withdraw("default", pack_addr(A1), pack_addr(A2), 80),
                Query(5, "default", pack_addr(A1), 40000, pack_addr(B1), 80),
                Query(6, "default", pack_addr(B1), 40000, pack_addr(B1), 80),
                Answer(1, True),
            )
            answers: dict[int, bool] = {}
            while len(answers) < 2:
                frame = await evil.frame()
                if isinstance(frame, Answer):
                    answers[frame.id] = frame.probe
            assert answers == {5: False, 6: False}
            assert one.counters["announce_not_its_vip"] == 3
            assert one.counters["withdraw_not_its_vip"] == 1
            assert one.counters["query_not_its_vip"] == 2
            assert one.counters["answer_unasked"] == 1
            a1.send(op="locate", vip=B1)
            assert (await a1.get("located", vip=B1))["found"] is False
            a1.send(op="locate", vip=A2)
            assert (await a1.get("located", vip=A2))["port"] == a2.config["data_port"]
            a1.send(op="pair", key_id=key_id, vip=B1)
            assert (await a1.get("pair"))["ok"] is False
            assert not [m for m in a1.seen if m["op"] in ("query", "withdraw")]
            evil.close()

    run(body())


def test_an_answer_of_a_peer_that_was_not_asked_is_void(trio):
    """node3 answers the query that went to node2."""
    from slim_router.frames import Answer, Query
    from tests.unit.router.test_trunk import Played

    async def body():
        trio.host("node3")
        trio.write()
        async with scene(trio, "node1") as (puppets, one):
            a1 = await puppets.worker("a1")
            good = await Played.dial(trio, "node1", trio.tls["node2"])
            await good.open("node2")
            evil = await Played.dial(trio, "node1", trio.tls["node3"])
            await evil.open("node3")
            await until(lambda: len(one.trunks.all()) == 2, "both trunks")
            a1.send(op="query", id=1, vip=B1, sport=1, dst=A1, dport=2)
            while not isinstance(frame := await good.frame(), Query):
                pass
            evil.send(Answer(frame.id, True))
            assert (await a1.get("answer", id=1))["probe"] is False
            assert one.counters["answer_unasked"] == 1
            good.close()
            evil.close()

    run(body())


# --- the shim socket ------------------------------------------------------------------


def knock(path: Path, netns: str | None, word: str = "recv") -> subprocess.Popen[str]:
    """A program that connects to the shim socket, inside *netns* or outside."""
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
        " s.settimeout(5); s.connect(sys.argv[1]); print(s.recv(100).decode())"
    )
    command = ["/usr/bin/python3", "-I", "-c", code, str(path)]
    if netns is not None:
        command = ["nsenter", f"--net={netns}", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def outcome(process: subprocess.Popen[str]) -> str:
    out, _unused = await asyncio.to_thread(process.communicate, None, 10)
    return str(out).strip()


def test_a_shim_reaches_the_worker_of_its_own_namespace(trio):
    async def body():
        async with scene(trio, "node1") as (puppets, one):
            path = trio.paths("node1").shim_socket
            assert path.stat().st_mode & 0o777 == 0o666
            assert path.parent.stat().st_mode & 0o777 == 0o755
            for name, number in (("a1", 0), ("a2", 2)):
                assert await outcome(knock(path, trio.endpoints[number]["netns"])) == "served"
                shim = await (await puppets.worker(name)).get("shim")
                assert shim["fds"] == 1
                ep = next(e for e in one.registry.endpoints.values() if e.spec.name == name)
                assert shim["cookie"] == ep.cookie
            # The host's own namespace and one that is nobody's are turned away.
            assert await outcome(knock(path, None)) == ""
            assert await outcome(knock(path, trio.netns())) == ""
            assert one.counters["shim_unknown_namespace"] == 2
            assert one.counters["shim_accepted"] == 2

    run(body())


def test_a_flood_of_shims_is_bounded_per_endpoint(trio):
    async def body():
        from slim_router.bucket import Bucket

        async with scene(trio, "node1") as (puppets, one):
            ep = one.registry.endpoints["default", A1]
            ep.shims = Bucket(0.0, 3.0)
            path = trio.paths("node1").shim_socket
            results = [await outcome(knock(path, ep.spec.netns)) for _unused in range(5)]
            assert results == ["served"] * 3 + [""] * 2
            assert one.counters["shim_crowded"] == 2
            assert await outcome(knock(path, trio.endpoints[2]["netns"])) == "served"
            del puppets

    run(body())


def test_the_shim_socket_appears_only_when_somebody_serves(trio):
    async def body():
        paths = trio.paths("node1")
        async with Puppets(trio.directory):
            one = trio.router("node1")
            await one.start()
            assert all(ep.up for ep in one.registry.endpoints.values())
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(paths.shim_socket))
            await one.stop()
            with (
                socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock,
                pytest.raises(FileNotFoundError),
            ):
                sock.connect(str(paths.shim_socket))

    run(body())


def test_keys_are_in_no_log_line(trio, capfd):
    async def body():
        from slim_router import log

        log.set_level("debug")
        try:
            async with scene(trio, "node1", "node2") as (puppets, one, two):
                a1 = await puppets.worker("a1")
                await until(lambda: one.trunks.get("node2").claims, "announcement")
                a1.send(op="locate", vip=B1)
                got = await a1.get("located", vip=B1)
                secrets = [got["key"], one.trunks.self_key.hex()]
                secrets += [t.key.hex() for r in (one, two) for t in r.trunks.all()]
                return secrets
        finally:
            log.set_level("info")

    secrets = run(body())
    text = capfd.readouterr().err
    assert "trunk-up" in text
    assert not [s for s in secrets if s in text or s[:16] in text]
    assert json.dumps(secrets)
