# SPDX-License-Identifier: Apache-2.0
"""A report as one self-contained page: tables, plots, conditions, raw rounds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from bench.bars import Verdict, judge
from bench.conditions import summary
from bench.model import Proof, Report, Series
from bench.svg import BarRow, RatioGroup, bars, ratio_bars
from bench.terminal import number, ratio_text, verdict_text

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("host", "overlay", "slim")


@dataclass(frozen=True)
class FigureRow:
    """A line of the figure table."""

    title: str
    unit: str
    cells: list[str]
    to_host: str
    to_overlay: str


@dataclass
class FigureGroup:
    """The figures of one case in one place, under one statement of their conditions."""

    title: str
    conditions: str
    rows: list[FigureRow]


@dataclass(frozen=True)
class ProgramRow:
    """A line of the program table: first figure and the way of the bytes."""

    title: str
    figure: str
    cells: list[str]
    to_host: str
    to_overlay: str
    proof: str
    proven: bool | None


def figure_row(series: Series) -> FigureRow:
    """Cells of one figure."""
    cells = [
        number(s.median if (s := series.spread(mode)) else None, series.metric) for mode in STYLES
    ]
    return FigureRow(
        series.metric.title,
        unit(series),
        cells,
        ratio_text(series.ratio("slim", "host")),
        ratio_text(series.ratio("slim", "overlay")),
    )


def figure_groups(report: Report) -> list[FigureGroup]:
    """All figures, those of one case together."""
    groups: dict[tuple[str, str, str], FigureGroup] = {}
    for series in report.series:
        if not any(series.rounds):
            continue
        key = (series.case, series.pair, series.placement)
        where = "across hosts" if series.pair == "across" else "within a host"
        title = f"{series.title}, {where}, {place(series)}"
        group = groups.setdefault(key, FigureGroup(title, series.conditions, []))
        group.rows.append(figure_row(series))
    return list(groups.values())


def firsts(report: Report, kind: str) -> list[Series]:
    """First figure of each case of this kind."""
    seen: set[tuple[str, str, str]] = set()
    found = []
    for series in report.series:
        key = (series.case, series.pair, series.placement)
        if series.kind == kind and key not in seen:
            seen.add(key)
            found.append(series)
    return found


def program_row(report: Report, series: Series) -> ProgramRow:
    """Cells of one program."""
    row = figure_row(series)
    proof = report.proof(series.case, series.pair, series.placement)
    where = "" if series.pair == "across" else " (within one host)"
    return ProgramRow(
        series.title + where,
        f"{series.metric.title}, {unit(series)}",
        row.cells,
        row.to_host,
        row.to_overlay,
        proof.text() if proof else "",
        proof.proven if proof else None,
    )


def panel(series: Series) -> Markup:
    """Plot of one figure, the modes one below the other."""
    rows = [
        BarRow(mode, mode, spread, number(spread.median, series.metric))
        for mode in STYLES
        if (spread := series.spread(mode))
    ]
    if not rows:
        return Markup("")
    where = "across hosts" if series.pair == "across" else "within a host"
    title = f"{series.title}: {series.metric.title}"
    axis = f"{unit(series)} ({series.metric.better} is better)"
    return Markup(bars(title, f"{where}, {place(series)}", axis, rows))


def unit(series: Series) -> str:
    """The unit as it is written, not as it is typed."""
    return "µs" if series.metric.unit == "us" else series.metric.unit


def place(series: Series) -> str:
    """Short words for the placement."""
    return {"one": "one core", "two": "two cores"}.get(series.placement, "not pinned")


def ratio_plot(report: Report) -> Markup:
    """Programs relative to host mode, those whose first figure is a rate."""
    groups = []
    for series in firsts(report, "program"):
        if series.metric.better != "higher":
            continue
        values = [
            (mode, spread) for mode in ("overlay", "slim") if (spread := series.ratio(mode, "host"))
        ]
        if values:
            where = "" if series.pair == "across" else ", within"
            groups.append(RatioGroup(series.title + where, values))
    if not groups:
        return Markup("")
    title = "Programs: rate relative to host mode"
    axis = "rate divided by host mode's rate in the same round (more is better; 1 is host mode)"
    return Markup(ratio_bars(title, axis, groups))


def proof_rows(report: Report) -> list[tuple[str, Proof]]:
    """Proofs with words for the case."""
    return [(f"{p.case} ({p.pair}, {p.placement})", p) for p in report.proofs]


def verdict_value(verdict: Verdict) -> str:
    """Measured value of a bar with its range."""
    if verdict.value is None:
        return "–"
    text = f"{verdict.value:.2f}"
    if verdict.low is not None and verdict.high is not None and verdict.low != verdict.high:
        text += f" ({verdict.low:.2f}-{verdict.high:.2f})"
    return text


def render(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    panels = [
        panel(series)
        for series in report.series
        if series.kind == "micro"
        and series.case != "memory"
        and any(series.values(mode) for mode in STYLES)
        and series.metric.name not in ("errors", "min_us", "machine_per_gb", "machine_us")
    ]
    return environment.get_template("report.html.j2").render(
        report=report,
        programs=[program_row(report, series) for series in firsts(report, "program")],
        groups=figure_groups(report),
        panels=panels,
        ratio_plot=ratio_plot(report),
        verdicts=[(v, verdict_value(v), verdict_text(v)) for v in judge(report)],
        proofs=proof_rows(report),
        conditions=summary(report.conditions),
        minutes=report.seconds / 60,
    )
