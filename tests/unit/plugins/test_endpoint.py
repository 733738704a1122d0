# SPDX-License-Identifier: Apache-2.0
"""slim_endpoint: one entry of map.json, judged by the router's own program, read by a router.

module --> map.json, admin.sock --> supervisor of node1 -- a1 (fake worker), and what is added
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.router.fleet import Fleet, run
from tests.unit.router.puppets import Puppets

SLIMCTL = Path(__file__).resolve().parents[3] / "files/router/slimctl"
WORDS = [str(SLIMCTL), "validate", "--config", "@CONFIG", "--map", "@MAP"]


@pytest.fixture
def one(tmp_path_factory: pytest.TempPathFactory):
    made = Fleet(tmp_path_factory.mktemp("f"))
    made.host("node1")
    made.endpoint("a1", "10.44.0.1", "node1", made.netns())
    made.write()
    yield made
    made.close()


def test_an_endpoint_comes_changes_and_goes(one, run_module) -> None:
    paths = one.paths("node1")
    common = {
        "map": str(paths.map), "config": str(paths.config), "socket": str(paths.admin_socket),
        "validate": WORDS, "name": "job",
    }  # fmt: skip
    entry = {"vip": "10.44.0.9", "host": "node1", "netns": one.netns()}

    async def go(check: bool = False, **words: Any) -> Any:
        words |= {"_ansible_check_mode": check, "_ansible_diff": True}
        return await asyncio.to_thread(run_module, "slim_endpoint", {**common, **words})

    async def body():
        async with Puppets(one.directory) as puppets:
            router = one.router("node1")
            try:
                await router.start()
                await puppets.worker("a1")
                text = paths.map.read_text()
                seen = await go(check=True, **entry)
                assert (seen["changed"], seen["revision"], seen["reloaded"]) == (True, 2, False)
                assert paths.map.read_text() == text, "nothing was done"
                done = await go(**entry)
                assert (done["changed"], done["revision"], done["reloaded"]) == (True, 2, True)
                assert done["diff"]["after"] == seen["diff"]["after"]
                await puppets.worker("job")
                again = await go(**entry)
                assert (again["changed"], again["revision"]) == (False, 2)
                text = paths.map.read_text()
                # Refused by the program, and without it by the router: the old map is there.
                for check in (True, False):
                    bad = await go(check=check, **{**entry, "vip": "10.44.0.1"})
                    assert bad["failed"]
                    assert "already held by node1/a1" in bad["msg"]
                bad = await go(**{**entry, "vip": "192.0.2.77"}, validate=[])
                assert bad["failed"]
                assert "lies outside the overlay" in bad["msg"]
                assert paths.map.read_text() == text
                # This host's fallback separates tenants: each has its own 10.44.0.1.
                other = {**entry, "vip": "10.44.0.1", "tenant": "blue", "netns": one.netns()}
                done = await go(**other, name="twin")
                assert (done["changed"], done["reloaded"]) == (True, True)
                assert (await go(tenant="blue", state="absent", name="twin"))["changed"] is True
                gone = await go(state="absent")
                assert (gone["changed"], gone["endpoint"]) == (True, {})
                assert [e["name"] for e in json.loads(paths.map.read_text())["endpoints"]] == ["a1"]
                assert (await go(state="absent"))["changed"] is False
            finally:
                await router.stop()
        kept = await go(**entry)
        assert (kept["changed"], kept["reloaded"]) == (True, False), "read at the next start"
        paths.map.write_text("[]")
        bad = await go(**entry)
        assert "not a fleet map" in bad["msg"]
        paths.map.unlink()
        bad = await go(**entry)
        assert "deploy the host" in bad["msg"]

    run(body(), timeout=120)
