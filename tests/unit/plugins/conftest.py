# SPDX-License-Identifier: Apache-2.0
"""Makes the checkout importable as ansible_collections.slim.overlay.

Without it the plugins could only be imported from a directory of that name,
which a bare clone does not lie in. ansible-test brings its own way and wins.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
    if "ansible_collections" not in sys.modules:
        try:
            import ansible_collections  # noqa: F401 - what the wheel has stays reachable
        except ModuleNotFoundError:
            _package("ansible_collections", [])
    _package("ansible_collections.slim", [])
    _package("ansible_collections.slim.overlay", [str(ROOT)])
    _package("ansible_collections.slim.overlay.plugins", [str(ROOT / "plugins")])
