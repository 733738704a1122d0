# SPDX-License-Identifier: Apache-2.0
"""Makes the checkout importable as ansible_collections.slim.overlay.

Without it the plugins could only be imported from a directory of that name,
which a bare clone does not lie in. ansible-test brings its own way and wins.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def _package(name: str, path: list[str]) -> None:
    module = ModuleType(name)
    module.__path__ = path
    sys.modules[name] = module


def _reachable() -> bool:
    try:
        return importlib.util.find_spec("ansible_collections.slim.overlay") is not None
    except ModuleNotFoundError:
        return False


if not _reachable():
    # What the wheel `ansible` has under this name stays reachable.
    if importlib.util.find_spec("ansible_collections") is None:
        _package("ansible_collections", [])
    _package("ansible_collections.slim", [])
    _package("ansible_collections.slim.overlay", [str(ROOT)])
    _package("ansible_collections.slim.overlay.plugins", [str(ROOT / "plugins")])


RUN = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
import conftest
path, sys.argv = sys.argv[2], ["module"]
runpy.run_path(path, run_name="__main__")
"""


@pytest.fixture
def run_module() -> Callable[..., dict[str, Any]]:
    """A module of ours, run as Ansible runs it, but out of this checkout."""
    pytest.importorskip("ansible", reason="modules stand on ansible-core")

    def run(name: str, arguments: dict[str, Any], within: Sequence[str] = ()) -> dict[str, Any]:
        path = ROOT / "plugins" / "modules" / f"{name}.py"
        done = subprocess.run(
            [*within, sys.executable, "-c", RUN, str(Path(__file__).parent), str(path)],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return answer

    return run
