# SPDX-License-Identifier: Apache-2.0
"""SSH into the nodes: one configuration file and one kept connection per node.

Imports nothing of the lab: remote.py, which has to start quickly, uses it too.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

#: No hardware here: what costs the emulator least. (curve25519 alone instead of the
#: hybrid exchange that OpenSSH prefers.)
_OPTIONS = {
    "User": "root",
    "HostName": "127.0.0.1",
    "IdentitiesOnly": "yes",
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "KexAlgorithms": "curve25519-sha256",
    "ConnectTimeout": "20",
    "ServerAliveInterval": "20",
    "ServerAliveCountMax": "6",
    "LogLevel": "ERROR",
    "ControlMaster": "auto",
    "ControlPersist": "yes",
}


class Host:
    """What is needed to speak to one node; also written down as a section of ssh_config(5)."""

    def __init__(self, config: Path, name: str) -> None:
        self.config = config
        self.name = name

    @property
    def control(self) -> Path:
        """Socket of the kept connection."""
        return self.config.parent / f"{self.name}.ssh"

    def command(self, *words: str) -> list[str]:
        """Words of a command line; `words` go to the node's shell as one string."""
        return ["ssh", "-F", str(self.config), self.name, *words]

    def section(self, port: int, key: Path, known_hosts: Path, alias: str) -> str:
        """The node's part of the configuration file."""
        options = {
            **_OPTIONS,
            "Port": str(port),
            "IdentityFile": str(key),
            "UserKnownHostsFile": str(known_hosts),
            "HostKeyAlias": alias,
            "ControlPath": str(self.control),
        }
        lines = [f"    {name} {value}" for name, value in options.items()]
        return "\n".join([f"Host {self.name}", *lines, ""])

    def run(
        self, script: str, stdin: bytes | None = None, timeout: float = 120.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a line of shell on the node; raises subprocess.TimeoutExpired."""
        return subprocess.run(
            self.command(script),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
        )

    def hang_up(self) -> None:
        """End the kept connection, if there is one."""
        if self.control.exists():
            subprocess.run(
                ["ssh", "-F", str(self.config), "-O", "exit", self.name],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=20,
                check=False,
            )


def answers(port: int, wait: float) -> bool:
    """Does an SSH server greet at 127.0.0.1:`port` within `wait` seconds?

    QEMU accepts for the guest before the guest has, so only the greeting counts.
    """
    deadline = time.monotonic() + wait
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=min(left, 2.0)) as probe:
                if probe.recv(4) == b"SSH-":
                    return True
        except OSError:
            pass
        time.sleep(0.1)
    return False
