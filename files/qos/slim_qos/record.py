# SPDX-License-Identifier: Apache-2.0
"""What we put onto this host, so that nothing else is ever taken away."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Record:
    """Names of devices that we gave a clsact or a root queue."""

    path: Path
    clsact: set[str] = field(default_factory=set)
    roots: dict[str, str] = field(default_factory=dict)
    """Device to the root queue that was there: kind, handle and options, or ""."""

    @classmethod
    def load(cls, path: Path) -> Record:
        """The record; an absent or damaged one is empty (our filters carry our name)."""
        record = cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            record.clsact = {str(name) for name in content["clsact"]}
            record.roots = {str(name): str(root) for name, root in content["roots"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return record

    def save(self) -> None:
        """Replace the file, so that a reader never sees half of it. Raises OSError."""
        if not self.clsact and not self.roots:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        with fresh.open("w", encoding="utf-8") as stream:
            json.dump(
                {"version": 1, "clsact": sorted(self.clsact), "roots": self.roots}, stream, indent=1
            )
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self.path)
