# SPDX-License-Identifier: Apache-2.0
"""Two tenants with the same vips on the same hosts never meet. A lab of its own:

      node1                                node2
c1    10.44.0.1  --- br-slim, VNI 4242 --- 10.44.0.2  c2        tenant default
t2-c1 10.44.0.1  --- br-sl4243, VNI 4243 - 10.44.0.2  t2-c2     tenant t2
            \\______ host path, shared ______/
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import inventory, names
from lab.client import SLIMCTL, SLIMLAB, Lab, wait_for
from tests.integration.helpers import read_until

SERVERS, CLIENTS = ("c2", "t2-c2"), ("c1", "t2-c1")
TENANTS = ("default", "t2")
PORT, BARE = 7320, 7321

SERVER = """
import socket, sys, threading
def serve(sock):
    with sock:
        sock.sendall(sys.argv[3].encode() + b"\\n")
        sock.recv(1)
with socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64) as server:
    print("ready", flush=True)
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""

# Says who answered; with a word more it stays until its connection ends.
CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as sock:
    print(f"met {sock.makefile().readline().strip()}", flush=True)
    if len(sys.argv) > 3:
        sock.settimeout(60)
        try:
            sock.recv(1)
        except OSError:
            print("lost", flush=True)
"""


@pytest.fixture(scope="module")
def tenants_lab() -> Iterator[Lab]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    name = f"{os.environ['SLIMLAB_NAME'][: names.NAME_MAX - 3]}-tn"
    environment = os.environ | {"SLIMLAB_NAME": name}
    command = [str(SLIMLAB), "up", "--hosts", "2", "--tenants", "2"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    try:
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        lab = Lab(name)
        yield lab
        lab.end_processes()
    finally:
        subprocess.run([str(SLIMLAB), "down"], env=environment, timeout=120, check=True)


@pytest.fixture
def lab(tenants_lab: Lab) -> Iterator[Lab]:
    yield tenants_lab
    tenants_lab.end_processes()


def serve(lab: Lab, port: int, mode: str) -> None:
    """A server in c2 and one in t2-c2, which say their names, at the same vip and port."""
    for place in SERVERS:
        server = lab.popen(
            place, [sys.executable, "-c", SERVER, lab.ip(place), str(port), place], mode,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        read_until(server, "ready")


def client(lab: Lab, place: str, port: int, mode: str, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CLIENT, lab.ip("c2"), str(port), *more]
    return lab.popen(place, words, mode, stdout=subprocess.PIPE, text=True)


def meet(lab: Lab, place: str, port: int, mode: str) -> str:
    """Whom a client in *place* meets."""
    process = client(lab, place, port, mode)
    said = read_until(process, "\n").split()
    process.wait(10)
    return said[1]


def rows(lab: Lab, node: str, **wanted: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.slimctl(node, "connections")["connections"]
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_the_vips_are_the_same(lab: Lab) -> None:
    assert lab.ip("c1") == lab.ip("t2-c1")
    assert lab.ip("c2") == lab.ip("t2-c2")
    for node in lab.nodes:
        links = lab.run(node, ["ip", "-br", "link"]).stdout
        assert {"br-slim", "vx-slim", "br-sl4243", "vx-sl4243"} <= {
            line.split()[0] for line in links.splitlines()
        }


def test_the_fallback_keeps_them_apart(lab: Lab) -> None:
    serve(lab, BARE, "overlay")
    for _unused in range(3):
        for place, server in zip(CLIENTS, SERVERS, strict=True):
            assert meet(lab, place, BARE, "overlay") == server
            assert meet(lab, place, BARE, "slim") == server, "and with the shim in the client"


def test_slim_keeps_them_apart_and_says_whose_each_connection_is(lab: Lab) -> None:
    serve(lab, PORT, "slim")
    # Cold, warm, in turns: a lease of one tenant must not serve the other.
    for _unused in range(4):
        for place, server in zip(CLIENTS, SERVERS, strict=True):
            assert meet(lab, place, PORT, "slim") == server
    held = [client(lab, place, PORT, "slim", "stay") for place in CLIENTS]
    for process in held:
        read_until(process, "\n")
    for node, places in (("node1", CLIENTS), ("node2", SERVERS)):
        for place, tenant in zip(places, TENANTS, strict=True):
            found = wait_for(
                lambda n=node, p=place: rows(lab, n, endpoint=p, path="slim"),  # type: ignore[misc] # a lambda's defaults
                what=f"a connection of {place} on the host path",
            )
            assert {row["tenant"] for row in found} == {tenant}
        text = lab.run(node, [SLIMCTL, "connections"]).stdout
        head, *lines = [line.split() for line in text.splitlines()]
        assert head[:2] == ["ENDPOINT", "TENANT"]
        assert {tuple(line[:2]) for line in lines} >= set(zip(places, TENANTS, strict=True))


def test_the_policy_of_one_does_not_touch_the_other(lab: Lab) -> None:
    serve(lab, PORT, "slim")
    held = {place: client(lab, place, PORT, "slim", "stay") for place in CLIENTS}
    for process in held.values():
        read_until(process, "\n")
    rules = {
        "default": "allow",
        "rules": [
            {"id": "t2-closed", "action": "deny", "tenant": "t2", "ports": [PORT],
             "destinations": [lab.ip("c2")]},
        ],
    }  # fmt: skip
    try:
        revoked = []
        for node in lab.nodes:
            done = lab.run(node, [SLIMCTL, "acl-set", "-", "--json"], stdin=json.dumps(rules))
            revoked += json.loads(done.stdout)["revoked"]
        assert revoked
        assert {row["tenant"] for row in revoked} == {"t2"}
        assert {row["rule"] for row in revoked} == {"t2-closed"}
        read_until(held["t2-c1"], "lost")
        assert held["c1"].poll() is None
        assert rows(lab, "node1", endpoint="c1", path="slim")
        assert client(lab, "t2-c1", PORT, "slim").wait(20) != 0
        assert meet(lab, "c1", PORT, "slim") == "c2"
    finally:
        for node in lab.nodes:
            words = [SLIMCTL, "acl-set", "-", "--json"]
            lab.run(node, words, stdin=json.dumps({"default": "allow", "rules": []}))
    assert meet(lab, "t2-c1", PORT, "slim") == "t2-c2"


def test_revoking_by_tenant_leaves_the_other(lab: Lab) -> None:
    serve(lab, PORT, "slim")
    held = {place: client(lab, place, PORT, "slim", "stay") for place in CLIENTS}
    for process in held.values():
        read_until(process, "\n")
    done = lab.slimctl("node1", "revoke", "--tenant", "default", "--dst", lab.ip("c2"))
    assert {row["endpoint"] for row in done["revoked"]} == {"c1"}
    read_until(held["c1"], "lost")
    assert held["t2-c1"].poll() is None
    assert rows(lab, "node1", endpoint="t2-c1", path="slim")


def test_the_second_run_changes_nothing_and_an_uninstall_leaves_nothing(lab: Lab) -> None:
    """Last: it takes the product away."""

    def play(name: str, *more: str) -> str:
        command = [
            str(Path(sys.executable).with_name("ansible-playbook")),
            "-i", str(lab.state.inventory), str(names.CHECKOUT / "playbooks" / f"{name}.yml"),
        ]  # fmt: skip
        done = subprocess.run(
            [*command, *more], env=inventory.environment(lab.state, lab.plan), check=False,
            cwd=names.CHECKOUT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    recap = play("site").split("PLAY RECAP")[1]
    assert recap.count("changed=0") == len(lab.nodes), recap
    recap = play("site", "--check", "--diff").split("PLAY RECAP")[1]
    assert recap.count("changed=0") == len(lab.nodes), recap
    play("uninstall", "-e", "slim_uninstall_confirm=true")
    for node in lab.nodes:
        links = lab.run(node, ["ip", "-br", "link"]).stdout
        assert not [
            line for line in links.splitlines() if line.startswith(("br-sl", "vx-sl", "slv"))
        ]
