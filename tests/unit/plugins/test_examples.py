# SPDX-License-Identifier: Apache-2.0
"""The modules' own pages are right: every task of their EXAMPLES runs in check mode, and RETURN
names all that is returned.

task --> module --> admin.sock --> supervisor of node1 -- a1, a2 (fake workers)
                --> slim_qos of this checkout, in a network namespace of its own
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim_qos import settings
from tests.unit.plugins.test_acl import scene
from tests.unit.router.fleet import Fleet, run

template = pytest.importorskip("ansible.template", reason="examples are Ansible's")
dataloader = pytest.importorskip("ansible.parsing.dataloader")

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("slim_*.py"))
PREFIX = "slim.overlay."
QOS = ("slim_qos", "slim_rate_limit")
SHAPED = ("backup", "db", "mirror")
"""Endpoints that their examples name."""
MORE = {
    "slim_connections_info": [{"name": "all", "slim.overlay.slim_connections_info": {}}],
    "slim_revoke": [{"name": "all", "slim.overlay.slim_revoke": {"path": "slim"}}],
}
"""Tasks that meet connections of the scene; the examples' addresses are others."""
ALWAYS = {"changed", "diff", "invocation", "warnings"}
"""What every module may return without saying so."""
PRINTED = {"status"}
"""What slimctl prints, whole; the page names what a play needs of it."""
WITHIN = (
    "unshare", "--net", "sh", "-c",
    "ip link add un0 type veth peer un1; ip address add 192.0.2.1/24 dev un0; exec \"$@\"", "sh",
)  # fmt: skip
"""A network namespace of the module's own, in which a host has an address."""
HELPER = """#!/bin/sh
PYTHONPATH={sources} exec {python} "$@" --config {config} --record {record} --admin {admin}
"""
needs_root = pytest.mark.skipif(
    os.geteuid() != 0
    or not all(shutil.which(tool) for tool in ("ip", "unshare", "nft", "iptables")),
    reason="needs root, iproute2, util-linux, nftables and iptables",
)


def block(module: str, name: str) -> Any:
    """A block of the module's page, parsed."""
    tree = ast.parse((ROOT / "plugins" / "modules" / f"{module}.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return yaml.safe_load(ast.literal_eval(node.value))
    raise AssertionError(f"{module} has no {name}")


def asks(module: str) -> bool:
    """Does it ask the router?"""
    page = block(module, "DOCUMENTATION")
    return "slim.overlay.router" in page.get("extends_documentation_fragment", [])


def undocumented(answer: dict[str, Any], page: dict[str, Any], where: str = "") -> list[str]:
    """Keys that the page does not name."""
    found = []
    for name, value in answer.items():
        if name not in page:
            found.append(where + name)
            continue
        inner = page[name].get("contains") if name not in PRINTED else None
        for each in value if isinstance(value, list) else [value]:
            if inner and isinstance(each, dict):
                found += undocumented(each, inner, f"{where}{name}.")
    return found


@pytest.fixture
def qos(tmp_path: Path) -> dict[str, str]:
    """Arguments that lead to a helper which has the endpoints of the examples."""
    entries = [
        {"tenant": "default", "name": name, "vip": f"10.44.0.{number}", "netns": f"/run/netns/{name}"}
        for number, name in enumerate(SHAPED, 1)
    ]  # fmt: skip
    base = {"address": "192.0.2.1", "endpoints": entries}
    settings.save(settings.edit(settings.Settings(), {"base": base}), tmp_path / "qos.json")
    python = tmp_path / "python"
    names = {
        "sources": ROOT / "files" / "qos", "python": sys.executable, "admin": tmp_path / "none.sock",
        "config": tmp_path / "qos.json", "record": tmp_path / "record.json",
    }  # fmt: skip
    python.write_text(HELPER.format(**names))
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return {"python": str(python), "directory": str(ROOT / "files" / "qos")}


class Player:
    """Runs tasks as a play does: templates, registered results."""

    def __init__(self, run_task: Callable[..., Any], variables: dict[str, Any]) -> None:
        self.run_task = run_task
        self.variables = variables

    @property
    def templar(self) -> Any:
        return template.Templar(dataloader.DataLoader(), self.variables)

    def fill_in(self, value: Any) -> Any:
        """*value* without templates."""
        if isinstance(value, dict):
            return {name: self.fill_in(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.fill_in(each) for each in value]
        if isinstance(value, str):
            return self.templar.template(template.trust_as_template(value))
        return value

    async def play(self, task: dict[str, Any]) -> tuple[str, Any]:
        """(module, its answer)."""
        task = dict(task)
        assert task.pop("name")
        register = task.pop("register", None)
        ((action, words),) = task.items()
        if action == "ansible.builtin.assert":
            assert self.templar.evaluate_conditional(template.trust_as_template(words["that"]))
            return action, {}
        assert action.startswith(PREFIX), action
        name = action.removeprefix(PREFIX)
        answer = await self.run_task(name, self.fill_in(words or {}))
        assert "failed" not in answer, (task, answer)
        if register is not None:
            self.variables[register] = answer
        return name, answer


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(tmp_path_factory.mktemp("f"))
    made.host("node1")
    for name, vip in (("a1", "10.44.0.1"), ("a2", "10.44.0.3")):
        made.endpoint(name, vip, "node1", made.netns())
    made.write()
    yield made
    made.close()


@needs_root
@pytest.mark.parametrize("module", MODULES)
def test_examples_run_and_what_they_return_is_documented(
    fleet: Fleet, run_module: Callable[..., dict[str, Any]], qos: dict[str, str], module: str
) -> None:
    paths = fleet.paths("node1")
    around: dict[str, dict[str, Any]] = {
        **dict.fromkeys(QOS, qos),
        "slim_endpoint": {"map": str(paths.map), "config": str(paths.config), "validate": []},
    }
    variables = {
        "role_path": str(ROOT / "roles" / "slim_router"),
        "router": json.loads(paths.config.read_text()),
    }

    async def body() -> None:
        on: Any
        async with scene(fleet, run_module) if asks(module) else contextlib.nullcontext() as on:

            async def ask(name: str, words: dict[str, Any]) -> Any:
                words |= {"_ansible_check_mode": True, "_ansible_diff": True}
                words |= around.get(name, {})
                if asks(name):
                    words["socket"] = on.socket
                return await asyncio.to_thread(run_module, name, words, WITHIN)

            player = Player(ask, variables)
            for task in block(module, "EXAMPLES") + MORE.get(module, []):
                name, answer = await player.play(task)
                if name in MODULES:
                    returned = {key: answer[key] for key in answer.keys() - ALWAYS}
                    assert undocumented(returned, block(name, "RETURN")) == []

    run(body(), timeout=120)


@needs_root
def test_a_failure_of_the_helper_has_its_kind(
    run_module: Callable[..., dict[str, Any]], qos: dict[str, str], tmp_path: Path
) -> None:
    limit = {"endpoint": "db", "egress": "1mbit", **qos, "_ansible_check_mode": True}
    for words, within, kind, part in (
        ({"endpoint": "nobody"}, WITHIN, "refused", "nobody"),
        ({"state": "absent"}, WITHIN, "refused", "takes no rates"),
        ({}, ("unshare", "--net"), "failed", "192.0.2.1 is on no device"),
        ({"python": sys.executable, "directory": str(tmp_path)}, WITHIN, "no-helper", "run the role"),
    ):  # fmt: skip
        answer = run_module("slim_rate_limit", {**limit, **words}, within)
        assert (answer.get("failed"), answer.get("kind")) == (True, kind), answer
        assert part in answer["msg"]
