# SPDX-License-Identifier: Apache-2.0
"""The site's own filters on the overlay bind what goes over the host path.

node1                                     node2
c1: holder.py ---- connections ---->      c2: peer on PEER_PORT
                                          nft in c2's namespace: drop or reject c1's SYN

Leases of a second, so that an admission is over soon.
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
BOUNDS = """
import json, sys
path = "/etc/slim/router.json"
value = json.load(open(path))
value["bounds"] = {**value.get("bounds", {}), **json.loads(sys.argv[1])}
open(path, "w").write(json.dumps(value))
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
    bound(slim_lab, lease_s=LEASE_S, filters_s=0)
    start_peer(slim_lab, "c2", "slim", port=PEER_PORT)
    yield slim_lab
    slim_lab.run("c2", ["nft", "delete", "table", "inet", "site"], "overlay", check=False)
    bound(slim_lab, lease_s=30, filters_s=0)


def filter_out(lab: Lab, verdict: str) -> None:
    """The site forbids c1 the service, as its filters do for packets."""
    rules = (
        "table inet site { chain in { type filter hook input priority 0;"
        f" ip saddr {lab.ip('c1')} tcp dport {PEER_PORT} {verdict}; }} }}\n"
    )
    lab.run("c2", ["nft", "-f", "-"], "overlay", stdin=rules)


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
    holder = Holder(short, "c1", short.ip("c2"))
    warm(holder, PEER_PORT)
    filter_out(short, verdict)
    wait_for(lambda: outcome(holder) == ends, 20 + PERIOD_S, "the admission is over")
    again = Holder(short, "c1", short.ip("c2"))
    assert outcome(again) == ends
    # What lives was let through when it was made; new packets of the host path pass no filter.
    assert "ok" in holder.look().values()


def test_live_ones_end_where_the_site_asks_for_it(short: Lab) -> None:
    bound(short, filters_s=2 * LEASE_S)
    holder = Holder(short, "c1", short.ip("c2"))
    warm(holder, PEER_PORT)
    free = Holder(short, "c3", short.ip("c2"))  # another source, which no filter names
    warm(free, PEER_PORT)
    filter_out(short, "drop")
    wait_for(lambda: "ok" not in holder.look().values(), 30, "what lives has ended")
    assert "ok" in free.look().values(), "its pair is proved again and again"


def test_a_restart_of_the_fallback_cuts_nothing(short: Lab) -> None:
    bound(short, filters_s=20)
    holder = Holder(short, "c1", short.ip("c2"))
    warm(holder, PEER_PORT)
    began = holder.look()
    assert "ok" in began.values()
    for node in NODES:
        short.run(node, ["ip", "link", "set", "vx-slim", "down"])
    wait_for(lambda: outcome(holder) == "timeout", 60, "the overlay is gone")
    for node in NODES:
        short.run(node, ["ip", "link", "set", "vx-slim", "up"])
    warm(holder, PEER_PORT)
    looked = holder.look()
    assert {n: word for n, word in looked.items() if n in began} == began
