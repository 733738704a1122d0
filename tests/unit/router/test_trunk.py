# SPDX-License-Identifier: Apache-2.0
"""Trunks over loopback: who may speak, which connection stays, what hostility costs.

node1 (Trunks) <--- TLS ---> node2 (Trunks, or a peer that the test plays)
      ^--------- TLS ---> node3 (Trunks)
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import statistics
import time
from collections import Counter

import pytest

from slim_router import config, frames, trunk
from slim_router.frames import Announce, Answer, Bye, Decoder, Open, Ping, Pong, Query
from slim_router.trunk import TlsError, Trunks
from slim_router.wire import pack_addr
from tests.unit.router.fleet import Ca, Fleet, run, until

VIP = pack_addr("10.44.0.2")


class Recorder:
    """TrunkEvents: writes down what it is told."""

    def __init__(self):
        self.ups, self.downs, self.unpaired, self.got = [], [], [], []
        self.wanted = None  # everybody

    def on_trunk_up(self, found):
        self.ups.append(found)

    def on_trunk_down(self, found):
        self.downs.append(found)

    def on_unpair(self, key_id):
        self.unpaired.append(key_id)

    def on_frame(self, found, frame):
        self.got.append(frame)

    def wants(self, host):
        return host in self.wanted if self.wanted is not None else True


class Side:
    """The trunks of one host."""

    def __init__(self, fleet: Fleet, host: str):
        paths = fleet.paths(host)
        self.config, self.fleet = config.load(paths.config, paths.map)
        self.events = Recorder()
        self.counters: Counter[str] = Counter()
        self.trunks = Trunks(self.config, self.fleet, self.events, self.counters)
        self.trunks.grace_s = 0.05

    async def up(self, host: str):
        return await until(lambda: self.trunks.get(host), f"{self.trunks.me}: trunk to {host}")


class Played:
    """A peer that the test plays, byte by byte, with a valid certificate or not."""

    def __init__(self, reader, writer):
        self.reader, self.writer, self.decoder = reader, writer, Decoder()
        self.decoder.open_only = False

    @classmethod
    async def dial(cls, fleet: Fleet, host: str, tls, *, source: str | None = None, context=None):
        context = context or trunk.contexts(tls)[1]
        local = (source, 0) if source else None
        reader, writer = await asyncio.open_connection(
            fleet.hosts[host]["address"], 6790, ssl=context, server_hostname="", local_addr=local
        )
        return cls(reader, writer)

    def send(self, *batch):
        self.writer.write(b"".join(map(frames.encode, batch)))

    async def frame(self, timeout=5.0):
        """The next frame; None at the end of the connection."""
        async with asyncio.timeout(timeout):
            while True:
                frame = self.decoder.next()
                if frame is not None:
                    return frame
                try:
                    data = await self.reader.read(65536)
                except (OSError, ssl.SSLError):
                    return None
                if not data:
                    return None
                self.decoder.feed(data)

    async def open(self, name: str):
        """Exchange OPEN and the PING that says that both sides chose this connection."""
        self.send(Open(77, b"k" * 32, name))
        assert isinstance(await self.frame(), Open)
        ping = await self.frame()
        assert isinstance(ping, Ping), ping
        self.send(Ping(b"chosen!!"), Pong(ping.opaque))

    async def refused(self):
        """Read to the end; the reason of the BYE, "" without one."""
        reason = ""
        while (frame := await self.frame()) is not None:
            if isinstance(frame, Bye):
                reason = frame.reason
        return reason

    def close(self):
        self.writer.transport.abort()


@pytest.fixture
def three(fleet):
    for host in ("node1", "node2", "node3"):
        fleet.host(host)
    fleet.write()
    return fleet


@contextlib.asynccontextmanager
async def sides(fleet, *hosts):
    made = [Side(fleet, host) for host in hosts]
    try:
        for side in made:
            await side.trunks.start()
        yield made
    finally:
        for side in made:
            await side.trunks.stop()


def test_two_hosts_come_together_and_know_each_other(three):
    async def body():
        async with sides(three, "node1", "node2") as (one, two):
            at_one, at_two = await one.up("node2"), await two.up("node1")
            # Each side makes hellos under the key that the other gave it.
            assert (at_one.peer_key_id, at_one.peer_key) == (at_two.key_id, at_two.key)
            assert (at_two.peer_key_id, at_two.peer_key) == (at_one.key_id, at_one.key)
            assert at_one.key != at_two.key
            assert one.trunks.key(at_one.key_id) == ("node2", at_one.key)
            assert two.trunks.key(at_one.key_id) is None
            at_one.send(Query(5, "t", VIP, 1, VIP, 2))
            await until(lambda: two.events.got, "the frame")
            assert two.events.got == [Query(5, "t", VIP, 1, VIP, 2)]
            await until(lambda: at_one.rtt_us is not None, "a round trip")
            await until(lambda: one.counters["trunk_in_pong"] > 2, "pings go on", 20)
            assert not one.events.downs
            assert not two.events.downs

    run(body())


def test_when_both_dial_both_keep_the_connection_of_the_smaller_name(three):
    async def body():
        for _unused in range(5):
            async with sides(three, "node1", "node2") as (one, two):
                two.trunks.demand("node1")  # without the head start of the other
                two.trunks.peers["node1"].task.cancel()
                two.trunks.peers["node1"].task = None
                two.trunks.demand("node1")
                await one.up("node2")
                await two.up("node1")
                await until(
                    lambda one=one, two=two: (
                        (a := one.trunks.get("node2"))
                        and (b := two.trunks.get("node1"))
                        and a.key_id == b.peer_key_id
                        and a.dialler == b.dialler == "node1"
                    ),
                    "both keep the connection that node1 dialled",
                )

    run(body())


def test_a_trunk_of_the_larger_name_gives_way_to_one_of_the_smaller(three):
    async def body():
        async with sides(three, "node1") as (one,):
            for peer in one.trunks.peers.values():
                peer.task.cancel()
                peer.task = None
            async with sides(three, "node2") as (two,):
                first = await one.up("node2")
                assert first.dialler == "node2"
                # node1 dials although there is a trunk, as if both had begun at once.
                assert await one.trunks._dial(one.fleet.hosts["node2"]) == ""
                second = one.trunks.get("node2")
                assert second is not first
                assert second.dialler == "node1"
                other = await until(
                    lambda: (t := two.trunks.get("node1")) and t.dialler == "node1" and t, "node2"
                )
                assert other.peer_key_id == second.key_id
                assert first.closed
                # And the reverse is refused, without a change.
                why = await two.trunks._dial(two.fleet.hosts["node1"])
                assert "trunk already" in why
                assert one.trunks.get("node2") is second
                assert two.trunks.get("node1") is other

    run(body())


def test_a_peer_that_restarts_is_back_soon_with_new_keys(three):
    async def body():
        async with sides(three, "node1") as (one,):
            async with sides(three, "node2"):
                old = await one.up("node2")
            await until(lambda: one.events.downs == [old], "the end is seen")
            await until(lambda: old.key_id in one.events.unpaired, "its key is withdrawn")
            assert one.trunks.key(old.key_id) is None
            async with sides(three, "node2"):
                new = await one.up("node2")
                assert (new.key_id, new.key) != (old.key_id, old.key)
                assert new.peer_key != old.peer_key

    run(body())


def test_a_key_is_still_good_for_a_moment_after_its_trunk(three):
    async def body():
        async with sides(three, "node1") as (one,):
            one.trunks.grace_s = 0.5
            async with sides(three, "node2"):
                old = await one.up("node2")
            await until(lambda: one.events.downs, "the end is seen")
            assert one.trunks.key(old.key_id) == ("node2", old.key)
            assert not one.events.unpaired
            await until(lambda: one.events.unpaired == [old.key_id], "the key is withdrawn")
            assert one.trunks.key(old.key_id) is None

    run(body())


def test_a_certificate_of_another_host_is_refused(three):
    async def body():
        three.tls["node2"] = three.tls["node3"]
        three.write("node2")
        async with sides(three, "node1", "node2") as (one, two):
            await until(
                lambda: one.counters["trunk_refused"] + two.counters["trunk_refused"] >= 1,
                "the refusal",
            )
            await until(lambda: "certificate is for ['node3']" in one.trunks.peers["node2"].error,
                        "the operator can see why")  # fmt: skip
            assert not one.events.ups
            assert not two.events.ups

    run(body())


@pytest.mark.parametrize(
    ("dns", "name", "words"),
    [
        (["node2"], "node3", "certificate is for ['node2']"),
        (["node2"], "node1", "certificate is for"),
        (["node1"], "node1", "our own name"),
        (["stranger"], "stranger", "not in our map"),
        (["*.example"], "a.example", "certificate is for"),
        ([], "node2", "certificate is for []"),
    ],
)
def test_a_name_that_is_not_the_callers_is_refused(three, dns, name, words):
    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.ca.host(*dns))
            peer.send(Open(1, b"k" * 32, name))
            assert words in await peer.refused()
            assert one.counters["trunk_refused"] == 1
            assert not one.events.ups
            peer.close()

    run(body())


def test_one_certificate_with_two_names_may_use_either(three):
    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.ca.host("alias", "node2"))
            await peer.open("node2")
            await one.up("node2")
            peer.close()

    run(body())


def test_another_ca_is_refused_on_both_sides(three, tmp_path):
    async def body():
        foreign = Ca(tmp_path / "foreign")
        three.tls["node2"] = foreign.host("node2")
        three.write("node2")
        async with sides(three, "node1", "node2") as (one, two):
            await until(lambda: one.counters["trunk_dial_failed"] > 1, "node1's attempts fail")
            await until(lambda: two.counters["trunk_handshake_failed"], "node2 saw it")
            assert not one.events.ups
            assert not two.events.ups
            # The foreign one that trusts us is no better off.
            both = trunk.contexts(three.tls["node2"])[1]
            both.verify_mode = ssl.CERT_NONE
            peer = await Played.dial(three, "node1", None, context=both)
            peer.send(Open(1, b"k" * 32, "node2"))
            assert await peer.refused() == ""
            await until(lambda: one.counters["trunk_handshake_failed"], "node1 saw it")

    run(body())


def test_plain_tcp_old_tls_and_missing_certificates_are_refused(three):
    async def body():
        async with sides(three, "node1") as (one,):
            address = three.hosts["node1"]["address"]
            reader, writer = await asyncio.open_connection(address, 6790)
            writer.write(frames.encode(Open(1, b"k" * 32, "node2")))
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
            old = trunk.contexts(three.tls["node2"])[1]
            old.minimum_version = ssl.TLSVersion.TLSv1_2
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await Played.dial(three, "node1", None, context=old)
            bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            bare.check_hostname = False
            bare.load_verify_locations(three.ca.path)
            peer = await Played.dial(three, "node1", None, context=bare)
            peer.send(Open(1, b"k" * 32, "node2"))
            assert await peer.refused() == ""
            await until(lambda: one.counters["trunk_handshake_failed"] >= 3, "all were counted")
            assert not one.events.ups

    run(body())


SAMPLES: list[frames.Frame] = [
    Announce("default", VIP, 20000, True, 77),
    Query(9, "default", VIP, 40000, VIP, 80),
    Answer(9, True),
    Ping(b"12345678"),
]


def test_flipped_and_truncated_frames_cost_their_sender_its_trunk_and_nobody_else(three):
    async def body():
        rng = random.Random(1)
        async with sides(three, "node1", "node3") as (one, three_):
            other = await one.up("node3")
            for number in range(24):
                sample = SAMPLES[number % len(SAMPLES)]
                raw = bytearray(frames.encode(sample))
                # A flip in the header is always an error.
                bit = rng.randrange(32)
                raw[bit // 8] ^= 1 << bit % 8
                if raw[3] in range(1, 10) and raw[:3] == frames.encode(sample)[:3]:
                    raw[0] ^= 0xFF
                before = one.counters["trunk_bad_frame"]
                peer = await Played.dial(three, "node1", three.tls["node2"])
                await peer.open("node2")
                peer.writer.write(bytes(raw) + bytes(64))
                assert "protocol error" in await peer.refused()
                assert one.counters["trunk_bad_frame"] == before + 1
                peer.close()
                peer = await Played.dial(three, "node1", three.tls["node2"])
                await peer.open("node2")
                peer.writer.write(frames.encode(sample)[: rng.randrange(1, 16)])
                await one.up("node2")
                peer.close()  # cut off: an end like any other
                await until(lambda: one.trunks.get("node2") is None, "the end is seen")
            assert one.trunks.get("node3") is other
            assert not three_.events.downs

    run(body(), 60)


@pytest.mark.parametrize("first", [*SAMPLES, Pong(b"12345678")], ids=lambda f: type(f).__name__)
def test_anything_before_open_is_an_error(three, first):
    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.tls["node2"])
            peer.send(first)
            assert "not OPEN" in await peer.refused()
            assert not one.events.got
            peer.close()

    run(body())


def test_a_second_open_is_an_error(three):
    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.tls["node2"])
            await peer.open("node2")
            await one.up("node2")
            peer.send(Open(2, b"j" * 32, "node2"))
            assert "second OPEN" in await peer.refused()
            peer.close()

    run(body())


def test_a_silent_peer_is_given_up(three):
    three.changes["node1"]["bounds"] = {"ping_s": 0.2}
    three.write()

    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.tls["node2"])
            await peer.open("node2")
            await one.up("node2")
            began = time.monotonic()
            # three pings may be missed
            await until(lambda: one.events.downs, "the silence is noticed")
            assert 0.5 < time.monotonic() - began < 5
            assert one.counters["trunk_silent"] == 1
            peer.close()

    run(body())


def test_callers_that_say_nothing_are_bounded_and_dropped(three, monkeypatch):
    monkeypatch.setattr(trunk, "OPEN_S", 1.0)
    monkeypatch.setattr(trunk, "HANDSHAKE_S", 1.0)

    async def body():
        async with sides(three, "node1") as (one,):
            address = three.hosts["node1"]["address"]
            known = three.hosts["node2"]["address"]
            mute = [
                await asyncio.open_connection(address, 6790, local_addr=(known, 0))
                for _unused in range(trunk.PENDING_PER_ADDRESS + 5)
            ]
            await until(lambda: one.counters["trunk_crowded"] == 5, "the surplus is closed")
            # They crowd out only their own address.
            async with sides(three, "node3"):
                await one.up("node3")
            await until(
                lambda: one.counters["trunk_handshake_failed"] >= trunk.PENDING_PER_ADDRESS,
                "the mute are dropped",
            )
            for _unused, writer in mute:
                writer.close()
            # Those who finish TLS and then say nothing, too.
            peer = await Played.dial(three, "node1", three.tls["node2"], source=known)
            assert "no OPEN in time" in await peer.refused()
            peer.close()

    run(body())


def test_a_flooding_peer_does_not_stall_the_others(three, monkeypatch):
    monkeypatch.setattr(trunk, "FRAME_RATE", 5000.0)
    monkeypatch.setattr(trunk, "FRAME_BURST", 2000.0)

    async def body():
        async with sides(three, "node1", "node3") as (one, other):
            link = await other.up("node1")
            peer = await Played.dial(three, "node1", three.tls["node2"])
            await peer.open("node2")
            await one.up("node2")
            flood = frames.encode(Answer(1, False)) * 20_000
            for _unused in range(5):
                peer.writer.write(flood)
            times = []
            for number in range(30):
                began = time.monotonic()
                link.send(Query(number, "t", VIP, 1, VIP, 2))
                await until(
                    lambda number=number: any(
                        isinstance(f, Query) and f.id == number for f in one.events.got
                    ),
                    "node3's query arrives",
                )
                times.append(time.monotonic() - began)
                one.events.got.clear()
            assert statistics.median(times) < 0.3, times
            assert max(times) < 3, times
            assert one.counters["trunk_throttled"] > 0
            assert one.trunks.get("node3") is not None
            peer.close()

    run(body())


def test_a_peer_that_does_not_read_is_given_up(three, monkeypatch):
    monkeypatch.setattr(trunk, "BUFFER_MAX", 1 << 20)
    monkeypatch.setattr(trunk, "BUFFER_HIGH", 1 << 18)

    async def body():
        async with sides(three, "node1") as (one,):
            peer = await Played.dial(three, "node1", three.tls["node2"])
            peer.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )
            await peer.open("node2")
            link = await one.up("node2")
            peer.writer.transport.pause_reading()
            batch = [Announce("t" * 200, VIP, 1, True, 7)] * 1000
            for _unused in range(200):
                if link.closed:
                    break
                link.send_many(batch)
                await asyncio.sleep(0)
                if link._congested:
                    assert link.send(Answer(1, True), droppable=True) is False
            assert link.closed
            assert one.counters["trunk_congested"] > 0
            await until(lambda: one.events.downs == [link], "it is told")
            peer.close()

    run(body())


def test_a_dead_address_is_tried_again_with_growing_pauses(three):
    async def body():
        async with sides(three, "node1") as (one,):
            await until(lambda: one.counters["trunk_dial_failed"] >= 6, "some attempts")
            attempts = one.counters["trunk_dial_failed"]
            await asyncio.sleep(0.5)
            # two dead peers; by now a pause of each is over 0.4 s
            assert one.counters["trunk_dial_failed"] - attempts <= 4
            assert "refused" in one.trunks.peers["node2"].error

    run(body())


def test_large_fleets_are_dialled_on_demand_only(three, monkeypatch):
    monkeypatch.setattr(trunk, "EAGER_HOSTS", 2)

    async def body():
        async with sides(three, "node1", "node2") as (one, two):
            await asyncio.sleep(0.2)
            assert not one.events.ups
            assert one.trunks.peers["node2"].task is None
            two.trunks.demand("node1")
            await one.up("node2")
            await two.up("node1")

    run(body())


def test_in_large_fleets_a_trunk_that_neither_side_needs_closes_and_stays_closed(
    three, monkeypatch
):
    monkeypatch.setattr(trunk, "EAGER_HOSTS", 2)
    for host in ("node1", "node2"):
        three.changes[host]["bounds"] = {"ping_s": 0.1, "ping_misses": 100}
    three.write()

    async def body():
        async with sides(three, "node1", "node2") as (one, two):
            one.events.wanted, two.events.wanted = {"node2"}, set()
            one.trunks.demand("node2")
            at_one, at_two = await one.up("node2"), await two.up("node1")
            # One of the two needs it, whichever says that it does not.
            await until(lambda: one.counters["trunk_in_idle"] > 3, "node2 says that it is idle")
            two.events.wanted, one.events.wanted = {"node1"}, set()
            seen = two.counters["trunk_in_idle"]
            await until(lambda: two.counters["trunk_in_idle"] > seen + 3, "now node1 does")
            assert not at_one.closed
            assert not at_two.closed
            two.events.wanted = set()
            await until(lambda: at_one.closed and at_two.closed, "nobody needs it")
            dialled = one.counters["trunk_out_ping"] + two.counters["trunk_out_ping"]
            tasks = [one.trunks.peers["node2"].task, two.trunks.peers["node1"].task]
            await until(lambda: all(t is None or t.done() for t in tasks), "nobody dials")
            assert one.counters["trunk_out_ping"] + two.counters["trunk_out_ping"] == dialled
            two.events.wanted = {"node1"}
            two.trunks.demand("node1")
            again = await one.up("node2")
            assert again is not at_one

    run(body())


def test_in_small_fleets_no_trunk_is_idle(three):
    three.changes["node1"]["bounds"] = three.changes["node2"]["bounds"] = {"ping_s": 0.1}
    three.write()

    async def body():
        async with sides(three, "node1", "node2") as (one, two):
            one.events.wanted = two.events.wanted = set()
            link = await one.up("node2")
            await until(lambda: one.counters["trunk_in_pong"] > 5, "some pings")
            assert not link.closed
            assert not one.counters["trunk_in_idle"] + one.counters["trunk_out_idle"]

    run(body())


def test_a_lost_trunk_is_redialled_only_while_somebody_needs_it(three, monkeypatch):
    monkeypatch.setattr(trunk, "EAGER_HOSTS", 2)

    async def body():
        async with sides(three, "node1") as (one,):
            for wanted in (True, False):
                one.events.wanted = {"node2"}
                async with sides(three, "node2") as (two,):
                    two.events.wanted = set()
                    one.trunks.demand("node2")
                    old = await one.up("node2")
                    if not wanted:
                        one.events.wanted = set()
                await until(lambda old=old: old.closed, "it is lost")
                failed = one.counters["trunk_dial_failed"]
                task = one.trunks.peers["node2"].task
                if wanted:
                    await until(
                        lambda failed=failed: one.counters["trunk_dial_failed"] > failed + 2,
                        "it is dialled again",
                    )
                else:
                    await until(lambda task=task: task is None or task.done(), "it is left alone")
                    assert one.counters["trunk_dial_failed"] == failed

    run(body())


def test_a_trunk_port_that_is_taken_is_named(three):
    async def body():
        address = three.hosts["node1"]["address"]
        with socket.create_server((address, 6790)):
            side = Side(three, "node1")
            with pytest.raises(OSError, match=f"trunk port {address}:6790.*free the port"):
                await side.trunks.start(patience_s=0.2)

    run(body())


def test_certificates_that_cannot_be_used_are_named(three, tmp_path):
    good = three.tls["node1"]
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    missing = tmp_path / "missing.pem"
    for change, words in (
        ({"ca": missing}, "ca .*missing.pem: No such file"),
        ({"ca": empty}, "deploy the CA certificate"),
        ({"cert": missing}, "No such file"),
        ({"key": three.tls["node2"].key}, "KEY_VALUES_MISMATCH|mismatch"),
    ):
        values = {"ca": good.ca, "cert": good.cert, "key": good.key, **change}
        with pytest.raises(TlsError, match=words):
            trunk.contexts(config.Tls(**values))
