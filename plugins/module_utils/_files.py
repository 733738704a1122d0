# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""Files of ours on a host, replaced so that a reader sees the old one or the new one.

Private to this collection.
"""

from __future__ import annotations

import json
import os


def text_of(content):
    """The content as the file has it; the same for the same content."""
    if isinstance(content, str):
        return content
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read(path):
    """What the file has now; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def put(path, text, mode, group=None):
    """Replace the file.

    :param group: number of the group that it belongs to; that of the process unless given.
    :raises OSError: the old one stays then.
    """
    fresh = path.with_name(f".{path.name}.new")
    if fresh.exists():
        fresh.unlink()
    with os.fdopen(os.open(str(fresh), os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    if group is not None:
        os.chown(str(fresh), -1, group)
    fresh.chmod(mode)
    fresh.replace(path)
