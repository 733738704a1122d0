# SPDX-License-Identifier: Apache-2.0
"""Running the collection's playbooks on the lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab import inventory, names
from lab.errors import LabError
from lab.state import Plan, State


def playbook(state: State, plan: Plan, name: str, *arguments: str) -> None:
    """Run playbooks/`name`.yml on the lab; LabError if it fails.

    Its output goes to standard error and into the state directory.
    """
    path = names.CHECKOUT / "playbooks" / f"{name}.yml"
    if not path.exists():
        raise LabError(f"{path} does not exist; is the checkout complete?")
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-i",
        str(state.inventory),
        str(path),
        *arguments,
    ]
    log = state.directory / f"{name}.log"
    with log.open("w") as out:
        done = subprocess.Popen(
            command,
            cwd=names.CHECKOUT,
            env=inventory.environment(state, plan),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.stdout is not None
        try:
            for line in done.stdout:
                out.write(line)
                sys.stderr.write(line)
            status = done.wait()
        except BaseException:
            # What it has running inside the nodes ends with the lab.
            done.terminate()
            done.wait()
            raise
    if status != 0:
        raise LabError(
            f"playbooks/{name}.yml failed with status {status}; its output is above and in {log}"
        )
