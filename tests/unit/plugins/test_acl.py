# SPDX-License-Identifier: Apache-2.0
"""The modules that push, read and revoke, each a process of its own, on a real router.

module --> admin.sock --> supervisor of node1 -- a1 10.44.0.1, a2 10.44.0.3 (fake workers)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from slim_router.slices import Assembler
from tests.unit.router.fleet import Fleet, run
from tests.unit.router.puppets import Puppet, Puppets

A1, A2, B1 = "10.44.0.1", "10.44.0.3", "10.44.0.2"
DENY = {"id": "no-db", "action": "deny", "sources": [A1], "destinations": [B1], "ports": [5432]}
WEB = {"id": "web", "action": "allow", "destinations": ["10.44.0.0/24"], "ports": [80]}
ROW = {
    "direction": "out", "src": A1, "sport": 40000, "dst": B1, "dport": 5432, "hsrc": "192.0.2.1",
    "hsport": 40001, "hdst": "192.0.2.2", "hdport": 20000, "path": "slim", "why": "",
    "age_s": 1.5, "bytes_sent": 1, "bytes_received": 1, "state": "established", "cookie": 99,
}  # fmt: skip
SPARED = {**ROW, "dport": 80, "cookie": 100}
INTO = {**ROW, "direction": "in", "src": "10.44.9.9", "dst": A1, "path": "overlay", "cookie": 101}


class Scene:
    """A router with two fake workers, and the modules."""

    def __init__(self, module: Callable[..., dict[str, Any]], socket: str) -> None:
        self.module = module
        self.socket = socket
        self.workers: list[Puppet] = []
        self.rows: dict[str, list[dict[str, Any]]] = {"a1": [ROW, SPARED, INTO], "a2": []}
        self.revoked: dict[str, list[dict[str, Any]]] = {"a1": [], "a2": []}
        self.cause = ""
        self.silent = False
        self._due: list[Callable[[], None]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, name: str, *, check: bool = False, diff: bool = False, **words: Any) -> Any:
        """One run of a module."""
        words = {"socket": self.socket, "_ansible_check_mode": check, "_ansible_diff": diff} | words
        return await asyncio.to_thread(self.module, name, words)

    def follow(self, name: str, puppet: Puppet) -> None:
        """Let a worker obey."""
        self._tasks.append(asyncio.create_task(self._obey(name, puppet)))

    async def _obey(self, name: str, puppet: Puppet) -> None:
        assembler = Assembler()
        revision = 0
        while not puppet.gone:
            puppet.news.clear()
            for message in list(puppet.seen):
                puppet.seen.remove(message)
                if message["op"] == "dump":
                    rows = self.rows[name] if message["connections"] else []
                    puppet.send(
                        op="dumped", id=message["id"], last=True, connections=rows,
                        listeners=[{"port": 80}], counters={"warm": 3},
                    )  # fmt: skip
                elif message["op"] == "revoke":
                    done = [r for r in self.rows[name] if r["cookie"] in message["cookies"]]
                    puppet.send(
                        op="revoked", id=message["id"], last=True, cause=self.cause, revoked=done
                    )
                elif message["op"] == "policy":
                    made = message.get("same") or assembler.feed(message) is not None
                    revision = message["revision"]
                    if made and revision:
                        say = functools.partial(
                            puppet.send, op="enforced", revision=revision, last=True,
                            cause=self.cause, revoked=self.revoked[name],
                        )  # fmt: skip
                        if self.silent:
                            self._due.append(say)
                        else:
                            say()
            await puppet.news.wait()

    def late(self) -> None:
        """What workers kept to themselves while they were silent."""
        while self._due:
            self._due.pop()()

    def close(self) -> None:
        """No worker obeys any more."""
        for task in self._tasks:
            task.cancel()


@pytest.fixture
def duo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("f"))
    for host in ("node1", "node2"):
        made.host(host)
    made.endpoint("a1", A1, "node1", made.netns())
    made.endpoint("a2", A2, "node1", made.netns())
    made.endpoint("b1", B1, "node2", "/run/netns/elsewhere")
    made.write()
    yield made
    made.close()


@contextlib.asynccontextmanager
async def scene(fleet: Fleet, module: Callable[..., dict[str, Any]]) -> AsyncIterator[Scene]:
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1")
        made = Scene(module, str(fleet.paths("node1").admin_socket))
        try:
            await router.start()
            for name in ("a1", "a2"):
                made.follow(name, await puppets.worker(name))
            yield made
        finally:
            made.close()
            await router.stop()


def test_a_whole_list_is_foreseen_pushed_and_then_no_change(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            whole = {"default": "allow", "rules": [DENY, WEB]}
            seen = await on.run("slim_acl", check=True, diff=True, **whole)
            assert (seen["changed"], seen["revision"], seen["revoked_total"]) == (True, 1, 1)
            assert [(r["endpoint"], r["cookie"], r["rule"]) for r in seen["revoked"]] == [
                ("a1", 99, "no-db")
            ]
            assert (await on.run("slim_acl_info"))["revision"] == 0, "nothing was done"
            on.revoked["a1"] = [{**ROW, "rule": 0}]
            done = await on.run("slim_acl", diff=True, **whole)
            assert (done["changed"], done["revision"], done["incomplete"]) == (True, 1, [])
            assert done["revoked"] == seen["revoked"]
            assert done["diff"] == seen["diff"]
            assert done["diff"]["before"] == "default: allow\nrules:\n"
            assert done["seconds"] > 0
            info = await on.run("slim_acl_info")
            assert done["diff"]["after"].splitlines()[2:] == [
                "- " + json.dumps(rule) for rule in info["rules"]
            ]
            # The same in other words: no change, in both modes.
            other = [
                {**DENY, "sources": [f"{A1}/32"], "ports": ["5432-5432"], "comment": ""},
                {**WEB, "destinations": ["10.44.0.0/25", "10.44.0.128/25"], "ports": ["80"]},
            ]
            for check in (True, False):
                same = await on.run(
                    "slim_acl", check=check, diff=True, default="allow", rules=other
                )
                assert (same["changed"], same["revision"], same["revoked"]) == (False, 1, [])
                assert same["diff"]["before"] == same["diff"]["after"]

    run(body(), timeout=120)


def test_a_merge_replaces_in_place_and_puts_new_rules_where_told(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            await on.run("slim_acl", default="deny", rules=[WEB, DENY])
            new = [
                {"id": "x", "action": "deny", "sources": ["10.44.3.0/24"]},
                {**WEB, "ports": [81]},
            ]
            done = await on.run("slim_acl", purge=False, position="begin", diff=True, rules=new)
            info = await on.run("slim_acl_info")
            assert [r["id"] for r in info["rules"]] == ["x", "web", "no-db"]
            assert (info["default"], info["rules"][1]["ports"]) == ("deny", [81])
            assert [line.partition(":")[0] for line in done["changes"]] == ["+ 1 x", "~ 2 web"]
            assert '"ports": [81]' in done["diff"]["after"]
            again = await on.run("slim_acl", purge=False, position="begin", rules=new)
            assert (again["changed"], again["revision"]) == (False, 2)
            last = {"id": "y", "action": "deny", "ports": [1]}
            await on.run("slim_acl", purge=False, rules=[last], default="allow")
            gone = await on.run("slim_acl", state="absent", rules=[{"id": "x"}, {"id": "never"}])
            assert gone["changed"] is True
            info = await on.run("slim_acl_info")
            assert [r["id"] for r in info["rules"]] == ["web", "no-db", "y"]
            assert info["default"] == "allow"
            for check in (True, False):
                again = await on.run("slim_acl", check=check, state="absent", rules=[{"id": "x"}])
                assert again["changed"] is False

    run(body(), timeout=120)


def test_guards_and_bad_lists_change_nothing_and_name_rule_and_field(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            whole = {"default": "allow", "rules": [DENY]}
            for check in (True, False):
                bad = await on.run("slim_acl", check=check, max_revoked=0, **whole)
                assert bad["failed"], bad
                assert bad["kind"] == "refused"
                assert "1 connection would be revoked, max_revoked is 0" in bad["msg"]
                assert ("revoked" in bad) is check
            for words, part in (
                ({"rules": [{**DENY, "ports": [70000]}]}, "rule 1 (no-db): ports: '70000'"),
                ({"rules": [{**DENY, "sources": ["10.44.0.1/8"]}]}, "rule 1 (no-db): sources"),
                ({"rules": [WEB, WEB]}, "rule 2 (web): id"),
                ({"rules": [{"id": "x"}]}, "rule 1 (x): action: missing"),
                ({"rules": [{**WEB, "action": "drop"}]}, "action must be one of: allow, deny"),
                ({"default": None}, "default: missing"),
                ({"expect": 7}, "revision 7, but revision 0 is in force"),
                ({"wait": 26}, "wait: 26"),
            ):
                given = {name: v for name, v in {**whole, **words}.items() if v is not None}
                for check in (True, False):
                    bad = await on.run("slim_acl", check=check, **given)
                    assert bad.get("failed"), (words, bad)
                    assert part in bad["msg"]
            assert (await on.run("slim_acl_info"))["revision"] == 0

    run(body(), timeout=120)


def test_what_is_not_in_force_everywhere_fails_unless_nobody_waits(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            on.cause = "the kernel has no SOCK_DESTROY"
            bad = await on.run("slim_acl", default="deny", rules=[])
            assert bad["failed"]
            assert (bad["kind"], bad["revision"], bad["changed"]) == ("incomplete", 1, True)
            assert "endpoint a1: the kernel has no SOCK_DESTROY" in bad["msg"]
            on.cause = ""
            good = await on.run("slim_acl", default="deny", rules=[])
            assert (good["changed"], good["incomplete"]) == (True, []), "pushed again"
            on.silent = True
            done = await on.run("slim_acl", default="allow", rules=[], wait=0)
            assert "failed" not in done
            assert {row["endpoint"] for row in done["incomplete"]} == {"a1", "a2"}
            seen = await on.run("slim_router_info")
            assert {r["endpoint"] for r in seen["status"]["policy"]["incomplete"]} == {"a1", "a2"}
            # They say so later: then it is no change any more.
            on.silent = False
            on.late()
            while (await on.run("slim_router_info"))["status"]["policy"]["incomplete"]:
                await asyncio.sleep(0.05)
            assert (await on.run("slim_acl", default="allow", rules=[]))["changed"] is False

    run(body(), timeout=120)


def test_an_unreadable_list_takes_the_whole_one_only(duo, run_module):
    state = duo.paths("node1").state_dir
    state.mkdir(parents=True)
    (state / "policy.json").write_text("{")

    async def body():
        async with scene(duo, run_module) as on:
            assert (await on.run("slim_acl_info"))["state"] == "unreadable"
            for words in ({"purge": False, "rules": [WEB]}, {"state": "absent", "rules": [WEB]}):
                bad = await on.run("slim_acl", **words)
                assert bad["failed"]
                assert "push the whole list" in bad["msg"]
            done = await on.run("slim_acl", default="allow", rules=[WEB])
            assert done["changed"] is True
            assert (await on.run("slim_acl_info"))["state"] == "in-force"

    run(body(), timeout=120)


def test_shadowed_and_contradictory_rules_are_warnings(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            rules = [WEB, {**WEB, "id": "twin"}, {**WEB, "id": "not", "action": "deny"}]
            done = await on.run("slim_acl", default="allow", rules=rules)
            said = json.dumps(done["warnings"])
            assert len(done["findings"]) == 2
            for sentence, word in zip(
                done["findings"], ("says the same", "contradicts"), strict=True
            ):
                assert word in sentence
                assert sentence in said

    run(body(), timeout=120)


def test_connections_are_filtered(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            for words, cookies in (
                ({}, [99, 100, 101]),
                ({"src": "10.44.9.0/24"}, [101]),
                ({"src": "::ffff:10.44.9.0/120"}, [101]),
                ({"dst": B1, "dport": 80}, [100]),
                ({"direction": "in"}, [101]),
                ({"path": "overlay"}, [101]),
                ({"endpoint": "a2"}, []),
                ({"endpoint": "b1"}, []),
                ({"tenant": "other"}, []),
                ({"dst": "::/0"}, []),
            ):
                got = await on.run("slim_connections_info", **words)
                assert [r["cookie"] for r in got["connections"]] == cookies, words
                assert got["total"] == len(cookies)
            bad = await on.run("slim_connections_info", src="10.44.0.1/8")
            assert bad["failed"]
            assert "host bits" in bad["msg"]

    run(body(), timeout=120)


def test_revoke_in_both_modes(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            words = {"src": f"::ffff:{A1}", "dport": 5432}
            seen = await on.run("slim_revoke", check=True, diff=True, **words)
            assert (seen["changed"], [r["cookie"] for r in seen["revoked"]]) == (True, [99])
            assert seen["diff"]["before"] == f"a1 {A1}:40000 > {B1}:5432 slim\n"
            done = await on.run("slim_revoke", diff=True, **words)
            assert done["revoked"] == seen["revoked"]
            none = await on.run("slim_revoke", dport=1)
            assert (none["changed"], none["revoked_total"]) == (False, 0)
            for check in (True, False):
                bad = await on.run("slim_revoke", check=check, endpoint="a1", max_revoked=1)
                assert bad["failed"]
                assert "max_revoked is 1" in bad["msg"]
            bad = await on.run("slim_revoke")
            assert "one of the following is required" in bad["msg"]
            bad = await on.run("slim_revoke", src="10.44.0.0/24")
            assert "not an IPv4 or IPv6 address" in bad["msg"]
            on.cause = "no SOCK_DESTROY"
            bad = await on.run("slim_revoke", **words)
            assert (bad["kind"], bad["changed"]) == ("incomplete", True)

    run(body(), timeout=120)


def test_the_router_as_a_whole(duo, run_module):
    async def body():
        async with scene(duo, run_module) as on:
            got = await on.run("slim_router_info", connections=True)
            assert got["status"]["policy"]["revision"] == 0
            assert [p["host"] for p in got["peers"]] == ["node2"]
            assert [(e["name"], e["counters"]) for e in got["endpoints"]] == [
                ("a1", {"warm": 3}), ("a2", {"warm": 3}),
            ]  # fmt: skip
            assert got["connections"] == {"slim": 2, "overlay": 1, "incomplete": []}
            assert set(got["counters"]) == {"events", "reloads"}

    run(body(), timeout=120)
