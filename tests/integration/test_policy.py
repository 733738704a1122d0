# SPDX-License-Identifier: Apache-2.0
"""The policy, pushed while connections live, are being made, and routers die.

node1                                    node2
c1: holder.py ---- connections ---->     c2: peers on PEER_PORT and OTHER_PORT
c3: peer on PEER_PORT (within node1)
router <-- slimctl acl-set               router <-- slimctl acl-set
"""

from __future__ import annotations

import json
import random
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lab.client import SLIMCTL, Lab, wait_for
from tests.integration.helpers import (
    NODES,
    PEER_PORT,
    PYTHON,
    SOURCES,
    gone,
    kill,
    read_until,
    settle,
    start_peer,
)

OTHER_PORT = PEER_PORT + 100
BITE_S = 1.0
"""Seconds after which nothing forbidden may live."""
PULSE_S = 0.1
"""Between two looks of a connection at itself."""
ALLOW = {"default": "allow", "rules": []}

Policy = dict[str, Any]


class Holder:
    """holder.py in an endpoint."""

    def __init__(self, lab: Lab, endpoint: str, address: str, mode: str = "slim") -> None:
        self.process = lab.popen(
            endpoint,
            [PYTHON, SOURCES / "holder.py", address],
            mode,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, *words: object) -> Any:
        """One command and its answer."""
        stdin = self.process.stdin
        assert stdin is not None
        stdin.write(" ".join(map(str, words)) + "\n")
        stdin.flush()
        return json.loads(read_until(self.process, "\n", 60))

    def open(self, port: int, count: int, host: str = "") -> list[int]:
        """Begin to connect; numbers."""
        began: list[int] = self.tell("open", port, count, *([host] if host else []))["began"]
        return began

    def wait(self) -> dict[int, str]:
        """How each that was opened began: slim, overlay, an error."""
        return {int(number): word for number, word in self.tell("wait").items()}

    def look(self) -> dict[int, str]:
        """How each that was opened is: ok, or an error."""
        return {int(number): word for number, word in self.tell("look").items()}

    def begun(self) -> dict[int, float]:
        """When each that was opened began to connect, on CLOCK_MONOTONIC."""
        return {int(number): when for number, when in self.tell("begun").items()}

    def signs(self) -> dict[int, tuple[float, float]]:
        """When each was connected, and when the last byte that has come back by it had left, on
        CLOCK_MONOTONIC; of those by which one has."""
        return {int(number): tuple(times) for number, times in self.tell("signs").items()}


def deny(lab: Lab, source: str, destination: str, port: int, name: str = "no") -> Policy:
    """A list that forbids one service to one endpoint."""
    rule = {
        "id": name, "action": "deny", "ports": [port],
        "sources": [lab.ip(source)], "destinations": [lab.ip(destination)],
    }  # fmt: skip
    return {"default": "allow", "rules": [rule]}


def push(lab: Lab, node: str, policy: Policy, *words: str) -> Any:
    """slimctl acl-set on one node; its answer."""
    done = lab.run(
        node, [SLIMCTL, "acl-set", "-", "--json", *words], stdin=json.dumps(policy), timeout=30
    )
    return json.loads(done.stdout)


def push_all(lab: Lab, policy: Policy) -> list[Any]:
    return [push(lab, node, policy) for node in NODES]


def of_pair(answer: Any) -> list[tuple[str, str, int, str, str | None]]:
    """(endpoint, direction, port, path, rule) of each revoked connection, sorted."""
    return sorted(
        (row["endpoint"], row["direction"], row["dport"], row["path"], row["rule"])
        for row in answer["revoked"]
    )


def names_of(*answers: Any) -> set[tuple[Any, ...]]:
    """The virtual names of all connections that were revoked."""
    return {
        (row["src"], row["sport"], row["dst"], row["dport"])
        for answer in answers
        for row in answer["revoked"]
    }


@pytest.fixture
def ruled(slim_lab: Lab) -> Iterator[Lab]:
    """A lab whose services run, and whose routers allow everything before and after."""
    settle(slim_lab)
    push_all(slim_lab, ALLOW)
    for endpoint, port in (("c2", PEER_PORT), ("c2", OTHER_PORT), ("c3", PEER_PORT)):
        start_peer(slim_lab, endpoint, "slim", port=port)
    yield slim_lab
    settle(slim_lab)
    push_all(slim_lab, ALLOW)


def warm(holder: Holder, port: int, host: str = "") -> None:
    """Connect until it goes by the host path."""

    def is_slim() -> bool:
        (number,) = holder.open(port, 1, host)
        return holder.wait()[number] == "slim"

    wait_for(is_slim, 20, f"connects to port {port} take the host path")


@pytest.mark.parametrize("server", ["c2", "c3"], ids=["across", "within"])
def test_a_push_ends_what_it_forbids_and_nothing_else(ruled: Lab, server: str) -> None:
    holder = Holder(ruled, "c1", ruled.ip(server))
    warm(holder, PEER_PORT)
    doomed = holder.open(PEER_PORT, 20)
    keeper = Holder(ruled, "c1", ruled.ip("c2"))
    if server == "c2":
        warm(keeper, OTHER_PORT)
    else:
        warm(keeper, PEER_PORT)
    kept = keeper.open(OTHER_PORT if server == "c2" else PEER_PORT, 20)
    assert set(holder.look().values()) == {"ok"}
    assert set(keeper.look().values()) == {"ok"}
    policy = deny(ruled, "c1", server, PEER_PORT)
    foreseen = [push(ruled, node, policy, "--dry-run") for node in NODES]
    done = push_all(ruled, policy)
    # What the check foresaw is what happens. Of a connection between two hosts the one that is
    # pushed to first names its end; the other host's is reset by that.
    assert of_pair(foreseen[0]) == of_pair(done[0])
    assert names_of(*foreseen) == names_of(*done)
    assert len(of_pair(done[0])) >= len(doomed)
    assert all(row[4] == "no" for row in of_pair(done[0]))
    assert not done[0]["incomplete"] and not done[1]["incomplete"]
    looked = holder.look()
    assert set(looked.values()) <= {"ECONNABORTED", "ECONNRESET", "EPIPE"}, looked
    assert {
        number: word for number, word in keeper.look().items() if number in kept
    } == dict.fromkeys(kept, "ok")
    # New ones are refused as by a filter, without the overlay's being tried.
    refused = holder.open(PEER_PORT, 3)
    assert [holder.wait()[number] for number in refused] == ["ECONNREFUSED"] * 3
    again = push(ruled, "node1", policy)
    assert not again["changed"] and again["revision"] == done[0]["revision"]


def test_one_side_is_enough(ruled: Lab) -> None:
    """The server's side alone: live ones end, new ones reach nobody."""
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    warm(holder, PEER_PORT)
    warm(holder, OTHER_PORT)
    done = push(ruled, "node2", deny(ruled, "c1", "c2", PEER_PORT))
    assert {row[:3] for row in of_pair(done)} == {("c2", "in", PEER_PORT)}
    looked = holder.look()
    ports = sorted(set(looked.values()) - {"ok"})
    assert ports and "ok" in looked.values(), looked
    late = holder.open(PEER_PORT, 5)
    began, looked = holder.wait(), holder.look()
    for number in late:
        assert looked.get(number, began[number]) != "ok"


def test_the_list_outlives_the_router(ruled: Lab) -> None:
    """Killed and restarted: still refused, and pushed to while it is away nothing is lost."""
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    policy = deny(ruled, "c1", "c2", PEER_PORT)
    before = push(ruled, "node1", policy)
    kill(ruled, "node1")
    settle(ruled)
    after = ruled.slimctl("node1", "acl")
    assert (after["revision"], after["state"]) == (before["revision"], "in-force")
    assert [rule["id"] for rule in after["rules"]] == ["no"]
    (number,) = holder.open(PEER_PORT, 1)
    assert holder.wait()[number] == "ECONNREFUSED"


@pytest.mark.parametrize("node", NODES)
def test_what_a_dead_router_had_handed_over_is_judged_by_the_next(ruled: Lab, node: str) -> None:
    """Connections of before the death of one side's router, a list for that side after it."""
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    warm(holder, PEER_PORT)
    warm(holder, OTHER_PORT)
    began = holder.wait()
    kill(ruled, node)
    settle(ruled)
    rows = [
        row
        for row in ruled.slimctl(node, "connections")["connections"]
        if row["dport"] in (PEER_PORT, OTHER_PORT) and row["state"] == "established"
    ]
    assert sum(row["path"] == "slim" for row in rows) >= 2, rows
    assert set(holder.look().values()) == {"ok"}
    done = push(ruled, node, deny(ruled, "c1", "c2", PEER_PORT))
    assert {row[2] for row in of_pair(done)} == {PEER_PORT}
    looked = holder.look()
    assert "ok" in looked.values() and set(looked.values()) != {"ok"}, (began, looked)


def is_dead(word: str) -> bool:
    return word in ("ECONNABORTED", "ECONNRESET", "EPIPE", "end")


@pytest.mark.parametrize("node", NODES)
def test_what_was_made_while_a_router_was_away_is_judged_by_the_next(ruled: Lab, node: str) -> None:
    """node1's made it, node2's accepted it; the list is for that side alone, and after it."""
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    with gone(ruled, node):
        doomed, kept = holder.open(PEER_PORT, 5), holder.open(OTHER_PORT, 5)
        assert set(holder.look().values()) == {"ok"}
    settle(ruled)
    assert set(holder.look().values()) == {"ok"}
    policy = deny(ruled, "c1", "c2", PEER_PORT)
    foreseen, done = push(ruled, node, policy, "--dry-run"), push(ruled, node, policy)
    assert of_pair(foreseen) == of_pair(done)
    assert len(of_pair(done)) == len(doomed)
    looked = holder.look()
    assert all(is_dead(looked[number]) for number in doomed), looked
    assert all(looked[number] == "ok" for number in kept), looked


@pytest.mark.parametrize("node", NODES)
def test_a_router_that_comes_back_ends_what_its_list_forbids(ruled: Lab, node: str) -> None:
    """The list was there before; what it forbids came while nobody judged, or comes when an
    accept() that had begun then takes it."""
    push(ruled, node, deny(ruled, "c1", "c2", PEER_PORT))
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    with gone(ruled, node):
        doomed, kept = holder.open(PEER_PORT, 5), holder.open(OTHER_PORT, 5)
        assert set(holder.look().values()) == {"ok"}
    settle(ruled)
    late = holder.open(PEER_PORT, 5)
    began = holder.wait()

    def are_dead() -> bool:
        looked = holder.look()
        return all(is_dead(looked.get(number, "end")) for number in doomed + late)

    wait_for(are_dead, BITE_S, f"all that is forbidden is dead; began {began}")
    assert all(holder.look()[number] == "ok" for number in kept)


def test_a_program_without_the_shim_is_judged_when_the_list_comes(ruled: Lab) -> None:
    """By the side that made the connection alone."""
    holder = Holder(ruled, "c1", ruled.ip("c2"), "overlay")
    doomed, kept = holder.open(PEER_PORT, 3), holder.open(OTHER_PORT, 3)
    assert set(holder.look().values()) == {"ok"}
    done = push(ruled, "node1", deny(ruled, "c1", "c2", PEER_PORT))
    assert [row[:4] for row in of_pair(done)] == [("c1", "out", PEER_PORT, "overlay")] * 3
    looked = holder.look()
    assert all(is_dead(looked[number]) for number in doomed), looked
    assert all(looked[number] == "ok" for number in kept), looked


def test_programs_of_ipv4_mapped_addresses_are_judged_by_the_address(ruled: Lab) -> None:
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    mapped = f"::ffff:{ruled.ip('c2')}"
    warm(holder, PEER_PORT, mapped)
    push_all(ruled, deny(ruled, "c1", "c2", PEER_PORT))
    assert "ok" not in holder.look().values()
    (number,) = holder.open(PEER_PORT, 1, mapped)
    assert holder.wait()[number] == "ECONNREFUSED"


def test_default_deny_leaves_what_rules_allow(ruled: Lab) -> None:
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    warm(holder, PEER_PORT)
    warm(holder, OTHER_PORT)
    rule = {"id": "web", "action": "allow", "ports": [OTHER_PORT]}
    push_all(ruled, {"default": "deny", "rules": [rule]})
    looked = holder.look()
    assert "ok" in looked.values() and set(looked.values()) != {"ok"}
    both = [holder.open(port, 1)[0] for port in (PEER_PORT, OTHER_PORT)]
    began = holder.wait()
    assert began[both[0]] == "ECONNREFUSED"
    assert began[both[1]] in ("slim", "overlay")


def test_a_guard_of_too_many_keeps_everything_as_it_was(ruled: Lab) -> None:
    holder = Holder(ruled, "c1", ruled.ip("c2"))
    warm(holder, PEER_PORT)
    before = ruled.slimctl("node1", "acl")
    with pytest.raises(AssertionError, match="max_revoked is 0"):
        push(ruled, "node1", deny(ruled, "c1", "c2", PEER_PORT), "--max-revoked", "0")
    with pytest.raises(AssertionError, match="decide anew"):
        push(ruled, "node1", deny(ruled, "c1", "c2", PEER_PORT), "--expect", "999999")
    assert ruled.slimctl("node1", "acl") == before
    assert "ok" in holder.look().values()


class Model:
    """What the lists of both sides say of the two services, and since when."""

    def __init__(self) -> None:
        self.denied: dict[str, set[int]] = {node: set() for node in NODES}
        # When the push was acknowledged, or the router that has the list was back: on
        # CLOCK_MONOTONIC, which all processes of the machine share. Without: it is away.
        self.since: dict[tuple[str, int], float] = {}

    def forbids(self, port: int) -> bool:
        return any(port in ports for ports in self.denied.values())

    def policy(self, lab: Lab, node: str) -> Policy:
        rules = [
            rule
            for port in sorted(self.denied[node])
            for rule in deny(lab, "c1", "c2", port, f"no-{port}")["rules"]
        ]
        return {"default": "allow", "rules": rules}

    def push(self, lab: Lab, node: str, port: int) -> None:
        """The other word of *node* on *port*."""
        self.denied[node] ^= {port}
        self.since.pop((node, port), None)
        push(lab, node, self.policy(lab, node))
        self.back(node)

    def away(self, node: str) -> None:
        """Nobody judges there."""
        self.since = {key: when for key, when in self.since.items() if key[0] != node}

    def back(self, *nodes: str) -> None:
        """What they forbid is forbidden from now on at the latest."""
        now = time.monotonic()
        for node in nodes:
            for port in self.denied[node]:
                self.since.setdefault((node, port), now)

    def outlived(self, port: int, connected: float, last: float) -> float:
        """Seconds for which it was forbidden and alive, by its last sign; 0: not."""
        times = [when for (_unused, of), when in self.since.items() if of == port]
        return max(0.0, last - max(connected, min(times))) if times else 0.0


class Stumble:
    """Random connects, lists and ends of the routers, and who is alive meanwhile."""

    def __init__(self, lab: Lab, dice: random.Random) -> None:
        self.lab, self.dice, self.model = lab, dice, Model()
        self.holder = Holder(lab, "c1", lab.ip("c2"))
        self.holder.tell("pulse", PULSE_S)
        self.port_of: dict[int, int] = {}
        self.safe: set[int] = set()  # numbers that no list has forbidden since they began
        self.trace: list[tuple[float, str, str, int]] = []

    def step(self, *, deaths: bool) -> None:
        """One of them."""
        act = self.dice.choice(("open", "open", "push", "push", "both", *(["kill"] * deaths)))
        node, port = self.dice.choice(NODES), self.dice.choice((PEER_PORT, OTHER_PORT))
        self.trace.append((time.monotonic(), act, node, port))
        if act in ("open", "both"):
            for number in self.holder.open(port, self.dice.randrange(1, 6)):
                self.port_of[number] = port
                if not self.model.forbids(port):
                    self.safe.add(number)
        if act in ("push", "both"):
            self.lab.wait_router(node)
            if port in self.model.denied[node]:
                self.bitten()  # before it is too late to see what has outlived this list
            self.model.push(self.lab, node, port)
            if self.model.forbids(port):
                self.safe -= {number for number, of in self.port_of.items() if of == port}
        elif act == "kill":
            self.lab.wait_router(node)
            self.judge()
            self.model.away(node)
            kill(self.lab, node)

    def judge(self) -> None:
        """Nothing forbidden has given a sign of life BITE_S after the word that forbids it, or
        after it was connected where it was later: an accept() that began while a router was
        away takes one more. A sign counts from when its byte left, so that who is kept from
        looking sees none that was not there."""
        late = {
            number: round(seconds, 2)
            for number, times in self.holder.signs().items()
            if (seconds := self.model.outlived(self.port_of[number], *times)) > BITE_S
        }
        assert not late, (
            f"{self.trace}, since {self.model.since}: forbidden and alive for: "
            f"{[(number, self.port_of[number], seconds) for number, seconds in late.items()]}"
        )

    def bitten(self) -> dict[int, str]:
        """What lives, when nothing forbidden does."""
        if any(
            (node, port) not in self.model.since
            for node in NODES
            for port in self.model.denied[node]
        ):
            settle(self.lab)
            self.model.back(*NODES)
        while True:
            looked = self.holder.look()
            self.judge()
            if not any(
                word == "ok" and self.model.forbids(self.port_of[number])
                for number, word in looked.items()
            ):
                return looked
            select.select([], [], [], PULSE_S)


@pytest.mark.parametrize("deaths", [False, True], ids=["routers stay", "routers die"])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_between_nothing_forbidden_lives(
    ruled: Lab, seed: int, deaths: bool
) -> None:
    stumble = Stumble(ruled, random.Random(seed))
    for _unused in range(12):
        stumble.step(deaths=deaths)
    looked = stumble.bitten()
    # (what was under way when a router died may have died with it: see test_router_death)
    lost = [number for number in stumble.safe if looked.get(number) != "ok"]
    assert deaths or not lost, f"{stumble.trace}: permitted and lost: {lost}"
