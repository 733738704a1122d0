# SPDX-License-Identifier: Apache-2.0
"""Errors as the CNI specification numbers them (1.1.0, section 5, "Error")."""

from __future__ import annotations

INCOMPATIBLE = 1  # version of CNI
UNSUPPORTED = 2  # field of the network configuration
UNKNOWN_CONTAINER = 3  # the runtime need not clean up
ENVIRONMENT = 4
IO = 5
DECODE = 6
CONFIG = 7
AGAIN = 11
UNAVAILABLE = 50  # STATUS: no ADD can be served
REFUSED = 100  # ours: the router says no


class CniError(Exception):
    """What ends a command: thing, cause, next step."""

    def __init__(self, code: int, text: str, details: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.details = details
