# SPDX-License-Identifier: Apache-2.0
"""Empty directories on the machine under the nodes' private ones.

Several labs share them. They must not be removed while another lab is mounted
there: rmdir(2) of a directory that is a mount point in another namespace works,
and takes the mount away.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path

from lab import names

_REGISTRY = Path("/run/slimlab-mountpoints.json")


@contextlib.contextmanager
def _registry() -> Iterator[dict[str, list[str]]]:
    """Hold the registry: who uses the directories, and which of them we created."""
    with _REGISTRY.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        try:
            registry = json.loads(file.read() or "{}")
        except ValueError:
            registry = {}
        registry.setdefault("users", [])
        registry.setdefault("created", [])
        yield registry
        file.seek(0)
        file.truncate()
        file.write(json.dumps(registry) + "\n")


def claim(user: str) -> None:
    """Make sure the directories exist, for the lab called `user`."""
    with _registry() as registry:
        if user not in registry["users"]:
            registry["users"].append(user)
        for directory in names.PRIVATE_DIRECTORIES:
            path = Path(directory)
            if not path.exists():
                path.mkdir(mode=0o755, parents=True)
                registry["created"].append(directory)


def release(user: str) -> None:
    """Forget `user`; the last one out removes what we created, if it is still empty."""
    with _registry() as registry:
        registry["users"] = [name for name in registry["users"] if name != user]
        if registry["users"]:
            return
        for directory in registry["created"]:
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
        registry["created"] = []
