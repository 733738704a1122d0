# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the control plane's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.router.fleet import Fleet


@pytest.fixture
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """An empty fleet in a directory with a short path (Unix sockets: 107 bytes)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces")
    made = Fleet(tmp_path_factory.mktemp("f"))
    yield made
    made.close()


@pytest.fixture
def pair(fleet: Fleet) -> Fleet:
    """Two hosts with one endpoint each: a1 on node1, b1 on node2."""
    for host in ("node1", "node2"):
        fleet.host(host)
    fleet.endpoint("a1", "10.44.0.1", "node1", fleet.netns())
    fleet.endpoint("b1", "10.44.0.2", "node2", fleet.netns())
    fleet.write()
    return fleet


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory."""
    return tmp_path
