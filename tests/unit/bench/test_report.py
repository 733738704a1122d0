# SPDX-License-Identifier: Apache-2.0
"""Bars, proofs and the pages made of a report."""

import json
import re
from html.parser import HTMLParser

import pytest

from bench.bars import judge
from bench.model import Metric, Problem, Proof, Report, Series, human_bytes
from bench.svg import ticks
from bench.terminal import render as render_text


def series(case="stream", metric="gbps", unit="Gbit/s", better="higher", kind="micro", rounds=None):
    return Series(
        case,
        f"Title <{case}>",
        kind,
        "across",
        "one" if kind == "micro" else "free",
        "conditions & more",
        Metric(metric, metric, unit, better),
        rounds or [{"host": 60.0, "overlay": 40.0, "slim": 59.0}, {"host": 30.0, "slim": 30.0}],
    )


@pytest.fixture
def report():
    made = Report("A report", "2026-01-01 00:00 UTC", 61.0)
    made.conditions = {"kernel": "6.18", "cpus": 2, "cpu": "some CPU"}
    made.series = [
        series(),
        series("nginx-close", "rate", "1/s", kind="program"),
        series("roundtrip", "p50_us", "us", "lower"),
        series("empty", rounds=[{}]),
    ]
    made.proofs = [Proof("nginx-close", "across", "free", table_slim=4, table_bytes=12_300_000)]
    made.problems = [Problem("x", "across", "free", "slim", 1, "<script>alert(1)</script>")]
    return made


def test_bar_is_judged_by_the_median_of_round_ratios(report):
    verdict = next(v for v in judge(report) if v.series == "stream.gbps/across/one")
    assert verdict.value == pytest.approx((59 / 60 + 1) / 2)
    assert verdict.met is True


def test_bar_that_is_missed():
    report = Report("r", "now", series=[series(rounds=[{"host": 10.0, "slim": 9.0}])])
    (verdict,) = judge(report)
    assert verdict.met is False


def test_bar_without_a_slim_figure_is_not_met_and_not_missed():
    report = Report("r", "now", series=[series(rounds=[{"host": 10.0}])])
    (verdict,) = judge(report)
    assert verdict.met is None


def test_one_round_with_a_failure_is_one_too_many():
    rounds = [{"slim": 0.0}, {"slim": 0.0}, {"slim": 2.0}]
    failed = series("setups16", "errors", "", "lower", rounds=rounds)
    failed.placement = "two"
    (verdict,) = judge(Report("r", "now", series=[failed]))
    assert (verdict.value, verdict.met) == (2.0, False)


def test_json_has_raw_rounds_and_a_schema_number(report):
    data = json.loads(json.dumps(report.to_json()))
    assert data["schema"] == 1
    assert data["series"][0]["rounds"] == report.series[0].rounds
    assert data["series"][0]["ratios"]["slim/host"]["count"] == 2
    assert data["proofs"][0]["proven"] is True


class Checker(HTMLParser):
    """Open tags, and addresses of anything that is loaded."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self):
        super().__init__()
        self.open = []
        self.loaded = []
        self.cells = []
        self.scripts = 0

    def handle_starttag(self, tag, attrs):
        self.scripts += tag == "script"
        self.loaded += [v for k, v in attrs if k in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> while {self.open[-3:]} are open"
        self.open.pop()


def test_page_is_well_formed_and_self_contained(report):
    pytest.importorskip("jinja2")
    from bench.page import render

    text = render(report)
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert checker.loaded == [] and checker.scripts == 0
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<svg" in text and "Gbit/s" in text and "µs" in text
    assert "&lt;script&gt;" in text
    assert "Title &lt;stream&gt;" in text


def test_page_of_an_empty_report():
    pytest.importorskip("jinja2")
    from bench.page import render

    assert "Conditions" in render(Report("nothing", "now"))


def test_text_has_aligned_columns(report):
    lines = render_text(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("Figure"))
    end = lines[head].index("overlay") + len("overlay")
    assert lines[head + 2][:end].endswith("40.00")
    assert "NOT MET" not in render_text(report)


@pytest.mark.parametrize(
    ("proof", "proven"),
    [
        ({"table_slim": 3}, True),
        ({}, False),
        ({"table_slim": 3, "table_overlay": 1}, False),
        ({"table_slim": 3, "device_slim_bytes": 2, "device_overlay_bytes": 100}, True),
        ({"table_slim": 3, "device_slim_bytes": 3, "device_overlay_bytes": 100}, False),
        ({"probe_connections": 100, "probe_host_path": 99}, True),
        ({"probe_connections": 100, "probe_host_path": 98, "table_slim": 5}, False),
        ({"connects_slim": 1000, "connects_overlay": 3}, True),
        ({"connects_slim": 1000, "connects_overlay": 3, "table_slim": 9, "table_overlay": 1}, True),
        ({"connects_slim": 67, "connects_overlay": 1}, False),
        (
            {
                "connects_slim": 67,
                "connects_overlay": 1,
                "device_slim_bytes": 0,
                "device_overlay_bytes": 9,
            },
            True,
        ),
        (
            {
                "connects_slim": 67,
                "connects_overlay": 2,
                "device_slim_bytes": 0,
                "device_overlay_bytes": 9,
            },
            False,
        ),
        ({"connects_slim": 1000, "connects_overlay": 30, "table_slim": 9}, False),
        ({"table_slim": 3, "problem": "the load failed"}, False),
    ],
)
def test_proof_needs_every_source_that_speaks(proof, proven):
    assert Proof("c", "across", "one", **proof).proven is proven


@pytest.mark.parametrize(
    ("high", "expected"),
    [(32.4, [0, 10, 20, 30, 40]), (1.0, [0, 0.5, 1.0]), (0.0, [0, 1]), (0.24, [0, 0.1, 0.2, 0.3])],
)
def test_ticks_are_round_and_reach_the_value(high, expected):
    assert ticks(high) == pytest.approx(expected)


def test_human_bytes():
    assert [human_bytes(n) for n in (12, 12_300, 4.2e9)] == ["12 B", "12.3 kB", "4.2 GB"]
