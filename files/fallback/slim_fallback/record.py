# SPDX-License-Identifier: Apache-2.0
"""What we made on this host, so that nothing else is ever taken away."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Record:
    """Names of the links that are ours, and where each endpoint's veth was put."""

    path: Path
    bridge: str = ""
    device: str = ""
    # Host's end of a veth pair to the path of the namespace that has the other one.
    veths: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Record:
        """The record; an absent or damaged one is empty (links carry a mark as well)."""
        record = cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record.bridge = str(content.get("bridge", ""))
            record.device = str(content.get("device", ""))
            record.veths = {str(key): str(value) for key, value in content["veths"].items()}
        except (OSError, ValueError, KeyError, AttributeError):
            pass
        return record

    def save(self) -> None:
        """Replace the file, so that a reader never sees half of it.

        :raises OSError: the disk is full or read-only.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        content = {
            "version": 1,
            "bridge": self.bridge,
            "device": self.device,
            "veths": dict(sorted(self.veths.items())),
        }
        with fresh.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)

    def forget(self) -> None:
        """Nothing is ours any more."""
        self.path.unlink(missing_ok=True)
