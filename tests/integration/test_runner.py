# SPDX-License-Identifier: Apache-2.0
"""The policy pushed as AWX does it: ansible-runner, the checkout as project, a survey's answers.

job (ansible-runner) -- playbooks/acl.yml --> routers of node1 and node2
                     <-- events, artifact --
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ansible_runner
import pytest

from lab import inventory, names
from lab.client import Lab
from tests.integration.helpers import NODES, settle

POLICY = """
default: allow
rules:
  - {id: job, action: deny, sources: [10.44.250.0/24], ports: [1-1000]}
"""


class Job:
    """One run of a job template."""

    def __init__(self, lab: Lab, directory: Path, answers: dict[str, object], *words: str) -> None:
        """*answers* of the survey; *words* such as --check."""
        directory.mkdir()
        environment = {
            key: word
            for key, word in inventory.environment(lab.state, lab.plan).items()
            if key.startswith("ANSIBLE_")
        }
        programs = Path(sys.executable).parent  # ansible-playbook
        environment["PATH"] = f"{programs}:{os.environ['PATH']}"
        self.ran = ansible_runner.run(
            private_data_dir=str(directory),
            project_dir=str(names.CHECKOUT),
            playbook="playbooks/acl.yml",
            inventory=str(lab.state.inventory),
            envvars=environment,
            extravars=answers,
            cmdline=" ".join(words),
            quiet=True,
            timeout=200,
        )
        self.events = list(self.ran.events)

    @property
    def artifact(self) -> dict[str, Any]:
        """What the job hands to the next one of a workflow."""
        (stats,) = (e["event_data"] for e in self.events if e["event"] == "playbook_on_stats")
        data: dict[str, Any] = stats["artifact_data"]
        return data

    @property
    def changed(self) -> int:
        """Tasks that changed something, of all hosts."""
        return sum((self.ran.stats or {}).get("changed", {}).values())

    def said(self) -> str:
        return "".join(event.get("stdout", "") + "\n" for event in self.events)


def revisions(lab: Lab) -> list[int]:
    return [lab.slimctl(node, "acl")["revision"] for node in NODES]


@pytest.fixture
def settled(slim_lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    settle(slim_lab)
    yield slim_lab
    done = Job(slim_lab, tmp_path / "after", {"slim_policy": {"default": "allow", "rules": []}})
    assert done.ran.rc == 0, done.said()


def test_a_job_with_a_survey_checks_runs_and_runs_again(settled: Lab, tmp_path: Path) -> None:
    # A survey gives texts, and an empty one for a field that is left empty.
    answers = {
        "slim_policy": POLICY, "slim_policy_file": "",
        "slim_acl_max_revoked": "0", "slim_acl_wait": "10", "slim_acl_show": "",
    }  # fmt: skip
    before = revisions(settled)
    check = Job(settled, tmp_path / "check", answers, "--check", "--diff")
    assert (check.ran.status, check.changed) == ("successful", len(NODES)), check.said()
    assert revisions(settled) == before
    run = Job(settled, tmp_path / "run", answers)
    assert (run.ran.status, run.changed) == ("successful", len(NODES)), run.said()
    assert [new - old for new, old in zip(revisions(settled), before, strict=True)] == [1, 1]
    assert sorted(run.artifact) == ["slim_acl"]
    artifact = run.artifact["slim_acl"]
    assert (artifact["check"], artifact["revoked_total"], artifact["failed"]) == (False, 0, [])
    again = Job(settled, tmp_path / "again", answers)
    assert (again.ran.status, again.changed) == ("successful", 0), again.said()


def test_a_job_with_a_wrong_answer_says_which_and_changes_nothing(
    settled: Lab, tmp_path: Path
) -> None:
    before = revisions(settled)
    job = Job(settled, tmp_path / "wrong", {"slim_policy": POLICY.replace("1-1000", "70000")})
    assert job.ran.status == "failed"
    assert "70000" in job.said()
    assert revisions(settled) == before
