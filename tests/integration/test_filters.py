# SPDX-License-Identifier: Apache-2.0
"""The site's own filters on the overlay bind what goes over the host path.

node1                                     node2
c1: holder.py ---- connections ---->      c2: peer on PEER_PORT
                                          nft in c2's namespace: drop or reject c1's SYN

Leases of a second, so that an admission is over soon; and bounds of a second for a
connect, so that it takes the host path on a busy machine, too, where a lease is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.client import SLIMCTL, Lab, wait_for
from tests.integration.helpers import NODES, PEER_PORT, PYTHON, settle, start_peer
from tests.integration.test_policy import Holder, warm

LEASE_S = 1.0
PERIOD_S = 3 * LEASE_S + 2  # an admission is over, on any machine
PATIENCE_US = 1_000_000
CONFIG = "/etc/slim/router.json"
BOUNDS = f"""
import json, sys
value = json.load(open("{CONFIG}"))
value.setdefault("bounds", {{}}).update(json.loads(sys.argv[1]))
open("{CONFIG}", "w").write(json.dumps(value))
"""


def bound(lab: Lab, **bounds: float) -> None:
    """Other time limits for both routers; their workers start anew."""
    for node in NODES:
        lab.run(node, [PYTHON, "-c", BOUNDS, json.dumps(bounds)])
        lab.run(node, [SLIMCTL, "reload"])
    settle(lab)


@pytest.fixture
def short(slim_lab: Lab) -> Iterator[Lab]:
    settle(slim_lab)
    deployed = {node: slim_lab.run(node, ["cat", CONFIG]).stdout for node in NODES}
    patience = dict.fromkeys(("swap_us", "blocking_swap_us", "reply_us"), PATIENCE_US)
    bound(slim_lab, lease_s=LEASE_S, filters_s=0, **patience)
    start_peer(slim_lab, "c2", "slim", port=PEER_PORT)
    yield slim_lab
    slim_lab.run("c2", ["nft", "delete", "table", "inet", "site"], "overlay", check=False)
    for node, config in deployed.items():
        slim_lab.run(node, ["tee", CONFIG], stdin=config)
        slim_lab.run(node, [SLIMCTL, "reload"])
    settle(slim_lab)


def filter_out(lab: Lab, verdict: str) -> None:
    """The site forbids c1 the service, as its filters do for packets."""
    rules = f"""
        table inet site {{
            chain in {{
                type filter hook input priority 0
                ip saddr {lab.ip("c1")} tcp dport {PEER_PORT} {verdict}
            }}
        }}
    """
    lab.run("c2", ["nft", "-f", "-"], "overlay", stdin=rules)


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


@pytest.mark.parametrize(
    ("verdict", "ends"),
    [("reject with tcp reset", "ECONNREFUSED"), ("drop", "timeout")],
    ids=["reject", "drop"],
)
def test_new_connects_fail_as_on_the_overlay_and_live_ones_stay(
    short: Lab, verdict: str, ends: str
) -> None:
    holder = held(short, "c1")
    filter_out(short, verdict)
    again = Holder(short, "c1", short.ip("c2"))
    wait_for(lambda: outcome(again) == ends, 30 + PERIOD_S, "the admission is over")
    assert outcome(again) == ends
    # What lives was let through when it was made; packets of the host path pass no filter.
    assert set(holder.look().values()) == {"ok"}


def test_live_ones_end_where_the_site_asks_for_it(short: Lab) -> None:
    bound(short, filters_s=2 * LEASE_S)
    holder = held(short, "c1")
    free = held(short, "c3")  # another source, which no filter names
    filter_out(short, "drop")
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
