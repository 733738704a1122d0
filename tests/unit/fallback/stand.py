# SPDX-License-Identifier: Apache-2.0
"""Namespace hosts that run slim_fallback, for the tests of the providers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[3] / "files" / "fallback"
DEADLINE_S = 10.0


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Host:
    """One namespace host with its configuration and record."""

    def __init__(self, name: str, address: str, peer: str, vip: str, top: Path) -> None:
        self.name = name
        self.endpoint = f"{name}1"
        self.record = top / f"{name}.record"
        self.config: dict[str, Any] = {
            "version": 1,
            "provider": "vxlan",
            "address": address,
            "overlay": ["10.44.0.0/16"],
            "peers": [peer],
            "endpoints": [
                {
                    "name": self.endpoint,
                    "vip": vip,
                    "netns": f"/run/netns/{self.endpoint}",
                    "attach": True,
                }
            ],
        }

    def helper(self, command: str, status: int = 0) -> dict[str, Any]:
        """Run slim_fallback on this host and return its answer."""
        done = subprocess.run(
            [
                *("ip", "netns", "exec", self.name, sys.executable, "-m", "slim_fallback", command),
                *("--json", "--config", "-", "--record", str(self.record)),
            ],
            input=json.dumps(self.config),
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def links(self) -> set[str]:
        return {link["ifname"] for link in json.loads(ip("-n", self.name, "-j", "link"))}


def carries(one: Host, two: Host) -> bool:
    """Whether a datagram gets from one endpoint to the other before the deadline."""
    vip = two.config["endpoints"][0]["vip"]
    listen = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"s.bind(('{vip}', 9)); s.settimeout({DEADLINE_S}); print('up', flush=True); s.recv(9)"
    )
    send = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        f"[(s.sendto(b'x', ('{vip}', 9)), time.sleep(0.1)) for _ in range(50)]"
    )
    space = ["ip", "netns", "exec"]
    with subprocess.Popen(
        [*space, two.endpoint, sys.executable, "-c", listen],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "up\n"
        with subprocess.Popen(
            [*space, one.endpoint, sys.executable, "-c", send], stderr=subprocess.DEVNULL
        ) as sender:
            status = receiver.wait(DEADLINE_S * 2)
            sender.kill()
    return status == 0
