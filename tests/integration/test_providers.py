# SPDX-License-Identifier: Apache-2.0
"""One suite for all providers of the fallback.

            switch                                        switch
           /      \\                                     /   |   \\
       node1      node2         and, marked long:   node1 node2 node3
        c1          c2                                c1    c2    c3

The lab is deployed with vxlan; the role slim_fallback alone then changes the provider
under the routers, which go on. Provider `existing` finds an overlay that this file
makes in the place of a site: routes and pairs, by the same addresses.

The tests of a provider build on each other's state and run in their order; after the
last one the lab has vxlan again.

A play costs seconds, so the gate has few: bgp, whose plays have most steps, is asked in
check mode first and run again; hosts leave and join by the configuration that a play
would have written. Plays for all of it are under the marker `long`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import congestion, underlay
from lab.client import SLIMLAB, Lab, wait_for
from lab.room import Room
from tests.integration.helpers import read_until
from tests.integration.plays import changed, play

pytestmark = pytest.mark.timeout(600)

PROVIDERS = ("vxlan", "host-gw", "bgp", "existing")
#: Of ours: they have hosts that join and leave.
BUILT = ("vxlan", "host-gw", "bgp")
ROUTED = ("host-gw", "bgp")
#: Bytes of a packet: the lab's underlay has 1500.
MTU = {"vxlan": 1450, "host-gw": 1500, "bgp": 1500, "existing": 1500}
#: Whether a datagram to a group gets to other hosts' endpoints. The site that this file
#: plays routes, so `existing` has none here.
MULTICAST = {"vxlan": True, "host-gw": False, "bgp": False, "existing": False}
HOLD_S = 3
PASSWORD = "open sesame"
BIRD_CONFIG = "/etc/slim/bird.conf"
BIRDC = ["/usr/sbin/birdc", "-s", "/run/slim/bird.ctl"]
HELPER = "/opt/slim/fallback/current"
GROUP = "239.1.2.3"
PORT = 7801
SLIM_PORT = 7802
#: Seconds for what takes a moment: neighbours are found, sessions come up.
PATIENCE = 40.0

# Answers on TCP and UDP, and says of each group datagram that it has come.
SERVER = f"""
import select, socket, struct, sys
vip = sys.argv[1]
listener = socket.create_server((vip, {PORT}))
plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
plain.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: ip(7)
plain.bind((vip, {PORT}))
group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
group.bind(("{GROUP}", {PORT}))
group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
                 socket.inet_aton("{GROUP}") + socket.inet_aton(vip))
heard = 0
print("ready", flush=True)
while True:
    for sock in select.select([listener, plain, group], [], [])[0]:
        if sock is listener:
            conn = sock.accept()[0]
            conn.settimeout(5)
            with conn:
                conn.sendall(conn.recv(64))
        elif sock is plain:
            data, peer = sock.recvfrom(65536)
            sock.sendto(b"%d" % heard if data == b"heard?" else data, peer)
        else:
            sock.recv(64)
            heard += 1
"""

# What one endpoint gets from another, as JSON. A lost datagram is sent again.
CLIENT = f"""
import errno, json, os, socket, struct, sys
vip, mine, mtu = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = {{}}
with socket.create_connection((vip, {PORT}), 5) as conn:
    conn.sendall(b"hello")
    found["tcp"] = conn.recv(64).decode()

def asked(data, tries=8):
    for _unused in range(tries):
        plain.send(data)
        try:
            return plain.recv(65536)
        except TimeoutError:
            pass
    return b""

plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
plain.setsockopt(socket.IPPROTO_IP, 10, 2)
plain.connect((vip, {PORT}))
plain.settimeout(2)
found["udp"] = asked(b"x" * 100) == b"x" * 100
largest = mtu - 28
found["largest"] = len(asked(b"y" * largest)) == largest
try:
    plain.send(b"z" * (largest + 1))
    found["more"] = "sent"
except OSError as error:
    found["more"] = errno.errorcode[error.errno]

raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
raw.settimeout(2)
head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
total = sum(struct.unpack("!4H", head))
head = head[:2] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + head[4:]
found["icmp"] = False
for _unused in range(8):
    raw.sendto(head, (vip, 0))
    try:
        while not found["icmp"]:
            answer = raw.recv(2048)[20:]
            found["icmp"] = answer[0] == 0 and answer[4:6] == head[4:6]
        break
    except TimeoutError:
        pass

group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(mine))
group.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
before = int(asked(b"heard?"))
# The question follows the group's datagrams on the same way.
for _unused in range(8):
    try:
        group.sendto(b"all", ("{GROUP}", {PORT}))
    except OSError as error:
        found["multicast_error"] = errno.errorcode[error.errno]
    found["multicast"] = int(asked(b"heard?")) > before
    if found["multicast"]:
        break
print(json.dumps(found))
"""

SLIM_SERVER = f"""
import socket, sys
listener = socket.create_server((sys.argv[1], {SLIM_PORT}))
print("ready", flush=True)
while True:
    conn = listener.accept()[0]
    conn.sendall(conn.recv(9))
    conn.close()
"""
SLIM_CLIENT = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {SLIM_PORT}), 10) as conn:
    conn.sendall(b"hello")
    assert conn.recv(9) == b"hello"
    print("up", flush=True)
    sys.stdin.read()
"""
CONNECT = f"import socket, sys; socket.create_connection((sys.argv[1], {PORT}), 2).close()"
BGP_TABLE = "4244"
#: What is ours in a snapshot.
OURS = re.compile(r"\b(slv|slr|br-sl|vx-sl)|proto 83\b|\b4244\b|bird|fallback")


def of(gate: tuple[str, ...], long: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """A test of some providers, of which the gate has some."""
    # Each stands at its place in PROVIDERS, by which pytest groups the tests of a provider.
    marks = {
        name: [] if name in gate else [pytest.mark.long if name in long else NOT_ITS]
        for name in PROVIDERS
    }
    rows = [pytest.param(name, marks=marks[name]) for name in PROVIDERS]
    return pytest.mark.parametrize("provider", rows, indirect=True, scope="module")


NOT_ITS = pytest.mark.skip(reason="not a matter of this provider")


class Fleet:
    """A lab whose fallback changes."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.lab = lab
        self.directory = directory
        #: What the plays have said, with all of their tasks' arguments.
        self.told: list[str] = []

    def play(
        self, provider: str, *words: str, tasks_from: str = "main.yml", leave: str = "", **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """Run the role alone, in a fleet without the host `leave` if that is given."""
        stay = [node for node in self.lab.nodes if node != leave]
        group: dict[str, Any] = {"stay": {"hosts": {node: {} for node in stay}}}
        role = {"name": "slim.overlay.slim_fallback", "tasks_from": tasks_from}
        book = [
            {
                "name": "Fallback",
                "hosts": "stay",
                "gather_facts": False,
                "tasks": [{"name": "Run the role", "ansible.builtin.import_role": role}],
            }
        ]
        settings: dict[str, Any] = {
            "slim_fallback_provider": provider,
            "slim_fallback_group": "stay",
        }
        if provider == "bgp":
            settings |= {
                "slim_fallback_bgp_hold": HOLD_S,
                "slim_fallback_bgp_password": PASSWORD,
            }
        for name, content in (("group", group), ("book", book), ("vars", settings | more)):
            (self.directory / f"{name}.json").write_text(json.dumps(content))
        extra = ["-i", str(self.directory / "group.json"), "-e", f"@{self.directory}/vars.json"]
        status, said = play(
            self.lab, self.directory / "book.json", *extra, *words, "--diff", "-vvv"
        )
        self.told.append(json.dumps(said))
        return status, said

    def good(self, provider: str, *words: str, **more: Any) -> dict[str, Any]:
        status, said = self.play(provider, *words, **more)
        assert status == 0, json.dumps(said, indent=1)[-6000:]
        return said

    def command(self, node: str, words: list[str]) -> str:
        return str(self.lab.run(node, words).stdout)

    def routes(self, node: str, table: str) -> str:
        """(A table that never had a route does not exist: `ip` ends with an error.)"""
        words = ["ip", "-4", "route", "show", "table", table]
        return str(self.lab.run(node, words, check=False).stdout)

    def endpoint_on(self, node: str) -> str:
        return next(name for name in self.lab.endpoints if self.lab.node_of(name) == node)

    def serve(self) -> None:
        """Servers in one endpoint of each host."""
        for node in self.lab.nodes:
            place = self.endpoint_on(node)
            server = self.lab.popen(
                place, [sys.executable, "-c", SERVER, self.lab.ip(place)], "overlay",
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            read_until(server, "ready", 60)

    def reaches(self, one: str, two: str) -> bool:
        """Does a plain TCP connection come about?"""
        words = [sys.executable, "-c", CONNECT, self.lab.ip(two)]
        return self.lab.run(one, words, "overlay", check=False).returncode == 0

    def learned(self, node: str, endpoint: str) -> bool:
        """Does BIRD have a route on `node` to the endpoint's vip in the kernel?"""
        return f"{self.lab.ip(endpoint)} via" in self.routes(node, BGP_TABLE)

    def sessions(self, node: str) -> list[str]:
        """BIRD's lines about its sessions: name, state, since when."""
        lines = self.command(node, [*BIRDC, "show", "protocols"]).splitlines()
        return sorted(line for line in lines if line.startswith("host_"))

    def settle(self, provider: str) -> None:
        """BGP takes a moment to find the others."""
        if provider != "bgp":
            return
        for node in self.lab.nodes:
            for other in self.lab.nodes:
                if node != other:
                    place = self.endpoint_on(other)
                    wait_for(
                        functools.partial(self.learned, node, place), PATIENCE,
                        f"{node} has learned where {place} is",
                    )  # fmt: skip

    def snapshot(self) -> dict[str, list[str]]:
        """Whatever a provider could leave: links, addresses, routes, rules, entries, files."""
        shown = {
            "links": ["ip", "-br", "link"],
            "addresses": ["ip", "-br", "-4", "address"],
            "routes": ["ip", "-4", "route", "show", "table", "all"],
            "rules": ["ip", "-4", "rule"],
            "neighbours": ["ip", "-4", "neigh", "show", "nud", "permanent"],
        }
        on_node = {
            "fdb": ["sh", "-c", "for d in $(ls /sys/class/net | grep ^vx-); do bridge fdb show dev "
                    "$d | grep -E '^00:00:00:00:00:00'; done; true"],
            "forwarding": ["sh", "-c", "cd /proc/sys/net/ipv4/conf; grep . eth0/forwarding"],
            "files": ["sh", "-c", "find /etc/slim /opt/slim/fallback /var/lib/slim /run/slim "
                      "2>/dev/null | grep -E 'bird|fallback'; true"],
        }  # fmt: skip
        found = {}
        for place in (*self.lab.nodes, *self.lab.endpoints):
            # MAC and state of a link are nobody's traces, and the lab's own congctl is lost with
            # every rebuilt interface.
            for name, words in (shown | (on_node if place in self.lab.nodes else {})).items():
                lines = Room(self.lab.state, place).run(*words).splitlines()
                if name == "links":
                    lines = [line.split()[0].partition("@")[0] for line in lines]
                lines = [line.partition(" congctl ")[0].strip() for line in lines]
                # Numbers of links grow with each that is made.
                lines = [re.sub(r"@if\d+ +", " ", line) for line in lines]
                found[f"{place}: {name}"] = sorted(
                    line for line in lines if "__pycache__" not in line
                )
        return found

    def fragments(self) -> list[str]:
        """Datagrams that each node had to cut up: proc(5), /proc/net/snmp."""
        found = []
        for node in self.lab.nodes:
            names, values = [
                line.split()
                for line in self.command(node, ["cat", "/proc/net/snmp"]).splitlines()
                if line.startswith("Ip:")
            ]
            found.append(values[names.index("FragCreates")])
        return found

    @contextlib.contextmanager
    def site(self) -> Iterator[None]:
        """An overlay of the site's own: a pair for each endpoint, routes between the hosts."""
        lab = self.lab
        places = [self.endpoint_on(node) for node in lab.nodes]
        try:
            for place in places:
                node = lab.node_of(place)
                others = "".join(
                    f"ip route add {lab.ip(other)}/32 via {lab.hostip(other)} metric 50\n"
                    for other in places
                    if other != place
                )
                name = Path(lab.plan.endpoint(place).netns).name
                lab.run(
                    node,
                    f"""set -e
                    ip link add site-{place} address 02:00:00:00:00:fe type veth \
                        peer name site0 address 02:00:00:00:00:01 netns {name}
                    ip link set site-{place} up
                    ip route add {lab.ip(place)}/32 dev site-{place} metric 50
                    ip neigh add {lab.ip(place)} lladdr 02:00:00:00:00:01 dev site-{place}
                    echo 1 > /proc/sys/net/ipv4/conf/site-{place}/forwarding
                    {others}
                    ip -n {name} link set site0 up
                    ip -n {name} addr add {lab.ip(place)}/32 dev site0
                    ip -n {name} neigh add 169.254.7.1 lladdr 02:00:00:00:00:fe dev site0
                    ip -n {name} route add 10.44.0.0/16 via 169.254.7.1 dev site0 onlink metric 50
                    """,
                )
            yield
        finally:
            for place in places:
                lab.run(
                    lab.node_of(place),
                    f"""ip link del site-{place} 2>/dev/null
                    ip route | grep 'metric 50' | while read -r to rest; do ip route del $to metric 50; done
                    echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding""",
                    check=False,
                )

    def open_site(self) -> None:
        """Let the hosts forward for the site; another provider took its own setting back."""
        setting = "/proc/sys/net/ipv4/conf/eth0/forwarding"
        for node in self.lab.nodes:
            assert self.command(node, ["cat", setting]) == "0\n", "it was not put back"
            self.lab.run(node, f"echo 1 > {setting}")

    def cable(self, node: str, state: str) -> None:
        """Pull or plug a node's cable at the switch."""
        number = self.lab.nodes.index(node) + 1
        Room(self.lab.state, underlay.SWITCH).run("ip", "link", "set", underlay.port(number), state)

    def lose(self, node: str) -> None:
        """What a reboot loses of the fallback: links, routes, rules."""
        self.lab.run(
            node,
            """for link in $(ls /sys/class/net | grep -E '^(slv|slr|br-sl|vx-sl)'); do
                   ip link del $link 2>/dev/null
               done
               ip route flush proto 83
               ip rule flush protocol 83
               ip route flush table 4244 2>/dev/null
               echo 0 > /proc/sys/net/ipv4/conf/eth0/forwarding""",
            check=False,
        )

    def helper(self, node: str, *words: str, **more: Any) -> str:
        """Run slim_fallback, as its units and the role do."""
        program = ["env", f"PYTHONPATH={HELPER}", sys.executable, "-B", "-m", "slim_fallback"]
        return str(self.lab.run(node, [*program, *words], **more).stdout)

    def built(self, node: str, provider: str) -> bool:
        """Is this provider's part of a host there, and whole?"""
        standing = json.loads(self.helper(node, "status", "--json", check=False) or "{}")
        return bool(standing.get("complete")) and standing["provider"] == provider

    @contextlib.contextmanager
    def rewritten(self, node: str, path: str, content: str) -> Iterator[None]:
        """Another content of a file, for a while."""
        before = self.command(node, ["cat", path])
        assert content != before
        try:
            self.lab.run(node, ["sh", "-c", f"cat > {path}"], stdin=content)
            yield
        finally:
            self.lab.run(node, ["sh", "-c", f"cat > {path}"], stdin=before)

    @contextlib.contextmanager
    def told_bird(self, node: str, content: str) -> Iterator[None]:
        """A BIRD with another configuration, for a while."""
        try:
            with self.rewritten(node, BIRD_CONFIG, content):
                self.command(node, [*BIRDC, "configure"])
                yield
        finally:
            self.command(node, [*BIRDC, "configure"])

    @contextlib.contextmanager
    def without(self, provider: str, node: str, gone: str) -> Iterator[None]:
        """What a play leaves on `node` in a fleet without the host `gone`, for a while."""
        address = self.lab.hostip(gone)
        if provider == "bgp":
            config = self.command(node, ["cat", BIRD_CONFIG])
            session = re.compile(
                rf"^protocol bgp host_{address.replace('.', '_')} .*?^}}$", re.M | re.S
            )
            with self.told_bird(node, session.sub("", config)):
                yield
            return
        config = json.loads(self.command(node, ["cat", "/etc/slim/fallback.json"]))
        config["peers"].remove(address)
        config["routes"] = [way for way in config["routes"] if way["via"] != address]
        try:
            self.helper(node, "apply", "--config", "-", stdin=json.dumps(config))
            yield
        finally:
            self.helper(node, "apply")


def changing(said: dict[str, Any]) -> set[tuple[str, str]]:
    """(host, task) of all that changed."""
    return {
        (host, one["task"]["name"])
        for each in said["plays"]
        for one in each["tasks"]
        for host, result in one["hosts"].items()
        if result.get("changed")
    }


def as_it_was(fleet: Fleet) -> None:
    """Back to vxlan, with the lab's own touch."""
    fleet.good("vxlan")
    for place in (*fleet.lab.nodes, *fleet.lab.endpoints):
        congestion.set_on(Room(fleet.lab.state, place))


@pytest.fixture(scope="module")
def fleet(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if not session_lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    fleet = Fleet(session_lab, tmp_path_factory.mktemp("fleet"))
    before = fleet.snapshot()
    try:
        yield fleet
    finally:
        session_lab.end_processes()
        as_it_was(fleet)
    assert fleet.snapshot() == before, "the providers have left something"


@pytest.fixture(scope="module", params=PROVIDERS)
def provider(fleet: Fleet, request: pytest.FixtureRequest) -> Iterator[str]:
    """The fleet has this provider."""
    name: str = request.param
    with fleet.site() if name == "existing" else contextlib.nullcontext():
        # The lab has been deployed with vxlan.
        if name == "bgp":
            foretold(fleet, name)
        elif name != "vxlan" or not all(fleet.built(node, name) for node in fleet.lab.nodes):
            fleet.good(name)
        if name == "existing":
            ours = [line for lines in fleet.snapshot().values() for line in lines]
            assert not [line for line in ours if OURS.search(line)], "of bgp something is left"
            fleet.open_site()
        fleet.settle(name)
        yield name
        fleet.lab.end_processes()


def foretold(fleet: Fleet, name: str) -> None:
    """Change to a provider; check mode has said before what that would do, and done nothing."""
    before = fleet.snapshot()
    foreseen = changing(fleet.good(name, "--check"))
    assert fleet.snapshot() == before, "check mode has changed something"
    done = changing(fleet.good(name))
    assert {host for host, _task in foreseen} == set(fleet.lab.nodes)
    # What starts a program is not run in check mode, and so not foreseen by name.
    assert foreseen <= done, foreseen - done
    assert {host for host, _task in foreseen} == {host for host, _task in done}


@pytest.fixture
def served(fleet: Fleet, provider: str) -> Iterator[Fleet]:
    """With servers in the endpoints."""
    fleet.serve()
    yield fleet
    fleet.lab.end_processes()


@of(gate=("bgp",), long=PROVIDERS)
def test_a_second_run_changes_nothing(fleet: Fleet, provider: str) -> None:
    before = fleet.sessions("node1") if provider == "bgp" else []
    assert changing(fleet.good(provider)) == set()
    if provider == "bgp":
        assert fleet.sessions("node1") == before, "a session has been disturbed"


def test_carries_in_both_directions(served: Fleet, provider: str) -> None:
    lab, cut = served.lab, served.fragments()
    for one, two in (("c1", "c2"), ("c2", "c1")):
        words = [sys.executable, "-c", CLIENT, lab.ip(two), lab.ip(one), str(MTU[provider])]
        found = json.loads(lab.run(one, words, "overlay", timeout=120).stdout)
        found.pop("multicast_error", None)
        assert found == {
            "tcp": "hello",
            "udp": True,
            "icmp": True,
            "largest": True,
            "more": "EMSGSIZE",
            "multicast": MULTICAST[provider],
        }
    assert served.fragments() == cut, "something was cut up on its way"


def test_slim_takes_the_host_path_on_top(fleet: Fleet, provider: str) -> None:
    lab = fleet.lab
    server = lab.popen(
        "c2", [sys.executable, "-c", SLIM_SERVER, lab.ip("c2")],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    read_until(server, "ready", 60)

    def on_host_path() -> bool:
        # A connection each time: the first one after a change may be the admission itself.
        client = lab.popen(
            "c1", [sys.executable, "-c", SLIM_CLIENT, lab.ip("c2")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        read_until(client, "up", 30)
        rows = lab.slimctl("node1", "connections")["connections"]
        found = [row["path"] for row in rows if row["endpoint"] == "c1"]
        client.communicate(timeout=20)
        return "slim" in found

    wait_for(on_host_path, PATIENCE, "a connection takes the host path", interval=0.5)


@of(gate=("bgp",))
def test_the_password_is_in_one_file(fleet: Fleet, provider: str) -> None:
    for node in fleet.lab.nodes:
        mode = fleet.command(node, ["stat", "-c", "%a %U %G", "/etc/slim/bird-password.conf"])
        assert mode == "640 root bird\n"
        assert PASSWORD in fleet.command(node, ["cat", "/etc/slim/bird-password.conf"])
        assert PASSWORD not in fleet.command(node, ["cat", BIRD_CONFIG])
    assert len(fleet.told) > 1
    assert not [said for said in fleet.told if PASSWORD in said]


@of(gate=(), long=("bgp",))
def test_a_new_password_is_not_shown(fleet: Fleet, provider: str) -> None:
    status, said = fleet.play(provider, "--check", slim_fallback_bgp_password="another secret")
    assert status == 0
    assert changed(said) == len(fleet.lab.nodes)
    assert not [said for said in fleet.told if PASSWORD in said or "another secret" in said]


@of(gate=("bgp",))
def test_what_bgp_takes_is_limited_to_the_overlay(fleet: Fleet, provider: str) -> None:
    # A BIRD that says more than it should is played by node2's own, with two networks more.
    config = fleet.command("node2", ["cat", BIRD_CONFIG])
    head = "protocol static vips {\n  ipv4 { table overlay; };\n"
    more = "  route 203.0.113.0/24 unreachable;\n  route 10.44.77.0/24 unreachable;\n"
    with fleet.told_bird("node2", config.replace(head, head + more)):
        # They come together: what is taken tells that the other one is not.
        wait_for(lambda: "10.44.77.0/24" in fleet.routes("node1", BGP_TABLE), PATIENCE)
        assert "203.0.113.0" not in fleet.routes("node1", BGP_TABLE)
    wait_for(lambda: "10.44.77.0/24" not in fleet.routes("node1", BGP_TABLE), PATIENCE)


@of(gate=ROUTED, long=PROVIDERS)
def test_a_host_goes_down_and_comes_back(served: Fleet, provider: str) -> None:
    wait_for(lambda: served.reaches("c1", "c2"), PATIENCE, "c1 reaches c2")
    served.cable("node2", "down")
    try:
        if provider == "bgp":
            wait_for(
                lambda: not served.learned("node1", "c2"), PATIENCE, "the route goes in its time"
            )
        assert not served.reaches("c1", "c2")
        if provider in BUILT:
            served.lose("node2")
            served.helper("node2", "apply")
    finally:
        served.cable("node2", "up")
    served.settle(provider)
    for one, two in (("c1", "c2"), ("c2", "c1")):
        # A rebuilt interface takes its addresses from the servers, not their sockets.
        wait_for(functools.partial(served.reaches, one, two), PATIENCE, f"{one} reaches {two}")


def left_behind(fleet: Fleet, provider: str, node: str, gone: str) -> str:
    """What `node` still does for an endpoint of a host that has left; empty if nothing."""
    if provider == "vxlan":
        flood = fleet.command(node, ["bridge", "fdb", "show", "dev", "vx-slim"])
        return "\n".join(
            line
            for line in flood.splitlines()
            if line.startswith("00:00:00:00:00:00") and fleet.lab.hostip(gone) in line
        )
    routes = fleet.routes(node, BGP_TABLE if provider == "bgp" else "main")
    return "\n".join(line for line in routes.splitlines() if f"{fleet.lab.ip(gone)} via" in line)


@of(gate=BUILT)
def test_a_host_leaves_and_joins(served: Fleet, provider: str) -> None:
    with served.without(provider, "node1", "node2"):
        wait_for(lambda: not left_behind(served, provider, "node1", "c2"), PATIENCE)
        # Over vxlan the bridge may know the way yet: it has learned it.
        assert provider == "vxlan" or not served.reaches("c1", "c2")
    served.settle(provider)
    wait_for(lambda: served.reaches("c1", "c2"), PATIENCE, "c1 reaches c2 again")


# Three hosts, without Slim: the fallback alone.


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if os.geteuid() != 0:
        pytest.skip("the lab needs root")
    name = f"{os.environ.get('SLIMLAB_NAME', 'test')[:13]}-pr"
    environment = os.environ | {"SLIMLAB_NAME": name}
    done = subprocess.run(
        [str(SLIMLAB), "up", "--bare", "--hosts", "3"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    try:
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        fleet = Fleet(Lab(name), tmp_path_factory.mktemp("three"))
        yield fleet
        fleet.lab.end_processes()
    finally:
        subprocess.run([str(SLIMLAB), "down"], env=environment, timeout=120, check=True)


@pytest.mark.long
@pytest.mark.parametrize("name", BUILT)
def test_three_hosts(three: Fleet, name: str) -> None:
    """One goes down, comes back, leaves, joins: the other two never notice."""
    lab, bare = three.lab, three.snapshot()
    foretold(three, name)
    assert changing(three.good(name)) == set()
    assert changing(three.good(name, "--check")) == set()
    try:
        three.serve()
        three.settle(name)
        pairs = [(one, two) for one in lab.endpoints for two in lab.endpoints if one != two]
        for one, two in pairs:
            wait_for(functools.partial(three.reaches, one, two), PATIENCE, f"{one} reaches {two}")
        three.cable("node3", "down")
        try:
            if name == "bgp":
                wait_for(lambda: not three.learned("node1", "c3"), PATIENCE)
            assert three.reaches("c1", "c2")
            assert not three.reaches("c1", "c3")
        finally:
            three.cable("node3", "up")
        wait_for(lambda: three.reaches("c1", "c3"), PATIENCE, "c1 reaches c3 again")
        three.good(name, leave="node3")
        for node in ("node1", "node2"):
            wait_for(
                functools.partial(lambda at: not left_behind(three, name, at, "c3"), node), PATIENCE
            )
        assert three.reaches("c1", "c2")
        three.good(name)
        three.settle(name)
        wait_for(lambda: three.reaches("c3", "c1"), PATIENCE, "c3 reaches c1 again")
    finally:
        lab.end_processes()
        three.good(name, tasks_from="uninstall.yml")
    assert three.snapshot() == bare, "uninstall has left something"
    assert changing(three.good(name, tasks_from="uninstall.yml")) == set()


@pytest.mark.long
def test_existing_takes_ours_away_as_foretold(three: Fleet) -> None:
    bare = three.snapshot()
    try:
        three.good("host-gw")
        with three.site():
            foretold(three, "existing")
            assert changing(three.good("existing")) == set()
            assert changing(three.good("existing", "--check")) == set()
    finally:
        three.good("host-gw", tasks_from="uninstall.yml")
    assert three.snapshot() == bare


@pytest.mark.long
def test_three_hosts_with_a_reflector(three: Fleet) -> None:
    """node1 passes on what node2 and node3 say; they do not talk to each other."""
    more = {"slim_fallback_bgp_reflectors": ["node1"]}
    try:
        three.good("bgp", **more)
        three.serve()
        three.settle("bgp")
        assert len(three.sessions("node1")) == 2
        assert len(three.sessions("node2")) == 1
        # The way itself is not by the reflector.
        routes = three.routes("node2", BGP_TABLE)
        assert f"{three.lab.ip('c3')} via {three.lab.hostip('c3')}" in routes
        assert three.reaches("c2", "c3")
    finally:
        three.lab.end_processes()
        three.good("bgp", tasks_from="uninstall.yml")


@pytest.mark.long
@pytest.mark.parametrize("two", BUILT)
@pytest.mark.parametrize("one", BUILT)
def test_there_and_back_leaves_nothing(three: Fleet, one: str, two: str) -> None:
    if one == two:
        pytest.skip("no change")
    bare = three.snapshot()
    try:
        three.good(one)
        three.settle(one)
        first = three.snapshot()
        three.good(two)
        three.settle(two)
        three.good(one)
        three.settle(one)
        assert three.snapshot() == first
    finally:
        three.good(one, tasks_from="uninstall.yml")
    assert three.snapshot() == bare
