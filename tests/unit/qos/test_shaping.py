# SPDX-License-Identifier: Apache-2.0
"""slim_qos on a host that this test makes of namespaces, with another as its peer.

    qos-HEX-a (the host)                                  qos-HEX-b (a peer)
      un0 192.0.2.1 ------------- veth --------------- 192.0.2.2 un0
      sle0 --- veth --- eth0 10.44.0.1: qos-HEX-c (endpoint c1)

Sockets of the test with the endpoint's mark stand for host connections. Needs root.
Every command runs in its host by `ip netns exec`; names carry a random part, and the
fixture deletes what it made.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyroute2", reason="slim_qos stands on pyroute2")
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("tc") is None, reason="needs root and iproute2"
)

SOURCE = Path(__file__).resolve().parents[3] / "files" / "qos"
MARK = 0x5C000000
SECONDS = 1.5
BURST = 2_000_000
"""Bits that the buckets of the rates used here let through at once, at the most."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
CLONE_NEWNET = 0x40000000
LO_MSS = 65483
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """This thread, in another network namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    away = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert _libc.setns(away, CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert _libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)
        os.close(away)


class Host:
    """The namespace host."""

    def __init__(self, name: str, top: Path) -> None:
        self.name, self.peer, self.endpoint = f"{name}-a", f"{name}-b", f"{name}-c"
        self.config, self.record = top / "qos.json", top / "record.json"

    def helper(self, command: str, *words: str, status: int = 0, **change: Any) -> dict[str, Any]:
        done = subprocess.run(
            [
                *("ip", "netns", "exec", self.name, sys.executable, "-m", "slim_qos", command),
                *("--json", "--config", str(self.config), "--record", str(self.record)),
                *("--admin", str(self.config.with_name("none.sock")), *words),
            ],
            input=json.dumps(change), env=os.environ | {"PYTHONPATH": str(SOURCE)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def base(self, **more: Any) -> dict[str, Any]:
        entry = {
            "tenant": "default", "name": "c1", "vip": "10.44.0.1",
            "netns": f"/run/netns/{self.endpoint}",
        }  # fmt: skip
        return self.helper("edit", base={"address": "192.0.2.1", "endpoints": [entry], **more})

    def limit(self, *words: str, **rates: Any) -> dict[str, Any]:
        return self.helper("edit", *words, limits=[{"endpoint": "c1", **rates}])

    def tc(self, *words: str) -> str:
        return subprocess.run(
            ["tc", "-n", self.name, *words], check=True, capture_output=True, text=True
        ).stdout

    def everything(self) -> str:
        """All that tc and ip know of this host, but for counters."""
        filters = [
            # Without a clsact there is nothing to ask: some tc call that an error.
            subprocess.run(
                ["tc", "-n", self.name, "filter", "show", "dev", dev, side],
                check=False, capture_output=True, text=True,
            ).stdout
            for dev in ("lo", "un0", "sle0")
            for side in ("ingress", "egress")
        ]  # fmt: skip
        links = [link["ifname"] for link in json.loads(ip("-n", self.name, "-j", "link"))]
        queues = re.sub(r" direct_packets_stat \d+", "", self.tc("qdisc"))
        return "\n".join([queues, *filters, *sorted(links)])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(f"qos-{secrets.token_hex(3)}", tmp_path)
    spaces = (made.name, made.peer, made.endpoint)
    try:
        for name in spaces:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        for one, other, peer in (("un0", "un0", made.peer), ("sle0", "eth0", made.endpoint)):
            ip("-n", made.name, "link", "add", one, "type", "veth",
               "peer", other, "netns", peer)  # fmt: skip
        for name, device, address in (
            (made.name, "un0", "192.0.2.1/24"), (made.peer, "un0", "192.0.2.2/24"),
            (made.name, "sle0", "10.44.0.254/24"), (made.endpoint, "eth0", "10.44.0.1/24"),
        ):  # fmt: skip
            ip("-n", name, "addr", "add", address, "dev", device)
            ip("-n", name, "link", "set", device, "up")
        yield made
    finally:
        for name in spaces:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@dataclass(frozen=True)
class Flow:
    """What a stream met."""

    bits: float
    """Payload, from the first byte to the last that was read."""
    seconds: float
    classes: dict[int, int]
    """Bytes of frames that each class without children has passed meanwhile, by its parent's
    ceiling (its own, if nothing is above) in bits per second."""

    def limited(self, rate: int, mss: int = 1448) -> bool:
        """Was it held to *rate*, counted as frames of mss + 66 bytes?

        On a busy machine a stream may take longer, never less: that the limit is not a lower
        one is read from the kernel. bench/rates.py is what tells the error.
        """
        frames = self.bits * (mss + 66) / mss
        within = frames <= 1.05 * rate * self.seconds + BURST
        return within and 8 * self.classes.get(rate, 0) >= self.bits

    @property
    def free(self) -> bool:
        """Did it meet no class? A keepalive's worth of others is no stream."""
        return sum(self.classes.values()) < 0.01 * self.bits / 8


def stream(
    receiver: str, address: str, sender: str, *, mark: int = 0, listener_mark: int = 0
) -> Flow:
    """One TCP stream to *address* in namespace *receiver*."""
    host = receiver if receiver.endswith("-a") else sender
    with inside(receiver):
        server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with inside(sender):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with server, client:
        if listener_mark:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, listener_mark)
        if mark:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        server.bind((address, 0))
        server.listen(1)
        client.settimeout(10)
        client.connect(server.getsockname())
        accepted, _unused = server.accept()
        stop = threading.Event()

        def pour() -> None:
            block = bytes(65536)
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    client.send(block)

        before = passed(host)
        thread = threading.Thread(target=pour, daemon=True)
        got, start = 0, time.monotonic()
        thread.start()
        with accepted:
            accepted.settimeout(10)
            while time.monotonic() - start < SECONDS:
                got += len(accepted.recv(1 << 20))
            took = time.monotonic() - start
            after = passed(host)
            stop.set()
        thread.join(10)
    return Flow(8 * got, took, {rate: after[rate] - before.get(rate, 0) for rate in after})


def passed(name: str) -> dict[int, int]:
    """Bytes that the classes without children of all devices in namespace *name* have sent, by
    the ceiling of what is above them in bits per second."""
    found: dict[int, int] = {}
    devices = [link["ifname"] for link in json.loads(ip("-n", name, "-j", "link"))]
    for device in devices:
        said = subprocess.run(
            ["tc", "-n", name, "-s", "class", "show", "dev", device],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        classes = re.findall(
            r"class htb (\S+) (root|parent \S+).*? ceil (\d+)([KMG]?)bit.*?\n Sent (\d+) bytes",
            said,
        )
        ceilings = {key: int(n) * UNITS[unit] for key, _above, n, unit, _sent in classes}
        parents = {above.removeprefix("parent ") for _key, above, *_rest in classes}
        for key, above, _n, _unit, sent in classes:
            if key not in parents:
                ceiling = ceilings.get(above.removeprefix("parent "), ceilings[key])
                found[ceiling] = found.get(ceiling, 0) + int(sent)
    return found


def test_what_an_endpoint_sends_is_limited_whatever_way_it_takes(host):
    host.base()
    answer = host.limit(egress="50mbit")
    assert answer["uses"]["probed"] == ["egress"]
    mark = MARK | 1 << 3 | 3
    assert stream(host.peer, "192.0.2.2", host.name, mark=mark).limited(50_000_000)
    assert stream(host.name, "127.0.0.1", host.name, mark=mark).limited(50_000_000, LO_MSS)
    # Not ours: neither the host's own, nor another endpoint's.
    assert stream(host.peer, "192.0.2.2", host.name).free
    assert stream(host.peer, "192.0.2.2", host.name, mark=MARK | 2 << 3 | 3).free
    # Whatever class a connection was made in.
    assert stream(host.peer, "192.0.2.2", host.name, mark=MARK | 1 << 3 | 6).limited(50_000_000)
    # A change holds at once.
    host.limit(egress="80mbit")
    assert stream(host.peer, "192.0.2.2", host.name, mark=mark).limited(80_000_000)


def test_what_an_endpoint_receives_is_limited_whatever_way_it_takes(host):
    host.base()
    answer = host.limit(ingress="50mbit")
    assert answer["uses"]["probed"] == ["ingress"]
    mark = MARK | 1 << 3 | 3
    assert stream(host.name, "192.0.2.1", host.peer, listener_mark=mark).limited(50_000_000)
    assert stream(host.name, "127.0.0.1", host.name, listener_mark=mark).limited(50_000_000, LO_MSS)
    assert stream(host.endpoint, "10.44.0.1", host.name).limited(50_000_000)
    assert stream(host.name, "192.0.2.1", host.peer).free


def test_a_second_run_changes_nothing_and_check_mode_only_tells(host):
    host.base()
    before = host.everything()
    told = host.limit("--check", egress="50mbit", ingress="1gbit", connection="1mbit")
    assert told["changed"]
    assert host.everything() == before
    assert json.loads(host.config.read_text())["endpoints"][0]["limits"]["egress"] == 0
    done = host.limit(egress="50mbit", ingress="1gbit", connection="1mbit")
    assert done["changed"]
    for words in ((), ("--check",)):
        again = host.limit(*words, egress="50mbit", ingress="1gbit", connection="1mbit")
        assert (again["changed"], again["changes"]) == (False, []), again
    assert host.helper("apply")["changes"] == []
    classed = host.helper("edit", classes=[{"endpoint": "c1", "class": "bulk"}])
    assert classed["changed"]
    assert host.helper("edit", classes=[{"endpoint": "c1", "class": "bulk"}])["changes"] == []


def test_a_change_that_the_router_refuses_is_taken_back(host):
    host.base()
    host.limit(egress="50mbit")
    before, file = host.everything(), host.config.read_text()
    with socket.socket(socket.AF_UNIX) as older:
        older.bind(str(host.config.with_name("none.sock")))
        older.listen(8)

        def refuse() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _unused = older.accept()
                    with client:
                        client.recv(100)
                        client.sendall(b'{"ok": false, "error": "unknown op \'limits\'"}\n')

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        refused = host.helper("edit", status=1, limits=[{"endpoint": "c1", "egress": "9mbit"}])
        older.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert "of one collection version" in refused["problem"]
    assert (host.everything(), host.config.read_text()) == (before, file)


def test_everything_that_was_taken_away_comes_back_and_ours_goes(host):
    host.base()
    before = host.everything()
    host.limit(egress="50mbit", ingress="30mbit")
    assert "slim-out" in host.everything()
    host.tc("qdisc", "del", "dev", "slim-out", "root")
    host.tc("qdisc", "del", "dev", "lo", "clsact")
    ip("-n", host.name, "link", "del", "slim-in")
    answer = host.helper("apply")
    assert answer["uses"]["probed"] == ["egress", "ingress"]
    assert host.helper("apply")["changes"] == []
    assert stream(host.name, "127.0.0.1", host.name, mark=MARK | 1 << 3 | 3).limited(
        50_000_000, LO_MSS
    )
    host.limit(egress="0", ingress="0")
    assert host.everything() == before
    host.limit(egress="50mbit")
    assert host.helper("remove")["changed"]
    assert host.everything() == before
    assert host.helper("remove")["changes"] == []
    assert not host.record.exists()


def test_a_foreign_root_makes_way_only_when_told_and_comes_back(host):
    host.tc("qdisc", "add", "dev", "un0", "root", "handle", "77:", "tbf",
            "rate", "900mbit", "burst", "200kb", "latency", "50ms")  # fmt: skip
    before = host.everything()
    refused = host.helper(
        "edit", status=1, base={"address": "192.0.2.1", "link": "500mbit", "endpoints": []}
    )
    assert "root qdisc tbf 77:" in refused["problem"]
    assert "slim_qos_replace_root" in refused["problem"]
    assert host.everything() == before
    assert not host.config.exists()
    host.base(link="500mbit", replace_root=True)
    assert "htb 5e:" in host.everything()
    assert host.base(link="500mbit", replace_root=True)["changes"] == []
    assert stream(host.peer, "192.0.2.2", host.name).limited(500_000_000)
    host.helper("remove")
    assert host.everything() == before


def test_a_foreign_root_with_classes_never_makes_way(host):
    host.tc("qdisc", "add", "dev", "un0", "root", "handle", "77:", "htb")
    before = host.everything()
    refused = host.helper(
        "edit", status=1,
        base={"address": "192.0.2.1", "link": "500mbit", "replace_root": True, "endpoints": []},
    )  # fmt: skip
    assert "classes of its own" in refused["problem"]
    assert host.everything() == before


def test_somebody_elses_filters_and_clsact_stay(host):
    host.tc("qdisc", "add", "dev", "un0", "clsact")
    host.tc("filter", "add", "dev", "un0", "egress", "prio", "9", "u32", "match", "u32", "0", "0",
            "flowid", "1:1")  # fmt: skip
    before = host.everything()
    host.base()
    host.limit(egress="50mbit")
    assert stream(host.peer, "192.0.2.2", host.name, mark=MARK | 1 << 3 | 3).limited(50_000_000)
    host.helper("remove")
    assert host.everything() == before


def test_filters_that_do_not_do_what_they_should_are_found_out(host):
    # One of somebody else's, before ours, takes every packet.
    host.tc("qdisc", "add", "dev", "lo", "clsact")
    host.tc("filter", "add", "dev", "lo", "egress", "prio", "1", "u32", "match", "u32", "0", "0",
            "flowid", "1:1")  # fmt: skip
    host.base()
    before, file = host.everything(), host.config.read_text()
    refused = host.helper("edit", status=1, limits=[{"endpoint": "c1", "egress": "50mbit"}])
    assert "0 packets with our mark met the class" in refused["problem"]
    assert (host.everything(), host.config.read_text()) == (before, file)


def test_an_endpoint_that_is_not_there_yet_is_named(host):
    host.base()
    ip("-n", host.name, "link", "del", "sle0")
    answer = host.limit(egress="50mbit")
    assert [entry["endpoint"] for entry in answer["skipped"]] == ["c1"]
    assert "veth" in answer["skipped"][0]["reason"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limits": [{"endpoint": "c9", "egress": "1mbit"}]}, "c9"),
        ({"base": {"address": "192.0.2.99", "link": "1gbit", "endpoints": []}}, "192.0.2.99"),
        ({"base": {"devices": ["eth7"], "link": "1gbit", "endpoints": []}}, "eth7"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_half_applied(host, change, words):
    host.base()
    before, file = host.everything(), host.config.read_text()
    done = subprocess.run(
        ["ip", "netns", "exec", host.name, sys.executable, "-m", "slim_qos", "edit", "--json",
         "--config", str(host.config), "--record", str(host.record)],
        input=json.dumps(change), env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert words in json.loads(done.stdout)["problem"]
    assert (host.everything(), host.config.read_text()) == (before, file)
