# SPDX-License-Identifier: Apache-2.0
"""Paths of the router: the one table (docs/architecture.md, "Paths and ports")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = Path("/etc/slim/router.json")
MAP = Path("/etc/slim/map.json")
RUNTIME_DIR = Path("/run/slim")
STATE_DIR = Path("/var/lib/slim")
ADMIN_SOCKET = RUNTIME_DIR / "admin.sock"


@dataclass(frozen=True, slots=True)
class Paths:
    """Where one router keeps its things; every one can be moved for a test."""

    config: Path = CONFIG
    map: Path = MAP
    runtime_dir: Path = RUNTIME_DIR
    state_dir: Path = STATE_DIR

    @property
    def qos(self) -> Path:
        """Rates and classes of service, written by slim_qos; beside the configuration."""
        return self.config.parent / "qos.json"

    @property
    def shim_dir(self) -> Path:
        """The directory that is mounted into containers."""
        return self.runtime_dir / "shim"

    @property
    def shim_socket(self) -> Path:
        """The shim socket."""
        return self.shim_dir / "router.sock"

    @property
    def admin_socket(self) -> Path:
        """The admin socket."""
        return self.runtime_dir / "admin.sock"

    @property
    def pid_file(self) -> Path:
        """The pid file; also what a second router finds locked."""
        return self.runtime_dir / "router.pid"

    @property
    def ports(self) -> Path:
        """The data ports that were given out."""
        return self.state_dir / "ports.json"

    @property
    def rows(self) -> Path:
        """The connection tables; of no use after a reboot, and gone then."""
        return self.runtime_dir / "rows"

    @property
    def attached(self) -> Path:
        """What container runtimes attached, a file each; containers end with the host."""
        return self.runtime_dir / "attached"

    @property
    def policy(self) -> Path:
        """The policy in force."""
        return self.state_dir / "policy.json"
