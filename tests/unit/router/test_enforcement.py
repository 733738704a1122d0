# SPDX-License-Identifier: Apache-2.0
"""The policy between the admin socket and the workers.

slimctl.ask --> admin.sock --> supervisor of node1 -- a1 10.44.0.1, a2 10.44.0.3 (fake)
                                    |                 (or real, where it says so)
                               state/policy.json
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from slim_router import admin, policy, ports, rowfile, slimctl
from slim_router.row import Row
from slim_router.slices import Assembler
from tests.unit.router.fleet import run, until
from tests.unit.router.puppets import Puppet, Puppets

A1, A2, B1 = "10.44.0.1", "10.44.0.3", "10.44.0.2"
DENY = {"id": "no-db", "action": "deny", "sources": [A1], "destinations": [B1], "ports": [5432]}
ROW = {
    "direction": "out", "src": A1, "sport": 40000, "dst": B1, "dport": 5432, "hsrc": "192.0.2.1",
    "hsport": 40001, "hdst": "192.0.2.2", "hdport": 20000, "path": "slim", "why": "",
    "age_s": 1.5, "bytes_sent": 1, "bytes_received": 1, "state": "established", "cookie": 99,
}  # fmt: skip
SPARED = {**ROW, "dport": 80, "cookie": 100}


@pytest.fixture
def duo(pair):
    pair.endpoint("a2", A2, "node1", pair.netns())
    pair.write()
    return pair


@contextlib.asynccontextmanager
async def scene(fleet):
    async with Puppets(fleet.directory) as puppets:
        router = fleet.router("node1")
        try:
            await router.start()
            yield puppets, router, fleet.paths("node1").admin_socket
        finally:
            await router.stop()


async def ask(where, op, /, **arguments):
    return await asyncio.to_thread(slimctl.ask, where, op, **arguments)


async def heard(puppet: Puppet, revision: int) -> Any:
    """The slice of *revision*, or None for "the same"."""
    assembler = Assembler()
    while True:
        piece = await puppet.get("policy", revision=revision)
        if piece.get("same"):
            return None
        made = assembler.feed(piece)
        if made is not None:
            return made


async def obey(puppet: Puppet, revision: int, rows=(), cause: str = "") -> Any:
    """Be told of *revision*, and say what was revoked, one row a message."""
    made = await heard(puppet, revision)
    for number in range(max(1, len(rows))):
        puppet.send(
            op="enforced", revision=revision, last=number >= len(rows) - 1, cause=cause,
            revoked=list(rows[number : number + 1]),
        )  # fmt: skip
    return made


async def dumps(puppet: Puppet, *rows) -> None:
    """Answer the next dump."""
    asked = await puppet.get("dump", connections=True)
    puppet.send(
        op="dumped", id=asked["id"], last=True, connections=list(rows), listeners=[], counters={}
    )


def test_a_worker_is_told_the_list_behind_its_configuration_and_before_any_shim(duo):
    paths = duo.paths("node1")
    paths.state_dir.mkdir(parents=True)
    paths.policy.write_text(
        json.dumps({"version": 1, "revision": 7, "default": "allow", "rules": [DENY]})
    )

    async def body():
        async with scene(duo) as (puppets, _one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            assert a1.config["policy"] is True
            got = await heard(a1, 7)
            assert (len(got.egress), len(got.ingress), got.default) == (1, 0, True)
            got = await heard(a2, 7)
            assert (len(got.egress), len(got.ingress)) == (0, 0)
            status = (await ask(path, "status"))["policy"]
            assert (status["revision"], status["rules"], status["state"]) == (7, 1, "in-force")
            os.kill(a1.pid, signal.SIGKILL)
            again = await puppets.worker("a1", after=a1)
            assert len((await heard(again, 7)).egress) == 1, "its successor is born with it"

    run(body())


def test_a_bad_file_denies_everything_says_so_and_is_kept(duo):
    paths = duo.paths("node1")
    paths.state_dir.mkdir(parents=True)
    paths.policy.write_text("{")

    async def body():
        async with scene(duo) as (puppets, _one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            got = await heard(a1, 0)
            assert got.default is False, "nothing is allowed"
            await heard(a2, 0)
            status = await ask(path, "status")
            assert status["policy"]["state"] == "unreadable"
            assert "policy.json" in status["policy"]["cause"]
            assert "UNREADABLE" in slimctl.show_status(status)
            pushed = asyncio.create_task(ask(path, "acl-set", default="allow", rules=[]))
            for puppet in (a1, a2):
                assert (await obey(puppet, 1)).default is True
            got = await pushed
            assert (got["revision"], got["changed"]) == (1, True)
            assert (await ask(path, "status"))["policy"]["state"] == "in-force"
            assert paths.policy.with_name("policy.json.bad").read_text() == "{"

    run(body())


def test_a_new_list_is_on_disk_enforced_by_all_and_names_what_it_revoked(duo):
    async def body():
        async with scene(duo) as (puppets, one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            pushed = asyncio.create_task(ask(path, "acl-set", default="allow", rules=[DENY]))
            got = await heard(a1, 1)
            assert list(got.egress.ids) == ["no-db"]
            on_disk = json.loads(duo.paths("node1").policy.read_text())
            assert (on_disk["revision"], len(on_disk["rules"])) == (1, 1)
            a1.send(op="enforced", revision=1, last=False, cause="", revoked=[{**ROW, "rule": 0}])
            a1.send(
                op="enforced", revision=1, last=True, cause="",
                revoked=[{**ROW, "cookie": 98, "rule": -1}],
            )  # fmt: skip
            assert await heard(a2, 1) is None, "its part has not changed"
            assert not pushed.done(), "the other one has not answered"
            a2.send(op="enforced", revision=1, last=True, cause="", revoked=[])
            got = await pushed
            assert (got["revision"], got["changed"], got["incomplete"]) == (1, True, [])
            assert [(r["endpoint"], r["cookie"], r["rule"]) for r in got["revoked"]] == [
                ("a1", 99, "no-db"), ("a1", 98, None),
            ]  # fmt: skip
            assert got["diff"]["added"][0]["id"] == "no-db"
            assert got["warnings"] == []
            assert "+ 1 no-db" in slimctl.show_acl_set(got)
            read = await ask(path, "acl")
            assert (read["revision"], read["default"], read["state"]) == (1, "allow", "in-force")
            assert read["rules"] == [policy.dump_rule(one.enforcement.policy.rules[0])]
            assert "no-db" in slimctl.show_acl(read)
            before = duo.paths("node1").policy.stat().st_mtime_ns
            same = await ask(path, "acl-set", default="allow", rules=[DENY], expect=1)
            assert (same["revision"], same["changed"], same["revoked"]) == (1, False, [])
            assert duo.paths("node1").policy.stat().st_mtime_ns == before

    run(body())


def test_a_connection_within_the_host_counts_at_both_ends_whoever_was_quicker(duo):
    far = {**ROW, "direction": "in", "hsrc": None, "hsport": None, "hdst": None, "hdport": None,
           "bytes_sent": 0, "bytes_received": 0, "cookie": 0, "rule": 0}  # fmt: skip
    stale = {**far, "sport": 1}
    plain = {**ROW, "path": "overlay", "sport": 7, "cookie": 5, "direction": "in", "rule": 0}

    async def body():
        async with scene(duo) as (puppets, _one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            pushed = asyncio.create_task(ask(path, "acl-set", default="allow", rules=[DENY]))
            await heard(a1, 1)
            await heard(a2, 1)
            a2.send(
                op="enforced", revision=1, last=False, cause="", revoked=[], missing=[far, stale]
            )
            a2.send(op="enforced", revision=1, last=True, cause="", revoked=[plain])
            out = {**far, "direction": "out", "path": "overlay", "sport": 0}
            a1.send(op="enforced", revision=1, last=False, cause="", revoked=[], missing=[out])
            a1.send(
                op="enforced", revision=1, last=True, cause="",
                revoked=[{**ROW, "bytes_sent": 3, "rule": 0}],
            )  # fmt: skip
            got = await pushed
            assert got["revoked_total"] == 4
            assert {
                (r["endpoint"], r["direction"], r["path"], r["sport"], r["rule"])
                for r in got["revoked"]
            } == {
                ("a1", "out", "slim", ROW["sport"], "no-db"),
                ("a2", "in", "slim", ROW["sport"], "no-db"),
                ("a2", "in", "overlay", 7, "no-db"),
                ("a1", "out", "overlay", 7, "no-db"),
            }
            (other,) = [r for r in got["revoked"] if (r["endpoint"], r["path"]) == ("a2", "slim")]
            assert (other["hsrc"], other["hsport"]) == (ROW["hdst"], ROW["hdport"])
            assert other["bytes_received"] == 3

    run(body())


def test_who_does_not_answer_is_named_and_told_again(duo):
    async def body():
        async with scene(duo) as (puppets, _one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            pushed = asyncio.create_task(ask(path, "acl-set", default="deny", rules=[], wait=1))
            await obey(a1, 1, cause="the kernel has no SOCK_DESTROY")
            await heard(a2, 1)
            got = await pushed
            assert {each["endpoint"] for each in got["incomplete"]} == {"a1", "a2"}
            causes = {each["endpoint"]: each["cause"] for each in got["incomplete"]}
            assert "SOCK_DESTROY" in causes["a1"]
            assert "1 s" in causes["a2"]
            # The same list again tries again: the whole of it where something went wrong.
            pushed = asyncio.create_task(ask(path, "acl-set", default="deny", rules=[]))
            assert await obey(a1, 2) is not None
            assert await obey(a2, 2) is None
            got = await pushed
            assert (got["revision"], got["changed"], got["incomplete"]) == (2, True, [])
            assert (await ask(path, "acl-set", default="deny", rules=[]))["changed"] is False
            # The successor of a worker that ends while it is waited for answers for it.
            pushed = asyncio.create_task(ask(path, "acl-set", default="allow", rules=[], wait=20))
            await obey(a1, 3)
            await heard(a2, 3)
            os.kill(a2.pid, signal.SIGKILL)
            again = await puppets.worker("a2", after=a2)
            assert (await obey(again, 3)).default is True
            assert (await pushed)["incomplete"] == []

    run(body())


def test_connections_that_no_worker_speaks_for_are_never_taken_for_none(duo):
    async def body():
        async with scene(duo) as (puppets, one, path):
            a1, _a2 = await puppets.worker("a1"), await puppets.worker("a2")
            (ep,) = (e for e in one.registry.endpoints.values() if e.spec.name == "a2")
            ep.state, ep.detail = "refused", "the module is gone"
            push = {"default": "deny", "rules": []}
            answers = asyncio.create_task(dumps(a1))
            got = await ask(path, "acl-set", **push, dry_run=True)
            assert got["incomplete"] == [], "it never had any"
            await answers
            kept = rowfile.RowFile(one.registry._row_file(ep)[0])
            kept.put(77, Row(True, True, 0, bytes(16), 1, bytes(16), 2, 0.0))
            kept.close()
            cause = "no worker (refused: the module is gone), and 1 connection of its last"
            for arguments in ({"dry_run": True}, {"max_revoked": 5}):
                answers = asyncio.create_task(dumps(a1))
                if "dry_run" in arguments:
                    got = await ask(path, "acl-set", **push, **arguments)
                    assert cause in got["incomplete"][0]["cause"]
                else:
                    with pytest.raises(slimctl.Refused, match="is not wholly known: a2: no worker"):
                        await ask(path, "acl-set", **push, **arguments)
                await answers
            answers = asyncio.create_task(dumps(a1))
            assert (await ask(path, "connections"))["incomplete"] == ["a2"]
            await answers
            pushed = asyncio.create_task(ask(path, "acl-set", **push))
            await obey(a1, 1)
            (left,) = (await pushed)["incomplete"]
            assert left["endpoint"] == "a2" and cause in left["cause"]
            ep.state, ep.detail = "up", ""

    run(body())


def test_a_change_that_takes_too_long_is_not_called_refused(duo, monkeypatch):
    monkeypatch.setattr(admin, "REPLY_S", 0.3)

    async def body():
        async with scene(duo) as (puppets, one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            with pytest.raises(slimctl.Unreachable, match="it goes on"):
                await ask(path, "acl-set", default="deny", rules=[])
            await obey(a1, 1)
            await obey(a2, 1)
            assert one.enforcement.policy.revision == 1

    run(body())


def test_a_dry_run_predicts_and_changes_nothing_and_a_guard_refuses(duo):
    async def body():
        async with scene(duo) as (puppets, one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            await heard(a1, 0)
            own = {**ROW, "dst": A1, "cookie": 101}
            for arguments in ({"dry_run": True}, {"max_revoked": 0}):
                answers: Any = asyncio.gather(dumps(a1, ROW, SPARED, own), dumps(a2))
                work = ask(path, "acl-set", default="allow", rules=[DENY], **arguments)
                if "dry_run" in arguments:
                    got = await work
                    assert (got["revision"], got["changed"], got["dry_run"]) == (1, True, True)
                    assert [(r["endpoint"], r["cookie"], r["rule"]) for r in got["revoked"]] == [
                        ("a1", 99, "no-db")
                    ]
                    assert "would" in slimctl.show_acl_set(got)
                else:
                    with pytest.raises(slimctl.Refused, match=r"1 connection.*no-db.*nothing"):
                        await work
                await answers
                assert one.enforcement.policy.revision == 0
                assert not duo.paths("node1").policy.exists()
                assert not [m for m in a1.seen if m["op"] == "policy"]

    run(body())


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ({"rules": []}, "default"),
        ({"default": "allow"}, "rules"),
        ({"default": "maybe", "rules": []}, "default"),
        ({"default": "allow", "rules": [DENY, DENY]}, r"rule 2 \(no-db\): id"),
        ({"default": "allow", "rules": [{**DENY, "ports": [70000]}]}, r"rule 1 \(no-db\): ports"),
        ({"default": "allow", "rules": [], "expect": 4}, "revision 4.*revision 0"),
        ({"default": "allow", "rules": [], "wait": 999}, "wait"),
        ({"default": "allow", "rules": [], "max_revoked": -1}, "max_revoked"),
        ({"default": "allow", "rules": {}}, "rules"),
    ],
)
def test_bad_requests_are_refused_and_nothing_changes(duo, arguments, part):
    async def body():
        async with scene(duo) as (_puppets, one, path):
            with pytest.raises(slimctl.Refused, match=part):
                await ask(path, "acl-set", **arguments)
            assert one.enforcement.policy.revision == 0
            assert not duo.paths("node1").policy.exists()

    run(body())


def test_a_full_disk_refuses_and_the_old_list_stays(duo, monkeypatch):
    def full(*_unused: object) -> None:
        raise OSError(28, "No space left on device")

    async def body():
        async with scene(duo) as (_puppets, one, path):
            monkeypatch.setattr(ports.os, "fsync", full)
            with pytest.raises(slimctl.Refused, match=r"policy.json.*No space.*stays in force"):
                await ask(path, "acl-set", default="deny", rules=[])
            monkeypatch.undo()
            assert one.enforcement.policy.revision == 0
            assert one.enforcement.policy.default == "allow"

    run(body())


def test_fifty_thousand_rules_fit_a_request(duo, monkeypatch):
    # How long a busy machine takes for them is not the question.
    monkeypatch.setattr(admin, "REPLY_S", 300.0)
    monkeypatch.setattr(slimctl, "TIMEOUT_S", 300.0)
    rules = [
        {"id": f"rule-{n}", "action": "allow", "sources": [f"10.44.{n >> 8}.{n & 255}/32"],
         "destinations": ["10.44.0.0/16"], "ports": [80, 443]}
        for n in range(50_000)
    ]  # fmt: skip

    async def body():
        async with scene(duo) as (_puppets, _one, path):
            got = await ask(path, "acl-set", default="allow", rules=rules, dry_run=True)
            assert got["changed"] is True
            assert len(got["diff"]["added"]) == 50_000

    for entry in duo.endpoints:  # nobody is there to be told
        entry["netns"] = f"/run/netns/none-such-{entry['name']}"
    duo.write()
    run(body(), timeout=300)


def test_revoke_by_selector(duo):
    async def body():
        async with scene(duo) as (puppets, _one, path):
            a1, a2 = await puppets.worker("a1"), await puppets.worker("a2")
            with pytest.raises(slimctl.Refused, match="selector"):
                await ask(path, "revoke")
            answers: Any = asyncio.gather(dumps(a1, ROW, SPARED), dumps(a2, ROW))
            got = await ask(path, "revoke", endpoint="a1", dport=5432, dry_run=True)
            assert [(r["endpoint"], r["cookie"]) for r in got["revoked"]] == [("a1", 99)]
            answers.cancel()
            answers = asyncio.create_task(dumps(a1, ROW, SPARED))
            work = asyncio.create_task(ask(path, "revoke", endpoint="a1", dst=B1, path="slim"))
            asked = await a1.get("revoke")
            assert asked["cookies"] == [99, 100]
            a1.send(op="revoked", id=asked["id"], last=True, cause="", revoked=[ROW, SPARED])
            got = await work
            assert [r["cookie"] for r in got["revoked"]] == [99, 100]
            assert got["incomplete"] == []
            assert "5432" in slimctl.show_revoke(got)

    run(body())


def test_the_real_worker_is_told_and_says_so(pair):
    async def body():
        one = pair.router("node1", "slim_router.worker")
        try:
            await one.start()
            path = pair.paths("node1").admin_socket
            ep = one.registry.endpoints["default", A1]
            await until(lambda: ep.up, "the worker")
            for revision, default in ((1, "deny"), (2, "allow")):
                got = await ask(path, "acl-set", default=default, rules=[DENY])
                assert (got["revision"], got["incomplete"], got["revoked"]) == (revision, [], [])
                assert got["seconds"] < 5
            pid = ep.child.pid
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            private = sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))
            assert private <= 4096, f"{private} kB with a small list"
            os.kill(pid, signal.SIGKILL)
            await until(lambda: ep.up and ep.child.pid != pid, "the successor")
            got = await ask(path, "acl-set", default="allow", rules=[])
            assert (got["revision"], got["incomplete"]) == (3, [])
        finally:
            await one.stop()
        again = pair.router("node1", "slim_router.worker")
        try:
            await again.start()
            assert again.enforcement.policy.revision == 3
        finally:
            await again.stop()

    run(body())


def test_slimctl_sends_what_it_is_told_zero_included(tmp_path, monkeypatch, capsys):
    sent: list[Any] = []

    def ask(_path, op, /, **arguments):
        sent.append((op, arguments))
        return {
            "revision": 3, "changed": True, "dry_run": True, "lines": ["x"], "warnings": ["w"],
            "revoked": [{**ROW, "endpoint": "a1", "rule": None}], "revoked_total": 1,
            "incomplete": [{"endpoint": "a2", "cause": "c"}],
        }  # fmt: skip

    monkeypatch.setattr(slimctl, "ask", ask)
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"version": 1, "revision": 2, "default": "deny", "rules": [DENY]}))
    words = ["acl-set", str(path), "--expect", "0", "--max-revoked", "0", "--wait", "0"]
    assert slimctl.main([*words, "--dry-run"]) == slimctl.Exit.OK
    assert sent == [
        ("acl-set", {"expect": 0, "max_revoked": 0, "wait": 0, "dry_run": True, "default": "deny",
                     "rules": [DENY]}),
    ]  # fmt: skip
    text = capsys.readouterr().out
    assert "revision 3 would be in force" in text
    assert "1 connection would be revoked" in text
    assert "INCOMPLETE: endpoint a2: c" in text
    assert slimctl.main(["revoke", "--dst", B1, "--dport", "80", "--json"]) == slimctl.Exit.OK
    assert sent[-1] == ("revoke", {"dst": B1, "dport": 80})
    for content in ("{", "[]", '{"rule": []}'):
        path.write_text(content)
        assert slimctl.main(["acl-set", str(path)]) == slimctl.Exit.FAILURE
    assert slimctl.main(["acl-set", str(tmp_path / "none")]) == slimctl.Exit.FAILURE
    assert len(sent) == 2
