# SPDX-License-Identifier: Apache-2.0
"""A report as one self-contained page."""

from __future__ import annotations

from bench.model import Report


def render(report: Report) -> str:
    """HTML of the report."""
    raise NotImplementedError(report.title)
