# SPDX-License-Identifier: Apache-2.0
"""Log lines on stderr: one line an event, ``key=value`` pairs.

Never give a key, a trunk key or the contents of a host connection to it.
"""

from __future__ import annotations

import json
import os
import sys
import time

from .bucket import Bucket

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

LINE_RATE, LINE_BURST = 10.0, 100.0
"""Lines of one event a second and at once: a peer must not fill the disk."""

# The journal has times of its own and takes the level as a prefix (sd-daemon(3)).
_JOURNAL = {"debug": "<7>", "info": "<6>", "warning": "<4>", "error": "<3>"}
_in_journal = "JOURNAL_STREAM" in os.environ

_threshold = LEVELS["info"]
_buckets: dict[str, Bucket] = {}
_suppressed: dict[str, int] = {}


def set_level(name: str) -> None:
    """Drop everything below *name* (debug, info, warning, error)."""
    global _threshold
    _threshold = LEVELS[name]


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and all(c.isalnum() or c in "-_./:,@+%" for c in text):
        return text
    return json.dumps(text)


def log(level: str, event: str, **fields: object) -> None:
    """One line. A log that cannot be written is no reason to stop."""
    if LEVELS[level] < _threshold:
        return
    if not _buckets.setdefault(event, Bucket(LINE_RATE, LINE_BURST)).take():
        _suppressed[event] = _suppressed.get(event, 0) + 1
        return
    if event in _suppressed:
        fields["suppressed"] = _suppressed.pop(event)
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    pairs = "".join(f" {key}={_value(value)}" for key, value in fields.items() if value is not None)
    head = _JOURNAL[level] if _in_journal else f"{stamp} level={level} "
    try:
        sys.stderr.write(f"{head}event={event}{pairs}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def debug(event: str, **fields: object) -> None:
    """For whoever looks for a fault."""
    log("debug", event, **fields)


def info(event: str, **fields: object) -> None:
    """Something changed as it should."""
    log("info", event, **fields)


def warning(event: str, **fields: object) -> None:
    """Something is worse than it should be; the overlay serves."""
    log("warning", event, **fields)


def error(event: str, **fields: object) -> None:
    """Somebody has to act."""
    log("error", event, **fields)
