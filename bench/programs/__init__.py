# SPDX-License-Identifier: Apache-2.0
"""Real programs, one small file each, and the C sources of the measuring programs."""

from __future__ import annotations

import importlib

from bench.case import Case

NAMES = (
    "redis",
    "memcached",
    "nginx",
    "postgresql",
    "iperf3",
    "sockperf",
    "haproxy",
    "zookeeper",
    "node",
    "python_http",
    "python_asyncio",
)
"""Modules of this package, in the order in which they are run."""


def cases() -> list[type[Case]]:
    """Cases of every program."""
    found: list[type[Case]] = []
    for name in NAMES:
        found += importlib.import_module(f"bench.programs.{name}").CASES
    return found
