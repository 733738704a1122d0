# SPDX-License-Identifier: Apache-2.0
"""slim_fallback on two hosts that this makes of namespaces.

    col-HEX-a                                        col-HEX-b
    br-slim - vx-slim == un0 192.0.2.1 --veth-- 192.0.2.2 un0 == vx-slim - br-slim
       |                                                                     |
    col-HEX-a1: eth0 10.44.0.1/16                    eth0 10.44.0.2/16: col-HEX-b1

As provider vxlan has it; the routed ones have neither bridge nor tunnel. Needs root.
Every command runs in its host by `ip netns exec`; names carry a random part, and the
fixture deletes what it made.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fallback.stand import Host, ip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    pytest.importorskip("pyroute2", reason="slim_fallback stands on pyroute2")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2")
    mark = f"col-{secrets.token_hex(3)}"
    pair = [
        Host(f"{mark}-a", "192.0.2.1", "192.0.2.2", "10.44.0.1", tmp_path),
        Host(f"{mark}-b", "192.0.2.2", "192.0.2.1", "10.44.0.2", tmp_path),
    ]
    spaces = [name for host in pair for name in (host.name, host.endpoint)]
    try:
        for name in spaces:
            ip("netns", "add", name)
        ip(
            "-n",
            pair[0].name,
            "link",
            "add",
            "un0",
            "type",
            "veth",
            "peer",
            "un0",
            "netns",
            pair[1].name,
        )
        for host in pair:
            ip("-n", host.name, "addr", "add", f"{host.config['address']}/24", "dev", "un0")
            ip("-n", host.name, "link", "set", "un0", "up")
        yield pair
    finally:
        for name in spaces:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
