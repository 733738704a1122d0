# SPDX-License-Identifier: Apache-2.0
"""The admin socket, slimctl, the metrics page and the words to systemd.

test or slimctl --> admin.sock --> supervisor of node1 -- a1, a2 (fake)
test            --> 127.X.Y.1:9478/metrics
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from slim_router import __version__, admin, cli, metrics, notify, slimctl
from tests.unit.router.fleet import FAKES, run, until
from tests.unit.router.puppets import Puppets

SCRIPTS = Path(__file__).resolve().parents[3] / "files/router"
ROW = {
    "direction": "out", "src": "10.44.0.1", "sport": 40000, "dst": "10.44.0.2", "dport": 80,
    "hsrc": "192.0.2.1", "hsport": 40001, "hdst": "192.0.2.2", "hdport": 20000, "path": "slim",
    "why": "", "age_s": 1.5, "bytes_sent": 1234567, "bytes_received": 12, "state": "established",
    "cookie": 99,
}  # fmt: skip
LOST = {**ROW, "path": "overlay", "why": "no-trunk", "hsrc": "", "hsport": 0, "cookie": 100}


@pytest.fixture
def trio(pair):
    pair.endpoint("a2", "10.44.0.3", "node1", pair.netns())
    pair.changes["node1"]["metrics"] = f"{pair.hosts['node1']['address']}:9478"
    pair.write()
    return pair


@contextlib.asynccontextmanager
async def scene(fleet):
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1")
        try:
            await router.start()
            yield puppets, router, fleet.paths("node1").admin_socket
        finally:
            await router.stop()


async def ask(where, op, /, **arguments):
    return await asyncio.to_thread(slimctl.ask, where, op, **arguments)


async def raw(path, data: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 22)
    writer.write(data)
    async with asyncio.timeout(10):
        line = await reader.readline()
        assert await reader.read() == b"", "one reply, then the end"
    writer.close()
    return json.loads(line)


async def obey(puppet, connections, pieces=1, last=True):
    """Answer the next dump."""
    asked = await puppet.get("dump")
    rows = connections if asked["connections"] else []
    for number in range(pieces):
        part = rows[number::pieces]
        done = last and number == pieces - 1
        puppet.send(
            op="dumped", id=asked["id"], last=done, connections=part,
            listeners=[{"port": 80}] if done else [], counters={"warm": 3} if done else {},
        )  # fmt: skip


def test_status_and_ping(trio):
    async def body():
        async with scene(trio) as (_unused, one, path):
            assert path.stat().st_mode & 0o777 == 0o600
            for op in ("ping", "version"):
                answer = await ask(path, op)
                assert answer == {"version": __version__, "host": "node1", "pid": os.getpid()}
            status = await ask(path, "status")
            assert status["endpoints"] == {"up": 2}
            assert status["secure"] == "none"
            assert status["zygote"]["pid"] == one.nursery.pid
            assert [t["host"] for t in status["trunks"]] == ["node2"]
            assert status["trunks"][0]["state"] == "dialling"
            text = slimctl.show_status(status)
            assert "endpoints  2 up" in text
            assert "dialling" in text

    run(body())


def test_connections_of_all_workers_with_filters(trio):
    async def body():
        async with scene(trio) as (puppets, _unused, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            rows = [{**ROW, "cookie": n} for n in range(250)]
            answers: Any = asyncio.gather(obey(a1, rows, pieces=3), obey(a2, [LOST]))
            got = await ask(path, "connections")
            await answers
            assert len(got["connections"]) == 251
            assert got["incomplete"] == []
            assert {r["cookie"] for r in got["connections"] if r["endpoint"] == "a1"} == set(
                range(250)
            )
            answers = asyncio.gather(obey(a1, [ROW, LOST]), obey(a2, [LOST]))
            got = await ask(path, "connections", path="overlay")
            await answers
            assert [r["endpoint"] for r in got["connections"]] == ["a1", "a2"]
            answers = asyncio.ensure_future(obey(a1, [ROW, LOST]))
            got = await ask(path, "connections", endpoint="a1", limit=1)
            await answers
            assert got["connections"] == [{**ROW, "endpoint": "a1", "tenant": "default"}]
            assert got["truncated"] is True
            assert not [m for m in a2.seen if m["op"] == "dump"]
            with pytest.raises(slimctl.Refused, match="endpoint b1: not on host node1"):
                await ask(path, "connections", endpoint="b1")
            with pytest.raises(slimctl.Refused, match="neither slim nor overlay"):
                await ask(path, "connections", path="both")

    run(body())


def test_a_worker_that_does_not_answer_costs_a_bounded_time_and_is_named(trio, monkeypatch):
    from slim_router import dumps

    monkeypatch.setattr(dumps.Dumps.collect, "__kwdefaults__",
                        {"connections": True, "timeout": 0.3})  # fmt: skip

    async def body():
        async with scene(trio) as (puppets, one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            answers = asyncio.gather(obey(a1, [ROW]), obey(a2, [ROW], last=False))
            got = await ask(path, "connections")
            await answers
            assert got["incomplete"] == ["a2"]
            assert len(got["connections"]) == 2
            # One that dies meanwhile is not waited for.
            waiting = asyncio.create_task(ask(path, "connections", endpoint="a1"))
            await a1.get("dump")
            os.kill(a1.pid, signal.SIGKILL)
            assert (await waiting)["incomplete"] == ["a1"]
            assert not one.dumps._open

    run(body())


def test_endpoints_carry_listeners_and_counters(trio):
    async def body():
        async with scene(trio) as (puppets, _unused, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            answers = asyncio.gather(obey(a1, []), obey(a2, []))
            got = await ask(path, "endpoints")
            await answers
            row = got["endpoints"][0]
            assert (row["name"], row["vip"], row["state"]) == ("a1", "10.44.0.1", "up")
            assert row["listeners"] == [{"port": 80}]
            assert row["counters"] == {"warm": 3}
            assert "a1    default  10.44.0.1  up" in slimctl.show_endpoints(got)

    run(body())


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (b"{\n", "not JSON"),
        (b"[]\n", "not an object"),
        (b"[" * 50_000 + b"\n", "not JSON"),
        (b"{}\n", "unknown op None; the ops are acl, acl-set, attach, attached, connections"),
        (b'{"op": []}\n', "unknown op"),
        (b'{"op": "sing"}\n', "unknown op 'sing'"),
        (b'{"op": "ping", "loud": 1}\n', "unknown argument 'loud'"),
        (b'{"op": "connections", "limit": "9"}\n', "limit is not of type int"),
        (b'{"op": "connections", "limit": true}\n', "limit is not of type int"),
        (b'{"op": "ping", "pad": "' + b"x" * 70_000 + b'"}\n', "longer than 65536 bytes"),
    ],
)
def test_a_bad_request_is_refused_with_its_reason(trio, monkeypatch, request_, words):
    monkeypatch.setattr(admin, "REQUEST_MAX", 65536)

    async def body():
        async with scene(trio) as (_unused, _one, path):
            answer = await raw(path, request_)
            assert answer["ok"] is False
            assert words in answer["error"]
            assert (await raw(path, b'{"op":"ping"}\n'))["ok"] is True

    run(body())


def test_a_request_that_never_ends_is_given_up(trio, monkeypatch):
    monkeypatch.setattr(admin, "REQUEST_S", 0.2)

    async def body():
        async with scene(trio) as (_unused, _one, path):
            assert "in time" in (await raw(path, b'{"op": "ping"'))["error"]

    run(body())


def test_reload_by_admin_socket_and_by_slimctl(trio, capsys):
    async def body():
        async with scene(trio) as (_unused, _one, path):
            trio.revision = 5
            trio.write()
            options = ["reload", "--socket", str(path)]
            assert await asyncio.to_thread(slimctl.main, options) == 0
            trio.endpoint("dup", "10.44.0.1", "node1", "/x")
            trio.write()
            assert await asyncio.to_thread(slimctl.main, options) == slimctl.Exit.FAILURE
            status = await ask(path, "status")
            assert status["revision"] == 5
            assert "already held" in status["last_reload_error"]
            assert "REFUSED" in slimctl.show_status(status)

    run(body())
    said = capsys.readouterr()
    assert "map revision 5 in use" in said.out
    assert "the old configuration stays in use" in said.err


def test_slimctl_prints_tables_and_json(trio, capsys):
    async def body():
        async with scene(trio) as (puppets, _unused, path):
            a1 = await puppets.worker("a1")
            answers: Any
            for extra in ([], ["--json"]):
                options = ["connections", "--endpoint", "a1", "--socket", str(path), *extra]
                answers = asyncio.ensure_future(obey(a1, [ROW, LOST]))
                assert await asyncio.to_thread(slimctl.main, options) == 0
                await answers

            # Only what is on the overlay, and why.
            options = ["connections", "--path", "overlay", "--socket", str(path)]
            answers = asyncio.gather(obey(a1, [ROW, LOST]), obey(await puppets.worker("a2"), []))
            assert await asyncio.to_thread(slimctl.main, [*options, "--json"]) == 0
            await answers

    run(body())
    out, _unused, filtered = capsys.readouterr().out.partition("}\n{")
    assert [r["path"] for r in json.loads("{" + filtered)["connections"]] == ["overlay"]
    out += "}"
    table, _unused, rest = out.partition("{")
    lines = table.splitlines()
    assert lines[0].split() == [
        "ENDPOINT", "TENANT", "DIR", "SRC", "DST", "HOST_SRC", "HOST_DST", "PATH", "WHY", "STATE",
        "AGE", "SENT", "RECEIVED",
    ]  # fmt: skip
    assert lines[1].split() == [
        "a1", "default", "out", "10.44.0.1:40000", "10.44.0.2:80", "192.0.2.1:40001", "192.0.2.2:20000",
        "slim", "-", "established", "1.5s", "1.2M", "12",
    ]  # fmt: skip
    assert lines[2].split()[7:9] == ["overlay", "no-trunk"]
    assert len(json.loads("{" + rest)["connections"]) == 2


def test_slimctl_without_a_router_says_what_to_do(tmp_path, capsys):
    missing = tmp_path / "none.sock"
    assert slimctl.main(["status", "--socket", str(missing)]) == slimctl.Exit.UNREACHABLE
    assert "is slim-router running" in capsys.readouterr().err


# --- metrics ---------------------------------------------------------------------------


async def http(address: str, request: bytes) -> tuple[str, bytes]:
    reader, writer = await asyncio.open_connection(address, 9478)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    head, _unused, body = answer.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


def test_the_metrics_page_has_the_stable_names(trio):
    async def body():
        async with scene(trio) as (puppets, one, _unused):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            address = trio.hosts["node1"]["address"]
            answers = asyncio.gather(obey(a1, []), obey(a2, []))
            status, page = await http(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await answers
            assert status.endswith("200 OK")
            text = page.decode()
            for line in (
                f'slim_build_info{{host="node1",version="{__version__}"}} 1.0',
                "slim_map_revision 1.0",
                "slim_policy_revision 0.0",
                "slim_policy_readable 1.0",
                'slim_endpoints{state="up"} 2.0',
                'slim_endpoint_up{endpoint="a1",tenant="default"} 1.0',
                'slim_worker_restarts_total{endpoint="a1",tenant="default"} 0.0',
                'slim_trunk_up{peer="node2"} 0.0',
                'slim_worker_events_total{endpoint="a2",event="warm",tenant="default"} 3.0',
            ):
                assert line in text.splitlines()
            for line in text.splitlines():
                assert line.startswith(("slim_", "# HELP slim_", "# TYPE slim_"))
            # A second scrape at once does not ask the workers again.
            await http(address, b"GET /metrics HTTP/1.1\r\n\r\n")
            assert not [m for m in a1.seen if m["op"] == "dump"]
            for request, code in (
                (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
                (b"GET /" + b"x" * 70_000 + b"\r\n\r\n", "414"),
            ):
                assert (await http(address, request))[0].split()[1] == code
            # Whoever connects and is silent holds nobody else up, and is bounded.
            silent = [socket.create_connection((address, 9478)) for _unused in range(40)]
            for sock in silent:
                sock.close()
            assert (await http(address, b"GET /metrics HTTP/1.1\r\n\r\n"))[0].endswith("200 OK")
            del one

    run(body())


def test_without_prometheus_client_the_router_works_and_says_so_once(trio, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    async def body():
        assert metrics.available() is False
        async with scene(trio) as (_unused, _one, path):
            assert (await ask(path, "ping"))["host"] == "node1"
            with pytest.raises(ConnectionRefusedError):
                await http(trio.hosts["node1"]["address"], b"GET / HTTP/1.1\r\n\r\n")

    run(body())
    assert capfd.readouterr().err.count("prometheus_client is not installed") == 1


def test_a_metrics_port_that_is_taken_is_no_reason_to_stop(trio, capfd):
    async def body():
        with socket.create_server((trio.hosts["node1"]["address"], 9478)):
            async with scene(trio) as (_unused, _one, path):
                assert (await ask(path, "ping"))["host"] == "node1"

    run(body())
    assert "no-metrics" in capfd.readouterr().err


# --- the program as a whole ------------------------------------------------------------


class Program:
    """`slim-router run` with a notify socket of the test's own."""

    def __init__(self, fleet, directory: Path) -> None:
        self.paths = fleet.paths("node1")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.notify.bind(str(directory / "notify"))
        self.environment = {**os.environ, "NOTIFY_SOCKET": str(directory / "notify"),
                            "WATCHDOG_USEC": "200000"}  # fmt: skip
        self.words: list[str] = []

    async def start(self):
        paths = self.paths
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPTS / "slim-router"), "run", "--config", str(paths.config),
            "--map", str(paths.map), "--runtime-dir", str(paths.runtime_dir), "--state-dir",
            str(paths.state_dir), "--worker-module", "fake_worker", "--worker-path", str(FAKES),
            env=self.environment, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    def heard(self, word: str, times: int = 1) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.words += self.notify.recv(4096).decode().splitlines()
        return self.words.count(word) >= times

    async def end(self) -> tuple[int | None, str]:
        out = (await asyncio.wait_for(self.process.communicate(), 15))[1].decode()
        return self.process.returncode, out


def test_run_tells_systemd_reloads_on_hangup_and_stops_on_term(trio, tmp_path):
    async def body():
        async with Puppets(trio.directory) as puppets:
            program = Program(trio, tmp_path)
            await program.start()
            try:
                await until(lambda: program.heard("READY=1"), "READY", 15)
                await puppets.worker("a1")
                await until(lambda: program.heard("WATCHDOG=1", 3), "WATCHDOG")
                assert not program.paths.pid_file.exists(), "systemd knows the pid"
                second = Program.__new__(Program)
                second.paths, second.environment = program.paths, program.environment
                await second.start()
                code, said = await second.end()
                assert code == cli.Exit.RUNNING
                assert "another router uses it" in said
                trio.revision = 9
                trio.write("node1")
                program.process.send_signal(signal.SIGHUP)
                await until(lambda: program.heard("RELOADING=1"), "RELOADING")
                await until(lambda: program.heard("READY=1", 2), "READY again")
                status = await ask(program.paths.admin_socket, "status")
                assert status["revision"] == 9
                program.process.terminate()
                code, said = await program.end()
                assert code == 0, said
                assert program.heard("STOPPING=1")
                assert "Traceback" not in said
            finally:
                program.notify.close()
                if program.process.returncode is None:
                    program.process.kill()

    run(body(), 60)


def test_exit_statuses_are_those_named(trio, tmp_path):
    async def body():
        program = Program(trio, tmp_path)
        try:
            good = program.paths.map.read_text()
            program.paths.map.write_text("{")
            await program.start()
            code, said = await program.end()
            assert (code, "not valid JSON" in said) == (cli.Exit.CONFIG, True)
            program.paths.map.write_text(good)
            taken = socket.create_server((trio.hosts["node1"]["address"], 6790))
            async with Puppets(trio.directory) as puppets:
                program.environment["SLIM_TEST_PUPPETS"] = str(puppets.path)
                with taken:
                    await program.start()
                    code, said = await program.end()
                assert code == cli.Exit.HOST
                assert "trunk port" in said
                assert "Traceback" not in said
        finally:
            program.notify.close()

    run(body(), 60)


def test_notify_is_silent_without_a_manager(monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert notify.notify("READY=1") is False
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    assert notify.notify("READY=1") is False
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert notify.watchdog_interval() == 1.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert notify.watchdog_interval() is None


def test_the_scripts_run_from_anywhere(tmp_path):
    import subprocess

    for name, options in (("slim-router", ["version"]), ("slimctl", ["--version"])):
        done = subprocess.run(
            [sys.executable, "-I", str(SCRIPTS / name), *options],
            cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == __version__
        assert os.access(SCRIPTS / name, os.X_OK)
