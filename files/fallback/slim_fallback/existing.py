# SPDX-License-Identifier: Apache-2.0
"""Somebody else's overlay: nothing of it is ours to change.

Only what another provider of ours made before goes away.
"""

from __future__ import annotations

from dataclasses import replace

from slim_fallback import links
from slim_fallback.config import Config, Endpoint
from slim_fallback.provider import Provider
from slim_fallback.record import Record


class Existing(Provider):
    """No network of ours."""

    def __init__(self, config: Config, record: Record) -> None:
        # The site attaches all endpoints itself.
        super().__init__(replace(config, endpoints=()), record)

    def _check(self, space: links.Space) -> None:
        """Nothing has to be there."""

    def _build(self, space: links.Space) -> None:
        """Nothing is made."""

    def _attach(self, space: links.Space, there: links.Space, endpoint: Endpoint) -> None:
        """Nobody is attached."""
