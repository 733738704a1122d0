# SPDX-License-Identifier: Apache-2.0
"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from bench.bars import Verdict, judge
from bench.conditions import summary
from bench.model import Metric, Report, Series
from bench.stats import Spread


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns: the first `left` to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), "  ".join("-" * width for width in widths), *map(line, rows)])


def number(value: float | None, metric: Metric) -> str:
    """A figure with its metric's digits, or a dash."""
    return "-" if value is None else f"{value:,.{metric.digits}f}"


def ratio_text(spread: Spread | None, with_range: bool = True) -> str:
    """0.98 (0.95-1.01), or a dash."""
    if spread is None:
        return "-"
    text = f"{spread.median:.2f}"
    return (
        f"{text} ({spread.low:.2f}-{spread.high:.2f})" if with_range and spread.count > 1 else text
    )


def figure_row(series: Series) -> list[str]:
    """Cells of one figure: name, modes, ratios."""
    medians = [
        s.median if (s := series.spread(mode)) else None for mode in ("host", "overlay", "slim")
    ]
    unit = f", {series.metric.unit}" if series.metric.unit else ""
    return [
        f"{series.title}: {series.metric.title}{unit} [{series.pair}/{series.placement}]",
        *[number(value, series.metric) for value in medians],
        ratio_text(series.ratio("slim", "host")),
        ratio_text(series.ratio("slim", "overlay")),
    ]


def verdict_text(verdict: Verdict) -> str:
    """met, NOT MET or not measured."""
    return {True: "met", False: "NOT MET", None: "not measured"}[verdict.met]


def verdict_row(verdict: Verdict) -> list[str]:
    """Cells of one bar."""
    against = f" of {verdict.against}" if verdict.against else f" {verdict.unit}".rstrip()
    value = "-" if verdict.value is None else f"{verdict.value:.2f}"
    if verdict.low is not None and verdict.high is not None and verdict.low != verdict.high:
        value += f" ({verdict.low:.2f}-{verdict.high:.2f})"
    return [
        verdict.text,
        f"{verdict.comparison} {verdict.limit:g}{against}",
        value,
        verdict_text(verdict),
    ]


def render(report: Report) -> str:
    """The whole report as text."""
    parts = [
        "",
        table(["Conditions", ""], [list(row) for row in summary(report.conditions)], left=2),
        "",
        "Medians of interleaved rounds; ratios taken round by round: median (lowest-highest).",
        table(
            ["Figure [pair/placement]", "host", "overlay", "slim", "slim/host", "slim/overlay"],
            [figure_row(one) for one in report.series if one.rounds],
        ),
    ]
    verdicts = judge(report)
    if verdicts:
        parts += [
            "",
            table(["Bar", "wanted", "measured", ""], [verdict_row(v) for v in verdicts], left=2),
        ]
    if report.proofs:
        rows = [
            [
                f"{p.case} [{p.pair}/{p.placement}]",
                "host path" if p.proven else "NOT PROVEN",
                p.text(),
            ]
            for p in report.proofs
        ]
        parts += ["", table(["Way of the bytes in slim mode", "", "evidence"], rows, left=3)]
    if report.notes:
        parts += ["", *[f"note: {text}" for text in report.notes]]
    if report.problems:
        parts += [
            "",
            f"{len(report.problems)} error{'s' if len(report.problems) != 1 else ''}:",
            *[
                f"  {p.case} [{p.pair}/{p.placement}] {p.mode} round {p.round}: {p.text}"
                for p in report.problems
            ],
        ]
    return "\n".join(parts) + "\n"
