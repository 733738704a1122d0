# SPDX-License-Identifier: Apache-2.0
"""A row of the connection table, and what the kernel calls its socket."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One connection; addresses are 16 bytes, ``since`` is monotonic seconds."""

    outgoing: bool
    slim: bool
    why: int
    src: bytes
    sport: int
    dst: bytes
    dport: int
    since: float
    family: int = 0  # the application's, where its socket's own may differ


class HostName(NamedTuple):
    """A host connection as the kernel knows it at our end; addresses are 16 bytes."""

    local: bytes
    lport: int
    remote: bytes
    rport: int
