# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the worker's tests: namespaces once, a worker for each test."""

from __future__ import annotations

import os
import subprocess
import traceback
from collections.abc import Iterator

import pytest

from slim_router import loop
from tests.unit.worker.stand import Stand, make_namespace


@pytest.fixture(scope="session")
def namespaces() -> Iterator[tuple[str, str]]:
    """(the endpoint's, another container's)."""
    if os.geteuid() != 0:
        pytest.skip("needs root: namespaces")
    names = [f"wk-{os.getpid()}-{what}" for what in ("a1", "other")]
    paths = []
    try:
        for name in names:
            paths.append(make_namespace(name))
        yield paths[0], paths[1]
    finally:
        for name in names[: len(paths)]:
            subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


@pytest.fixture
def stand(namespaces: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A worker; the test fails if one of its handlers raised."""
    raised: list[str] = []

    def note(**_: object) -> None:
        raised.append(traceback.format_exc())

    monkeypatch.setattr(loop.traceback, "print_exc", note)
    made = Stand(*namespaces)
    try:
        yield made
    finally:
        made.close()
    assert not raised, "\n".join(raised)
