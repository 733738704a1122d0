# SPDX-License-Identifier: Apache-2.0
"""What a whole number is in JSON: an int, and not true or false, which Python counts in."""

from __future__ import annotations

from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Is *value* an int that is no bool?"""
    return isinstance(value, int) and not isinstance(value, bool)
