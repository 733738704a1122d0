# SPDX-License-Identifier: Apache-2.0
"""qos.json as the supervisor reads it, and how it reaches a worker.

node1: supervisor -- a1 (fake)
"""

from __future__ import annotations

import asyncio
import json

import pytest

from slim_router import slimctl
from slim_router.limits import Limits, parse
from slim_router.reader import ConfigError
from tests.unit.router.fleet import run
from tests.unit.router.puppets import Puppets

SOCKETS = {
    "default": {"mark": 0x5C00000B, "priority": 0, "tos": 0, "pacing": 125000},
    "ports": [[80, 90, {"mark": 0x5C00000F, "priority": 6, "tos": 184, "pacing": 0}]],
}


def content(**sockets):
    entry = {"tenant": "default", "name": "a1", "index": 1, "sockets": SOCKETS | sockets}
    return {"version": 1, "mark": 0x5C000000, "endpoints": [entry]}


def test_an_endpoints_part_is_found_by_tenant_and_name():
    assert parse(content())["default", "a1"] == SOCKETS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"version": 2}, "version"),
        ({"version": 1, "endpoints": 3}, "endpoints"),
        (content(default={"mark": 2**32}), "mark"),
        (content(default={"priority": 8}), "priority"),
        (content(default={"speed": 8}), "unknown key 'speed'"),
        (content(ports=[[80, 90]]), r"not \[first, last, treatment\]"),
        (content(ports=[[90, 80, {}]]), "put the lower port first"),
        (content(ports=[[0, 80, {}]]), "first: 0"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(value, words):
    with pytest.raises(ConfigError, match=words):
        parse(value)


def test_a_damaged_file_changes_nothing_and_is_told(tmp_path):
    path = tmp_path / "qos.json"
    limits = Limits(path)
    assert limits.report() == {"endpoints": 0, "cause": ""}
    path.write_text(json.dumps(content()))
    limits.read()
    assert limits.report() == {"endpoints": 1, "cause": ""}
    path.write_text("{")
    with pytest.raises(ConfigError, match="qos.json"):
        limits.read()
    assert limits.report()["endpoints"] == 1
    assert "qos.json" in str(limits.report()["cause"])


def test_a_worker_is_told_at_start_and_at_each_change(fleet):
    fleet.host("node1")
    fleet.endpoint("a1", "10.44.0.1", "node1", fleet.netns())
    fleet.write()
    paths = fleet.paths("node1")
    paths.qos.write_text(json.dumps(content()))

    async def body():
        async with Puppets(fleet.directory) as puppets:
            router = fleet.router("node1")
            await router.start()
            try:
                worker = await puppets.worker("a1")
                assert worker.config["limits"] == SOCKETS
                changed = content(ports=[])
                paths.qos.write_text(json.dumps(changed))
                got = await asyncio.to_thread(slimctl.ask, paths.admin_socket, "limits")
                assert got == {"endpoints": 1, "cause": "", "told": 1}
                assert (await worker.get("limits"))["limits"] == SOCKETS | {"ports": []}
                paths.qos.write_text("[]")
                with pytest.raises(slimctl.Refused, match="what was in force stays"):
                    await asyncio.to_thread(slimctl.ask, paths.admin_socket, "limits")
                paths.qos.unlink()
                await router.reload()
                assert (await worker.get("limits", limits=None))["limits"] is None
            finally:
                await router.stop()

    run(body())
