# SPDX-License-Identifier: Apache-2.0
"""The one exception of this package."""


class BpfError(Exception):
    """What is wrong, why, and what to do next, in one line for an operator."""

    def __init__(self, thing: str, cause: str, following: str = "") -> None:
        super().__init__(f"{thing}: {cause}" + (f"; {following}" if following else ""))
