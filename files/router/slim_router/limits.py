# SPDX-License-Identifier: Apache-2.0
"""qos.json: what the supervisor tells each worker to set on host connections.

The file is written by slim_qos, which also makes the queues (files/qos). Only the
part ``sockets`` of each endpoint is ours. A file that cannot be used costs no
endpoint its service: without marks nothing is limited, and status says so.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from . import log
from .config import EndpointSpec, load_json
from .reader import ConfigError, Reader

ENDPOINTS_MAX = 4096
RULES_MAX = 256  # of one endpoint: they travel in one message
PACING_MAX = 2**63 - 1

Message = dict[str, Any]


def parse(value: object, where: str = "qos.json") -> dict[tuple[str, str], Message]:
    """By (tenant, name): the fields of the ``limits`` message. Raises ConfigError."""
    known = ("version", "mark", "address", "devices", "link", "replace_root", "endpoints")
    reader = Reader(value, where, known)
    reader.version()
    listed = reader.get("endpoints", [])
    if not isinstance(listed, list) or len(listed) > ENDPOINTS_MAX:
        raise reader.fail("endpoints", f"not a list of at most {ENDPOINTS_MAX}", "correct it")
    found = {}
    for number, item in enumerate(listed):
        entry = Reader(
            item, f"{where}: endpoint {number}",
            ("tenant", "name", "vip", "netns", "index", "limits", "classes", "sockets"),
        )  # fmt: skip
        sockets = Reader(entry.get("sockets"), f"{entry.where}: sockets", ("default", "ports"))
        rules = sockets.get("ports", [])
        if not isinstance(rules, list) or len(rules) > RULES_MAX:
            raise sockets.fail("ports", f"not a list of at most {RULES_MAX}", "correct it")
        found[entry.text("tenant"), entry.text("name", limit=128)] = {
            "default": _treatment(sockets.get("default"), f"{sockets.where}: default"),
            "ports": [_rule(rule, f"{sockets.where}: ports {i}") for i, rule in enumerate(rules)],
        }
    return found


def _treatment(value: object, where: str) -> dict[str, int]:
    reader = Reader(value, where, ("mark", "priority", "tos", "pacing"))
    return {
        "mark": reader.number("mark", 0, 2**32 - 1, 0),
        "priority": reader.number("priority", 0, 7, 0),
        "tos": reader.number("tos", 0, 255, 0),
        "pacing": reader.number("pacing", 0, PACING_MAX, 0),
    }


def _rule(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or len(value) != 3:
        raise ConfigError(f"{where}: not [first, last, treatment]; run slim_qos again")
    span = Reader({"first": value[0], "last": value[1]}, where, ("first", "last"))
    first, last = span.number("first", 1, 65535), span.number("last", 1, 65535)
    if first > last:
        raise span.fail("first", f"{first} is greater than {last}", "put the lower port first")
    return [first, last, _treatment(value[2], where)]


class Limits:
    """What is in force, by endpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cause = ""  # why the file cannot be used
        self._found: dict[tuple[str, str], Message] = {}
        with contextlib.suppress(ConfigError):  # it has been logged
            self.read()

    def read(self) -> None:
        """Read the file again; none is an empty one. Raises ConfigError, changing nothing."""
        try:
            self._found = parse(load_json(self.path), str(self.path)) if self.path.exists() else {}
            self.cause = ""
        except ConfigError as error:
            self.cause = str(error)
            log.error(
                "qos-unreadable", cause=error,
                next="host connections are marked as before, at start not at all; run slim_qos",
            )  # fmt: skip
            raise

    def of(self, spec: EndpointSpec) -> Message | None:
        """What the worker of *spec* is told."""
        return self._found.get((spec.tenant, spec.name))

    def report(self) -> dict[str, object]:
        """For status."""
        return {"endpoints": len(self._found), "cause": self.cause}
