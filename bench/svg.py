# SPDX-License-Identifier: Apache-2.0
"""Plots as inline SVG: no script, no font, no file from elsewhere.

Colours come from the page (CSS classes host, overlay, slim, axis, grid), so that
the plots follow its light and dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from bench.stats import Spread


@dataclass(frozen=True)
class BarRow:
    """One bar: its label, CSS class, value with range, and the text at its end."""

    label: str
    style: str
    spread: Spread
    text: str


def ticks(high: float, wanted: int = 4) -> list[float]:
    """Round numbers from 0 to at least `high`, 1, 2 or 5 times a power of ten apart."""
    if high <= 0 or not math.isfinite(high):
        return [0.0, 1.0]
    raw = high / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    count = math.ceil(high / step - 1e-9)
    return [step * i for i in range(count + 1)]


def tick_text(value: float) -> str:
    """Short form of a tick: 20k, 1.5M, 0.25."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{value / divisor:g}{suffix}"
    return f"{value:.6g}"


def bars(title: str, under: str, axis: str, rows: Sequence[BarRow], width: int = 400) -> str:
    """Horizontal bars from zero, one below the other, with whiskers over the rounds."""
    left, right, top, pitch, thick = 62, 66, 46, 26, 16
    inner = width - left - right
    bottom = top + pitch * len(rows)
    height = bottom + 40
    marks = ticks(max(row.spread.high for row in rows))
    scale = inner / marks[-1]
    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}, '
        f'{escape(under)}">',
        f'<text class="head" x="0" y="14">{escape(title)}</text>',
        f'<text class="axis" x="0" y="31">{escape(under)}</text>',
    ]
    for mark in marks:
        x = left + mark * scale
        out.append(f'<line class="grid" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{tick_text(mark)}</text>"
        )
    for i, row in enumerate(rows):
        y = top + pitch * i + (pitch - thick) / 2
        middle = y + thick / 2
        length = max(1.0, row.spread.median * scale)
        out.append(
            f'<text class="label" x="{left - 6}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{escape(row.label)}</text>"
        )
        out.append(
            f'<rect class="{row.style}" x="{left}" y="{y:.1f}" width="{length:.1f}" '
            f'height="{thick}" rx="2"/>'
        )
        low, high = left + row.spread.low * scale, left + row.spread.high * scale
        if row.spread.count > 1 and high - low > 2:
            out.append(_whisker(low, high, middle))
        out.append(
            f'<text class="value" x="{max(left + length, high) + 6:.1f}" y="{middle + 4:.1f}">'
            f"{escape(row.text)}</text>"
        )
    out.append(
        f'<text class="axis" x="{left + inner / 2:.1f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(axis)}</text></svg>"
    )
    return "".join(out)


@dataclass(frozen=True)
class RatioGroup:
    """Quotients to host mode of one program: by CSS class of the mode."""

    label: str
    values: Sequence[tuple[str, Spread]]


def ratio_bars(title: str, axis: str, groups: Sequence[RatioGroup], width: int = 840) -> str:
    """Groups of bars with a line at 1, where host mode is."""
    left, right, top, thick, gap = 270, 60, 34, 13, 14
    inner = width - left - right
    marks = ticks(max([1.0, *(s.high for g in groups for _unused, s in g.values)]), 6)
    scale = inner / marks[-1]
    bottom = top + sum(thick * len(g.values) + gap for g in groups)
    height = bottom + 42
    out = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f'<text class="head" x="0" y="14">{escape(title)}</text>',
    ]
    for mark in marks:
        x = left + mark * scale
        style = "one" if abs(mark - 1) < 1e-9 else "grid"
        out.append(f'<line class="{style}" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
        out.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{tick_text(mark)}</text>"
        )
    if not any(abs(mark - 1) < 1e-9 for mark in marks):
        x = left + scale
        out.append(f'<line class="one" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>')
    y = top + gap / 2
    for group in groups:
        middle = y + thick * len(group.values) / 2
        out.append(
            f'<text class="label" x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end">'
            f"{escape(group.label)}</text>"
        )
        for style, spread in group.values:
            length = max(1.0, spread.median * scale)
            out.append(
                f'<rect class="{style}" x="{left}" y="{y + 0.5:.1f}" width="{length:.1f}" '
                f'height="{thick - 1}" rx="2"/>'
            )
            low, high = left + spread.low * scale, left + spread.high * scale
            if spread.count > 1 and high - low > 2:
                out.append(_whisker(low, high, y + thick / 2))
            out.append(
                f'<text class="value small" x="{max(left + length, high) + 5:.1f}" '
                f'y="{y + thick / 2 + 3.5:.1f}">{spread.median:.2f}</text>'
            )
            y += thick
        y += gap
    out.append(
        f'<text class="axis" x="{left + inner / 2:.1f}" y="{height - 6}" text-anchor="middle">'
        f"{escape(axis)}</text></svg>"
    )
    return "".join(out)


def _whisker(low: float, high: float, y: float) -> str:
    """A line from the lowest to the highest round."""
    return (
        f'<path class="whisker" d="M{low:.1f} {y:.1f}H{high:.1f}'
        f'M{low:.1f} {y - 3:.1f}v6M{high:.1f} {y - 3:.1f}v6"/>'
    )
