# SPDX-License-Identifier: Apache-2.0
"""The supervisor's part of the flow log: who is told, what is counted, what a reload changes.

node1: supervisor -- a1 of tenant default, x1 of tenant blue (fake workers; the same vip)
              \\-- thread -- flows.jsonl
"""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from slim_router.flows import OPEN, REFUSE
from slim_router.metrics import families
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppets

A1 = "10.44.0.1"


@pytest.fixture
def duo(pair, tmp_path):
    pair.endpoint("x1", A1, "node1", pair.netns(), tenant="blue")
    pair.changes["node1"]["flow_log"] = {"path": str(tmp_path / "flows.jsonl")}
    pair.write()
    return pair


@contextlib.asynccontextmanager
async def scene(fleet):
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1")
        try:
            await router.start()
            yield puppets, router
        finally:
            await router.stop()


def note(kind: int, cookie: int, rule: int = -1, revision: int = 0) -> list[object]:
    names = [A1, 4000, "10.44.0.2", 80]
    return [kind, time.monotonic(), cookie, True, True, 0, *names, None, rule, revision, 0]


def lines(path, event: str) -> list[dict]:
    with contextlib.suppress(FileNotFoundError):
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [line for line in found if line["event"] == event]
    return []


def test_workers_are_told_and_their_notes_become_lines_of_their_tenant(duo, tmp_path):
    path = tmp_path / "flows.jsonl"

    async def body():
        async with scene(duo) as (puppets, one):
            a1, x1 = await puppets.worker("a1"), await puppets.worker("x1")
            for number, puppet in enumerate((a1, x1), 1):
                assert puppet.config["flow_log"] is True
                puppet.send(op="flows", notes=[note(OPEN, number)], dropped=0)
            await until(lambda: len(lines(path, "open")) == 2, "two lines")
            assert {(r["endpoint"], r["tenant"], r["id"]) for r in lines(path, "open")} == {
                ("a1", "default", 1), ("x1", "blue", 2),
            }  # fmt: skip
            assert {r["host"] for r in lines(path, "open")} == {"node1"}
            x1.send(op="flows", notes=[], dropped=9)
            await until(lambda: lines(path, "dropped"), "a line on what was lost")
            assert one.flows.report()["dropped"] == 9
            shot = await one.snapshot()
            values = {
                sample.name: sample.value for family in families(shot) for sample in family.samples
            }
            assert values["slim_flow_log_dropped_total"] == 9
            assert values["slim_flow_log_lines_total"] == len(path.read_text().splitlines())
            assert values["slim_flow_log_writable"] == 1

    run(body())
    assert len(lines(path, "start")) == len(lines(path, "stop")) == 1


def test_a_rule_is_named_by_the_list_that_decided(duo, tmp_path):
    path = tmp_path / "flows.jsonl"

    async def body():
        async with scene(duo) as (puppets, one):
            a1 = await puppets.worker("a1")
            for revision, name in ((1, "first"), (2, "second"), (3, "third")):
                rules = [{"id": name, "action": "deny", "ports": [revision]}]
                put = one.policy_ops._op_set({"rules": rules, "default": "allow", "wait": 0})
                assert (await put)["revision"] == revision
            notes = [note(REFUSE, 0, 0, revision) for revision in (3, 2, 1)]
            a1.send(op="flows", notes=[*notes, note(REFUSE, 0, 7, 3), note(REFUSE, 0, -1, 3)],
                    dropped=0)  # fmt: skip
            await until(lambda: len(lines(path, "refuse")) == 5, "the refusals")
            named = [line["rule"] for line in lines(path, "refuse")]
            # (of lists before the last but one, nothing is known any more)
            assert named == ["third", "second", None, None, None]

    run(body())


def test_a_reload_switches_the_log_off_and_on_without_ending_workers(duo, tmp_path):
    other = tmp_path / "other.jsonl"

    async def body():
        async with scene(duo) as (puppets, one):
            a1 = await puppets.worker("a1")
            duo.changes["node1"]["flow_log"] = None
            duo.write()
            await one.reload()
            await a1.get("flow_log", on=False)
            assert not one.flows.on
            a1.send(op="flows", notes=[note(OPEN, 5)], dropped=0)  # it was on its way
            duo.changes["node1"]["flow_log"] = {"path": str(other), "files": 2}
            duo.write()
            await one.reload()
            await a1.get("flow_log", on=True)
            a1.send(op="flows", notes=[note(OPEN, 6)], dropped=0)
            await until(lambda: lines(other, "open"), "a line in the other file")
            assert one.registry.endpoints["default", A1].restarts == 0
            assert not a1.gone

    run(body())
    assert not lines(tmp_path / "flows.jsonl", "open")


def test_a_worker_that_sends_nonsense_is_replaced(duo):
    async def body():
        async with scene(duo) as (puppets, _one):
            a1 = await puppets.worker("a1")
            a1.send(op="flows", notes=[[1, 2]], dropped=0)
            await puppets.worker("a1", after=a1)

    run(body())
