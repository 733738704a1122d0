# SPDX-License-Identifier: Apache-2.0
"""Secure mode in the supervisor: without a backend no endpoint is served, never open.

files of the test in the place of /proc/slim_kmod
        | Guard looks
node1: supervisor -- a1 (fake, or the real worker), namespace sup-...
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess

import pytest

from slim_router import config, metrics, secure, slimctl, supervisor
from slim_router.reader import ConfigError
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

A1 = ("default", "10.44.0.1")
KNOCK = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.settimeout(5)
sock.connect(sys.argv[1])
print(sock.recv(4096))
"""


@pytest.fixture
def kmod(tmp_path, monkeypatch):
    """Where the module's files would be; `load` puts them there."""
    directory = tmp_path / "slim_kmod"
    monkeypatch.setattr(secure, "KMOD_DIRECTORY", str(directory))
    monkeypatch.setattr(supervisor, "CHECK_S", 0.05)
    return directory


def load(directory, version: str = "0.3.0", more: str = "") -> None:
    directory.mkdir(exist_ok=True)
    (directory / "control").write_bytes(b"")
    (directory / "version").write_text(f"1 {version} ops setsockopt{more}\n")


@pytest.fixture
def lone(fleet):
    fleet.host("node1", secure="kmod")
    fleet.endpoint("a1", A1[1], "node1", fleet.netns())
    fleet.write()
    return fleet


@contextlib.asynccontextmanager
async def scene(fleet, worker: str = "fake_worker"):
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1", worker)
        try:
            await router.start()
            yield puppets, router, router.registry.endpoints[A1]
        finally:
            await router.stop()


async def knock(fleet) -> str:
    """What a program of the container gets from the shim socket."""
    done = await asyncio.to_thread(
        subprocess.run,
        ["nsenter", f"--net={fleet.endpoints[0]['netns']}", "/usr/bin/python3", "-I", "-c", KNOCK,
         str(fleet.paths("node1").shim_socket)],
        capture_output=True, text=True, timeout=15, check=True,
    )  # fmt: skip
    return done.stdout.strip()


async def ask(fleet, op: str):
    return await asyncio.to_thread(slimctl.ask, fleet.paths("node1").admin_socket, op)


def test_without_the_module_nothing_is_served_and_everybody_is_told(lone, kmod, capfd):
    async def body():
        async with scene(lone) as (puppets, one, ep):
            assert ep.state == "refused"
            assert f"{kmod}/version: not there; load slim_kmod" in ep.detail
            assert await knock(lone) == "b''", "shims are sent away: the plain overlay serves"
            assert one.counters["shim_unknown_namespace"] == 1
            assert not puppets.all, "no worker was even started"
            with socket.socket() as sock:
                target = (lone.hosts["node1"]["address"], ep.port)
                assert sock.connect_ex(target) != 0, "peers are refused"
            status = await ask(lone, "status")
            assert status["secure"] == "kmod"
            assert status["secure_state"]["in_force"] is False
            assert "kmod, NOT IN FORCE, no endpoint is served: secure mode kmod:" in (
                slimctl.show_status(status)
            )
            assert "load slim_kmod" in slimctl.show_endpoints(await ask(lone, "endpoints"))
            shot = await one.snapshot()
            assert shot.secure == ("kmod", False)
        assert capfd.readouterr().err.count("event=secure-unavailable") == 1

    run(body())


def test_the_module_comes_and_goes(lone, kmod, capfd):
    async def body():
        async with scene(lone) as (puppets, one, ep):
            load(kmod)
            a1 = await puppets.worker("a1")
            await until(lambda: ep.up, "up")
            assert a1.config["secure"] == "kmod"
            assert await knock(lone) == "b'served'"
            status = await ask(lone, "status")
            assert "kmod, in force (1 0.3.0 ops setsockopt)" in slimctl.show_status(status)
            assert (await one.snapshot()).secure == ("kmod", True)
            assert len((kmod / "control").read_bytes()) == 32, "a socket of its own was tagged"
            shutil.rmtree(kmod)
            await a1.get("stop")
            await until(lambda: ep.state == "refused", "refused")
            assert await knock(lone) == "b''"
            load(kmod)
            await puppets.worker("a1", after=a1)
            await until(lambda: ep.up, "up again")
            assert ep.restarts == 0
        said = capfd.readouterr().err
        assert said.count("event=secure-unavailable") == 2
        assert said.count("event=secure-in-force") == 2

    run(body())


@pytest.mark.parametrize(
    ("version", "more"),
    [("0.4.0", ""), ("0.3.0", " srcversion=C0FFEE loaded_ns=2")],
    ids=["release", "load"],
)
def test_another_module_in_its_place_means_new_workers(lone, kmod, version, more):
    async def body():
        load(kmod, "0.3.0", " srcversion=C0FFEE loaded_ns=1")
        async with scene(lone) as (puppets, one, ep):
            a1 = await puppets.worker("a1")
            await until(lambda: ep.up, "up")
            load(kmod, version, more)
            await a1.get("stop")
            await puppets.worker("a1", after=a1)
            await until(lambda: ep.up, "up")
            assert one.guard.report()["backend"] == f"1 {version} ops setsockopt{more}"

    run(body())


def test_a_reload_turns_it_on_and_off(lone, kmod):
    async def body():
        lone.changes["node1"]["secure"] = "none"
        lone.write()
        async with scene(lone) as (puppets, one, ep):
            a1 = await puppets.worker("a1")
            await until(lambda: ep.up, "up")
            assert one.guard.report()["in_force"] is False
            lone.changes["node1"]["secure"] = "kmod"
            lone.write()
            await ask(lone, "reload")
            ep = one.registry.endpoints[A1]
            await until(lambda: ep.state == "refused", "refused, not open")
            assert a1.gone
            assert await knock(lone) == "b''"
            lone.changes["node1"]["secure"] = "none"
            lone.write()
            await ask(lone, "reload")
            a2 = await puppets.worker("a1", after=a1)
            assert a2.config["secure"] == "none"

    run(body())


def test_a_worker_that_cannot_prove_it_is_refused(lone, kmod, capfd):
    """The supervisor's files are the test's; the worker is real and finds no module."""

    async def body():
        load(kmod)
        async with scene(lone, "slim_router.worker") as (_unused, one, ep):
            await until(lambda: ep.state == "refused", "refused")
            assert "/proc/slim_kmod/version" in ep.detail
            assert one.guard.cause == ""
            assert await knock(lone) == "b''"
            # Not by its process, which may come and go between two looks.
            tried = ep.generation
            await until(lambda: ep.generation != tried, "it is tried again")
            assert ep.restarts == 0, "that is no crash"
        assert capfd.readouterr().err.count("event=endpoint-not-secure") == 1

    run(body())


def test_a_worker_trusts_no_backend_that_denies_nothing(lone, kmod, monkeypatch):
    """Its files are all there, it takes every tag: and the kernel lets everything through."""
    monkeypatch.setenv("SLIM_TEST_KMOD", str(kmod))

    async def body():
        load(kmod)
        async with scene(lone, "believing_worker") as (_unused, _router, ep):
            await until(lambda: ep.state == "refused", "refused")
            assert "a forbidden call was let through on a tagged socket" in ep.detail
            assert await knock(lone) == "b''"

    run(body())


def test_a_refused_process_is_shown_until_it_has_ended(lone, kmod, capfd):
    async def body():
        load(kmod)
        async with scene(lone) as (puppets, _unused, ep):
            a1 = await puppets.worker("a1")
            await until(lambda: ep.up, "up")
            word = {"cause": "holds NET_RAW", "next": "drop it (--cap-drop NET_RAW)"}
            a1.send(op="barred", who="nginx (pid 7)", **word)
            await until(lambda: ep.barred, "shown")
            row = (await ask(lone, "endpoints"))["endpoints"][0]
            assert row["state"] == "up"
            want = "refused: nginx (pid 7) holds NET_RAW; drop it (--cap-drop NET_RAW)"
            assert row["detail"] == want
            a1.send(op="barred", who="", cause="", next="")
            await until(lambda: not ep.barred, "over")
            a1.send(op="barred", who="curl (pid 8)", **word)
            await until(lambda: ep.barred, "shown again")
            a1.send(op="untagged", cause="Cannot allocate memory")
            a1.send(op="barred", who="", cause="", next="")
            await until(lambda: not ep.barred, "over")
            a1.send(op="barred", who="x")
            await until(lambda: a1.gone, "a malformed one costs the worker its place")
        said = capfd.readouterr().err
        assert said.count("event=shim-refused") == 1, "once for an endpoint and a cause"
        assert said.count("event=socket-not-tagged") == 1

    run(body())


def way_out(fleet) -> str:
    """How the endpoint reaches a peer, or why it does not."""
    name = fleet.endpoints[0]["netns"].rpartition("/")[2]
    done = subprocess.run(
        ["ip", "-n", name, "route", "get", "10.44.0.2"],
        capture_output=True, text=True, timeout=10, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def rules(fleet) -> int:
    """How many of our rules there are, of both families."""
    name = fleet.endpoints[0]["netns"].rpartition("/")[2]
    text = ""
    for family in ("-4", "-6"):
        done = subprocess.run(
            ["ip", "-n", name, family, "rule", "show", "pref", "44"],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
        text += done.stdout
    assert text.count("prohibit") == len(text.splitlines())
    return len(text.splitlines())


def test_down_means_without_the_overlay_and_nothing_else(lone, kmod, capfd):
    name = lone.endpoints[0]["netns"].rpartition("/")[2]
    for command in ("link set lo up", "addr add 10.44.0.1/32 dev lo", "route add 10.44.0.0/16 dev lo",
                    "route add 192.0.2.0/24 dev lo"):  # fmt: skip
        subprocess.run(["ip", "-n", name, *command.split()], check=True, timeout=10)
    lone.changes["node1"]["secure_fallback"] = "down"
    lone.write()

    async def body():
        before = way_out(lone)
        assert "dev lo" in before
        async with scene(lone) as (_puppets, _one, ep):
            assert (ep.state, ep.cut_off) == ("refused", True)
            assert "Permission denied" in way_out(lone)
            assert rules(lone) == 2, "one for each prefix"
            assert "; cut off from the overlay" in slimctl.show_endpoints(
                await ask(lone, "endpoints")
            )
            load(kmod)
            await until(lambda: ep.up, "up")
            assert (way_out(lone), rules(lone)) == (before, 0)
            shutil.rmtree(kmod)
            await until(lambda: ep.cut_off, "down again")
            # It is the router's to let it in: a change of mind counts at once.
            lone.changes["node1"]["secure_fallback"] = "overlay"
            lone.write()
            await ask(lone, "reload")
            await until(lambda: not ep.cut_off, "on the overlay")
            assert (ep.state, rules(lone)) == ("refused", 0)
            lone.changes["node1"]["secure_fallback"] = "down"
            lone.write()
            await ask(lone, "reload")
            await until(lambda: ep.cut_off, "down")
        assert rules(lone) == 2, "a router that stops lets nobody in"
        load(kmod)
        async with scene(lone) as (puppets, _one, ep):
            await puppets.worker("a1")
            await until(lambda: ep.up, "up")
            assert rules(lone) == 0, "what a predecessor left is taken away"
            shutil.rmtree(kmod)
            await until(lambda: ep.cut_off, "down")
            lone.endpoints.clear()
            path = ep.spec.netns
            lone.write()
            await ask(lone, "reload")
            lone.endpoints.append({"netns": path})
            assert rules(lone) == 0, "it is no endpoint any more"
            lone.endpoints.clear()
        assert "event=endpoint-down" in capfd.readouterr().err

    run(body())


def test_a_worker_without_proof_means_down_until_one_has_it(lone, kmod):
    lone.changes["node1"]["secure_fallback"] = "down"
    lone.write()

    async def body():
        load(kmod)
        async with scene(lone, "slim_router.worker") as (_unused, _router, ep):
            await until(lambda: ep.cut_off, "down")
            # Not by its process, which may come and go between two looks.
            tried = ep.generation
            await until(lambda: ep.generation != tried, "it is tried again")
            assert rules(lone) == 2, "and stays down meanwhile"

    run(body())


def test_the_fallback_is_checked(lone):
    raw = lone.router_json("node1")
    assert config.parse_router(raw).secure_fallback == "overlay"
    with pytest.raises(ConfigError, match="'open' is not known; choose one of overlay, down"):
        config.parse_router({**raw, "secure_fallback": "open"})


def test_metrics_tell(monkeypatch):
    if not metrics.available():
        pytest.skip("prometheus_client is not installed")
    shot = metrics.Snapshot("1", "h", 1, 1.0, {}, [], [], {}, [], ("bpf", True))
    family = next(f for f in metrics.families(shot) if f.name == "slim_secure_in_force")
    assert [(s.labels, s.value) for s in family.samples] == [({"mode": "bpf"}, 1.0)]
