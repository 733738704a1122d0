# SPDX-License-Identifier: Apache-2.0
"""Playbooks on the lab, and what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lab import inventory, names
from lab.client import Lab

PLAYBOOKS = names.CHECKOUT / "playbooks"


def play(lab: Lab, book: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Run one: its status and the JSON callback's word."""
    environment = {
        **inventory.environment(lab.state, lab.plan),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
    }
    program = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(program), "-i", str(lab.state.inventory), str(book), *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=names.CHECKOUT,
        timeout=200,
        check=False,
    )
    assert "{" in done.stdout, done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout[done.stdout.index("{") :])


def results(said: dict[str, Any], task: str) -> dict[str, Any]:
    """What the hosts answered to a task."""
    for each in said["plays"]:
        for one in each["tasks"]:
            if one["task"]["name"] == task:
                return dict(one["hosts"])
    raise AssertionError(f"no task {task}")


def changed(said: dict[str, Any]) -> int:
    """Tasks that changed something, of all hosts."""
    return sum(host["changed"] for host in said["stats"].values())
