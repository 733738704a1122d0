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
    # Bridges and tunnel devices of tenants.
    others: set[str] = field(default_factory=set)
    # Host's end of a veth pair to the path of the namespace that has the other one.
    veths: dict[str, str] = field(default_factory=dict)
    # Devices that we let forward, and what they did before: "0" or "1".
    forwarding: dict[str, str] = field(default_factory=dict)
    # Number of the routing table that a routing daemon of ours fills, 0 for none.
    table: int = 0

    @classmethod
    def load(cls, path: Path) -> Record:
        """The record; an absent or damaged one is empty (links carry a mark as well)."""
        record = cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record.bridge = str(content.get("bridge", ""))
            record.device = str(content.get("device", ""))
            record.others = {str(name) for name in content.get("others", [])}
            record.veths = {str(key): str(value) for key, value in content["veths"].items()}
            forwarding = content.get("forwarding", {})
            record.forwarding = {str(key): str(value) for key, value in forwarding.items()}
            record.table = int(content.get("table", 0))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
            "others": sorted(self.others),
            "veths": dict(sorted(self.veths.items())),
            "forwarding": dict(sorted(self.forwarding.items())),
            "table": self.table,
        }
        with fresh.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)

    @property
    def links(self) -> set[str]:
        """Names of all bridges and tunnel devices that are ours."""
        return {self.bridge, self.device, *self.others} - {""}

    def note(self, kind: str, name: str, *, default: bool) -> bool:
        """A link is about to be ours; whether that is news."""
        if name in self.links and (not default or getattr(self, kind) == name):
            return False
        if default:
            setattr(self, kind, name)
        else:
            self.others.add(name)
        return True

    def drop_links(self, wanted: set[str]) -> bool:
        """Bridges and tunnel devices but these are not ours any more; whether that is news."""
        if self.links <= wanted:
            return False
        self.bridge = self.bridge if self.bridge in wanted else ""
        self.device = self.device if self.device in wanted else ""
        self.others &= wanted
        return True

    def forget(self) -> None:
        """Nothing is ours any more."""
        self.path.unlink(missing_ok=True)
