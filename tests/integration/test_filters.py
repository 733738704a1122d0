# SPDX-License-Identifier: Apache-2.0
"""The site's own filters on the overlay bind what goes over the host path.

node1                                     node2
c1: holder.py; nft, OUTPUT ---->          vx-slim, br-slim, the host's end of c2's veth: nft's
                                          bridge family, iptables' FORWARD (br_netfilter)
                                          c2: peer on PEER_PORT; nft and iptables, INPUT

Leases of a second, so that an admission is over soon; and bounds of a second for a
connect, so that it takes the host path on a busy machine, too, where a lease is over.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.client import Lab, wait_for
from tests.integration.helpers import (
    NODES,
    PATIENCE,
    PEER_PORT,
    as_deployed,
    configure,
    settle,
    start_peer,
    starved,
)
from tests.integration.test_policy import Holder, warm

LEASE_S = 1.0
ADMISSION_S = 2 * LEASE_S + 1.0
"""How long a filter may be there before it binds: a proof that was under way when it came has
LEASE_S, then the lease that it renews; the accepting side gives a second more (inbound.py)."""


def bound(lab: Lab, **bounds: float) -> None:
    """Other time limits for both routers; their workers start anew."""
    for node in NODES:
        configure(lab, node, bounds=bounds)
    settle(lab)


@pytest.fixture
def short(slim_lab: Lab) -> Iterator[Lab]:
    settle(slim_lab)
    with as_deployed(slim_lab):
        bound(slim_lab, lease_s=LEASE_S, filters_s=0, **PATIENCE)
        start_peer(slim_lab, "c2", "slim", port=PEER_PORT)
        yield slim_lab
        FILTERS["nft, drop"].lift(slim_lab)


@dataclass(frozen=True)
class Filter:
    """A way in which a site forbids c1 the service."""

    place: str  # an endpoint or a node
    rule: str  # SOURCE and PORT stand for c1's address and the service
    undo: str
    ends: str  # how connects end

    def put(self, lab: Lab) -> float:
        """Forbid it; when it was done, on CLOCK_MONOTONIC."""
        rule = self.rule.replace("SOURCE", lab.ip("c1")).replace("PORT", str(PEER_PORT))
        lab.run(self.place, rule, "overlay")
        return time.monotonic()

    def lift(self, lab: Lab) -> None:
        """Take it away, if it is there."""
        undo = self.undo.replace("SOURCE", lab.ip("c1")).replace("PORT", str(PEER_PORT))
        lab.run(self.place, f"{undo} 2>/dev/null || true", "overlay")


def nft(place: str, family: str, hook: str, verdict: str, ends: str) -> Filter:
    """A rule of nft's."""
    chain = f"add chain {family} site s {{ type filter hook {hook} priority 0; }}"
    rule = f"add rule {family} site s ip saddr SOURCE tcp dport PORT {verdict}"
    words = f"nft 'add table {family} site; {chain}; {rule}'"
    return Filter(place, words, f"nft delete table {family} site", ends)


def iptables(place: str, chain: str, target: str, ends: str) -> Filter:
    """A rule of iptables'."""
    rule = f"{chain} -s SOURCE -p tcp --dport PORT -j {target}"
    return Filter(place, f"iptables -w -A {rule}", f"iptables -w -D {rule}", ends)


FILTERS = {
    "nft, reject": nft("c2", "inet", "input", "reject with tcp reset", "ECONNREFUSED"),
    "nft, drop": nft("c2", "inet", "input", "drop", "timeout"),
    "iptables, reject": iptables("c2", "INPUT", "REJECT --reject-with tcp-reset", "ECONNREFUSED"),
    "nft, the client's own": nft("c1", "inet", "output", "reject with tcp reset", "ECONNREFUSED"),
    "nft, the host's bridge": nft("node2", "bridge", "forward", "drop", "timeout"),
    "iptables, the host's FORWARD": iptables("node2", "FORWARD", "DROP", "timeout"),
}
BRIDGED = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")


def held(lab: Lab, endpoint: str) -> Holder:
    """A holder whose three connections are all on the host path."""
    before = Holder(lab, endpoint, lab.ip("c2"))
    warm(before, PEER_PORT)
    holder = Holder(lab, endpoint, lab.ip("c2"))
    holder.open(PEER_PORT, 3)
    assert set(holder.wait().values()) == {"slim"}
    before.tell("close")
    return holder


def outcome(holder: Holder) -> str:
    """How one connect ends."""
    (number,) = holder.open(PEER_PORT, 1)
    return holder.wait()[number]


@pytest.mark.parametrize("name", FILTERS)
def test_new_connects_fail_as_on_the_overlay_and_live_ones_stay(short: Lab, name: str) -> None:
    each = FILTERS[name]
    if "FORWARD" in name:
        # What a bridge passes on meets iptables only with br_netfilter, and where this is on.
        on = short.run(each.place, ["cat", str(BRIDGED)], check=False).stdout
        if on.strip() != "1":
            pytest.skip("bridged packets meet no iptables here")
    holder = held(short, "c1")
    again = Holder(short, "c1", short.ip("c2"))
    again.tell("patience", 3)
    waited = starved(short, "c1", "c2")
    there = each.put(short)
    try:
        wait_for(lambda: outcome(again) == each.ends, 60, "the admission is over")
        waited = starved(short, "c1", "c2") - waited
        late = again.open(PEER_PORT, 3)
        began = again.wait()
        assert [began[number] for number in late] == [each.ends] * 3
        # What lives was let through when it was made; packets of the host path pass no filter.
        assert set(holder.look().values()) == {"ok"}
    finally:
        each.lift(short)
    # A worker judges a connect after it has begun, so that who is slow to connect is no excuse; a
    # worker that is not let run sees neither timers nor answers, so that this is let off.
    begun = again.begun()
    through = [begun[n] - there for n, word in began.items() if word in ("slim", "overlay")]
    assert max(through, default=0.0) < ADMISSION_S + waited
    warm(again, PEER_PORT)


def test_live_ones_end_where_the_site_asks_for_it(short: Lab) -> None:
    bound(short, filters_s=2 * LEASE_S)
    holder = held(short, "c1")
    free = held(short, "c3")  # another source, which no filter names
    FILTERS["nft, drop"].put(short)
    wait_for(lambda: "ok" not in holder.look().values(), 30, "what lives has ended")
    assert set(free.look().values()) == {"ok"}, "its pair is proved again and again"


def test_a_restart_of_the_fallback_cuts_nothing(short: Lab) -> None:
    bound(short, filters_s=20)
    holder = held(short, "c1")
    prober = Holder(short, "c1", short.ip("c2"))
    for node in NODES:
        short.run(node, ["ip", "link", "set", "vx-slim", "down"])
    wait_for(lambda: outcome(prober) == "timeout", 60, "the overlay is gone")
    for node in NODES:
        short.run(node, ["ip", "link", "set", "vx-slim", "up"])
    warm(prober, PEER_PORT)
    assert set(holder.look().values()) == {"ok"}
