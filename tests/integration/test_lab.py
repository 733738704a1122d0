# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what `slimlab` promises on its command line.

            switch
           /      \\
       node1      node2
       c1 c3      c2 c4
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab import builder, names
from lab.client import SLIMLAB, Lab, wait_for
from lab.process import members
from lab.state import State


def slimlab(*words: str, name: str | None = None, **options) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ)
    if name is not None:
        environment["SLIMLAB_NAME"] = name
    options.setdefault("timeout", 120)
    return subprocess.run(
        [str(SLIMLAB), *words],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def test_hosts_and_endpoints_reach_each_other(lab: Lab, python: str) -> None:
    program = (
        "import socket,sys; s=socket.create_connection((sys.argv[1], 7), 5);"
        "print(s.recv(99).decode())"
    )
    server = (
        "import socket; s=socket.create_server(('0.0.0.0', 7));\n"
        "while True: c,a=s.accept(); c.sendall(a[0].encode()); c.close()"
    )
    for mode, address in (("overlay", lab.ip), ("host", lab.hostip)):
        lab.popen("c2", [python, "-c", server], mode=mode)
        wait_for(lambda mode=mode: lab.listens("c2", 7, mode), what="the server listens")
        seen = lab.run("c1", [python, "-c", program, address("c2")], mode=mode).stdout.strip()
        assert seen == address("c1")


def test_exec_passes_status_stdin_and_directory(lab: Lab, tmp_path: Path) -> None:
    assert lab.run("c1", "exit 42", mode="overlay", check=False).returncode == 42
    assert lab.run("c1", ["cat"], mode="overlay", stdin="some words").stdout == "some words"
    environment = lab.environment()
    where = subprocess.run(
        lab.command("c1", ["pwd"], mode="overlay"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip() == str(tmp_path)


def test_exec_replaces_itself_so_that_signals_arrive(lab: Lab) -> None:
    process = lab.popen("c1", ["sleep", "60"], mode="overlay")
    wait_for(
        lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == "sleep",
        what="the command has taken the place of slimlab",
    )
    process.terminate()
    assert process.wait(5) == -signal.SIGTERM


def test_exec_is_quick(lab: Lab) -> None:
    took = []
    for _round in range(10):
        started = time.monotonic()
        lab.run("c1", ["true"], mode="overlay")
        took.append(time.monotonic() - started)
    assert sorted(took)[5] < 0.1


def test_preload_is_prepended(lab: Lab) -> None:
    words = lab.run("c1", ["env"], env={"LD_PRELOAD": "/nonexistent/a.so", "SLIM_X": "1"}).stdout
    lines = words.splitlines()
    assert "LD_PRELOAD=/opt/slim/shim/current/libslim.so:/nonexistent/a.so" in lines
    assert "SLIM_X=1" in lines
    words = lab.run("c1", ["env"], mode="overlay").stdout
    assert "libslim" not in words


@pytest.mark.parametrize(
    ("words", "status", "names_it"),
    [
        (("up", "--kind", "vm", "--hosts", "999"), 2, "--hosts 999"),
        (("up", "--secure", "bpf"), 2, "--secure bpf"),
        (("up", "--secure", "kmod"), 2, "--secure kmod"),
        (("up", "--hosts", "0"), 2, "--hosts 0"),
        (("up", "--rtt-us", "-1"), 2, "--rtt-us"),
        (("push", "relative/path"), 2, "relative/path"),
        (("push", "/nonexistent/file"), 2, "/nonexistent/file"),
        (("ip", "c99"), 1, "c99"),
        (("exec", "c99", "--", "true"), 1, "c99"),
        (("exec", "c1", "--mode", "odd", "--", "true"), 2, "odd"),
        (("exec", "c1"), 2, "command"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_refusals_name_the_thing(
    lab: Lab, words: tuple[str, ...], status: int, names_it: str
) -> None:
    done = slimlab(*words, name=lab.state.name)
    assert done.returncode == status
    assert names_it in done.stderr
    assert not done.stdout
    assert Lab(lab.state.name).plan.run == lab.plan.run, "the lab must not have been touched"


def test_push_copies_only_what_nodes_do_not_see(lab: Lab, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    seen.write_text("here\n")
    assert slimlab("push", str(seen), name=lab.state.name).returncode == 0
    assert lab.run("node2", ["cat", seen]).stdout == "here\n"
    hidden = Path("/run/slimlab-push-test")
    hidden.write_text("there\n")
    try:
        assert slimlab("push", str(hidden), name=lab.state.name).returncode == 0
        assert lab.run("node2", ["cat", hidden]).stdout == "there\n"
    finally:
        hidden.unlink()


def test_ip_and_hostip(lab: Lab) -> None:
    assert slimlab("ip", "c4", name=lab.state.name).stdout == f"{lab.ip('c4')}\n"
    assert slimlab("hostip", "c4", name=lab.state.name).stdout == f"{lab.hostip('node2')}\n"


def test_cubic_on_every_connection(lab: Lab, python: str) -> None:
    program = (
        "import socket,sys; s=socket.create_server(('0.0.0.0', 0));"
        "c=socket.create_connection((sys.argv[1], s.getsockname()[1]), 5); a,_=s.accept();"
        "print(*(x.getsockopt(6, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode()"
        " for x in (c, a)))"
    )
    for address in ("127.0.0.1", lab.ip("c1")):
        assert lab.run("c1", [python, "-c", program, address], mode="overlay").stdout == (
            "cubic cubic\n"
        )
    said = lab.run("node1", [python, "-c", program, lab.hostip("node1")]).stdout
    assert said == "cubic cubic\n"
    assert "congestion control: cubic" in slimlab("status", name=lab.state.name).stdout


def test_nodes_do_not_share_what_the_product_writes(lab: Lab) -> None:
    for directory in ("/run", *names.PRIVATE_DIRECTORIES):
        lab.run("node1", ["touch", f"{directory}/only-node1"])
        try:
            assert lab.run(
                "node2", ["test", "-e", f"{directory}/only-node1"], check=False
            ).returncode
            assert not Path(f"{directory}/only-node1").exists()
        finally:
            lab.run("node1", ["rm", f"{directory}/only-node1"])
    assert lab.run("node1", ["hostname"]).stdout == "node1\n"


@pytest.fixture
def other_lab():
    """The name of a second lab beside the session's, removed afterwards."""
    name = "labtest"
    yield name
    assert slimlab("down", name=name).returncode == 0
    assert not State(name).exists()


def _traces(name: str) -> list[str]:
    state = State(name)
    return [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if f" {state.directory}" in line
    ]


def test_up_after_a_killed_up(lab: Lab, other_lab: str) -> None:
    words = ("up", "--no-deploy", "--hosts", "3")
    environment = {**os.environ, "SLIMLAB_NAME": other_lab}
    for stop_at in ("lab.json", "ns/node2.net", "ns/c1.mnt"):
        process = subprocess.Popen([str(SLIMLAB), *words], env=environment, stderr=subprocess.PIPE)
        path = State(other_lab).directory / stop_at
        wait_for(path.exists, what=f"{path} is made", interval=0.001)
        process.kill()
        process.communicate(timeout=10)
    done = slimlab(*words, name=other_lab)
    assert done.returncode == 0, done.stderr
    assert Lab(other_lab).plan.phase == "up"
    assert Lab().plan.run == lab.plan.run, "the other lab must not have been touched"


def test_down_ends_the_playbook_of_a_killed_up(other_lab: str) -> None:
    environment = {**os.environ, "SLIMLAB_NAME": other_lab}
    process = subprocess.Popen([str(SLIMLAB), "up"], env=environment, stderr=subprocess.DEVNULL)
    state = State(other_lab)
    log = state.directory / "site.log"
    wait_for(lambda: log.read_text().count("TASK"), 120, "the playbook is at work")
    process.kill()
    process.wait(10)
    mark = state.load().run
    assert members(set(), mark), "ansible-playbook outlives the command that started it"
    done = slimlab("status", name=other_lab)
    assert done.returncode == 1
    assert "not complete" in done.stderr
    assert slimlab("down", name=other_lab).returncode == 0
    assert members(set(), mark) == []


def test_down_ends_every_process_and_is_idempotent(other_lab: str) -> None:
    assert slimlab("up", "--no-deploy", name=other_lab).returncode == 0
    second = Lab(other_lab)
    process = second.popen("c1", "trap '' TERM; sleep 1000 & wait; sleep 1000", mode="overlay")
    wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text().strip() == "sh", what="sh runs")
    for _time in range(2):
        assert slimlab("down", name=other_lab).returncode == 0
    assert process.wait(5) == -signal.SIGKILL
    second.end_processes()
    assert not _traces(other_lab)
    assert not State(other_lab).exists()


def test_down_ends_nothing_else(other_lab: str) -> None:
    assert slimlab("up", "--no-deploy", name=other_lab).returncode == 0
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        assert slimlab("down", name=other_lab).returncode == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_delay_is_added_between_hosts_only(other_lab: str, python: str) -> None:
    rtt_us = 2000
    words = ["--rtt-us", str(rtt_us), "--endpoints-per-host", "2"]
    done = slimlab("up", "--no-deploy", *words, name=other_lab)
    assert done.returncode == 0, done.stderr
    third = Lab(other_lab)
    server = (
        "import socket; s=socket.create_server(('0.0.0.0', 7));\n"
        "while True:\n c,_=s.accept()\n c.setsockopt(6,1,1)\n"
        " while b := c.recv(99): c.sendall(b)"
    )
    client = (
        "import socket,sys,time; s=socket.create_connection((sys.argv[1], 7), 5);\n"
        "s.setsockopt(6,1,1); took=[]\n"
        "for _ in range(100):\n"
        " t=time.perf_counter(); s.sendall(b'x'*32); s.recv(99)\n"
        " took.append(time.perf_counter()-t)\n"
        "print(sorted(took)[10]*1e6)"
    )
    try:
        figures = {}
        for there in ("c2", "c3"):
            third.popen(there, [python, "-c", server], mode="overlay")
            wait_for(lambda there=there: third.listens(there, 7), what="the server listens")
            figures[there] = float(
                third.run("c1", [python, "-c", client, third.ip(there)], mode="overlay").stdout
            )
        # The tenth of a hundred: what the line adds, without the waits of a busy machine.
        assert rtt_us <= figures["c2"] < rtt_us + 600
        assert figures["c3"] < rtt_us / 4
        assert "2000 us" in slimlab("status", name=other_lab).stdout
    finally:
        third.end_processes()


def test_mount_points_stay_while_another_lab_needs_them(lab: Lab, other_lab: str) -> None:
    assert slimlab("up", "--no-deploy", name=other_lab).returncode == 0
    assert slimlab("down", name=other_lab).returncode == 0
    for directory in names.PRIVATE_DIRECTORIES:
        lab.run("node1", ["mountpoint", "-q", directory])
    assert builder.remove(State(other_lab)) is False
