# SPDX-License-Identifier: Apache-2.0
"""qos.json: what is read, changed and refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slim_qos import plan, settings
from slim_qos.settings import Settings, SettingsError
from slim_router import limits

BASE: dict[str, Any] = {
    "address": "192.0.2.1",
    "endpoints": [
        {"tenant": "default", "name": "c1", "vip": "10.44.0.1", "netns": "/run/netns/c1"},
        {"tenant": "default", "name": "c2", "vip": "10.44.0.2", "netns": "/run/netns/c2"},
    ],
}


def made(**change: Any) -> Settings:
    return settings.edit(settings.edit(Settings(), {"base": BASE}), change)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("0", 0), ("100mbit", 10**8), ("1.5 Gbit/s", 1_500_000_000), ("64k", 64_000),
     ("64000", 64_000), (4_000_000_000, 4 * 10**9), ("250Mbit", 250_000_000)],
)  # fmt: skip
def test_rates_are_bits_per_second(text, bits):
    assert settings.rate(text, "x") == bits


@pytest.mark.parametrize(
    "text", ["fast", "-1", "10 mbyte", "10mbps", "1e9", "63999", "401gbit", None, True, ""]
)
def test_what_is_no_rate_is_refused_by_name(text):
    with pytest.raises(SettingsError, match="^egress: "):
        settings.rate(text, "egress")


def test_an_endpoint_keeps_its_index_limits_and_classes_when_the_others_change():
    one = made(limits=[{"endpoint": "c2", "egress": "10mbit"}])
    kept = one.endpoints[1]
    others = [
        {"tenant": "default", "name": "c0", "vip": "10.44.0.9", "netns": "/run/netns/c0"},
        {"tenant": "default", "name": "c2", "vip": "10.44.0.8", "netns": "/run/netns/c2"},
    ]
    two = settings.edit(one, {"base": {**BASE, "endpoints": others}})
    assert [e.index for e in two.endpoints] == [1, kept.index]
    assert two.endpoints[1].limits == kept.limits
    assert two.endpoints[1].vip == "10.44.0.8"


def test_what_a_change_leaves_out_stays():
    one = made(limits=[{"endpoint": "c1", "egress": "10mbit", "connection": "1mbit"}])
    two = settings.edit(one, {"limits": [{"endpoint": "c1", "ingress": "5mbit"}]})
    assert two.endpoints[0].limits == settings.Limits(10**7, 5 * 10**6, 10**6)
    three = settings.edit(two, {"classes": [{"endpoint": "c1", "class": "bulk"}]})
    assert three.endpoints[0].limits == two.endpoints[0].limits


def test_writing_and_reading_is_the_same_and_the_router_can_read_it(tmp_path):
    one = made(
        limits=[{"endpoint": "c1", "egress": "1gbit", "connection": "15.14mbit"}],
        classes=[
            {"endpoint": "c1", "class": "bulk",
             "ports": [{"ports": ["80", "8000-8010"], "class": "realtime", "dscp": 40}]}
        ],
    )  # fmt: skip
    path = tmp_path / "qos.json"
    settings.save(one, path)
    assert settings.load(path) == one
    assert path.stat().st_mode & 0o777 == 0o600
    found = limits.parse(json.loads(path.read_text()))["default", "c1"]
    # 1448 of 1514 bytes are payload.
    assert found["default"] == {
        "mark": settings.MARK | 1 << 3 | 1, "priority": 2, "tos": 40, "pacing": 1_810_000,
    }  # fmt: skip
    assert [rule[:2] for rule in found["ports"]] == [[80, 80], [8000, 8010]]
    assert found["ports"][0][2]["mark"] == settings.MARK | 1 << 3 | 7
    assert found["ports"][0][2]["tos"] == 160


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limits": [{"endpoint": "c9", "egress": "1mbit"}]}, "endpoint c9: not among"),
        ({"limits": [{"endpoint": "c1", "egress": "1mbyte"}]}, "endpoint c1: egress"),
        ({"limits": [{"endpoint": "c1", "speed": 1}]}, "unknown key 'speed'"),
        ({"classes": [{"endpoint": "c1", "class": "urgent"}]}, "class 'urgent'"),
        ({"classes": [{"endpoint": "c1", "priority": 8}]}, "priority: 8"),
        ({"classes": [{"endpoint": "c1", "dscp": 64}]}, "dscp: 64"),
        ({"classes": [{"endpoint": "c1", "class": "bulk", "priority": 1}]}, "both class and"),
        ({"classes": [{"endpoint": "c1", "ports": [{"ports": ["70000"]}]}]}, "70000"),
        ({"classes": [{"endpoint": "c1", "ports": [{"ports": ["9-8"]}]}]}, "lower port first"),
        ({"base": {**BASE, "mark": 0x5C000001}}, "lower 16 bits"),
        ({"base": {**BASE, "endpoints": BASE["endpoints"] * 2}}, "appears twice"),
        ({"base": 3}, "base: not an object"),
        (["limits"], "change: not an object"),
    ],
)
def test_a_bad_change_is_refused_by_name(change, words):
    with pytest.raises(SettingsError, match=words):
        settings.edit(made(), change)


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "qos.json"
    assert settings.load(path) == Settings()
    path.write_text("{")
    with pytest.raises(SettingsError, match="damaged"):
        settings.load(path)
    path.write_text('{"version": 7}')
    with pytest.raises(SettingsError, match="version 7"):
        settings.load(path)


def test_leaves_share_no_more_than_there_is():
    for priorities in ([3], [7, 3], [7, 5, 3, 1], list(range(8))):
        rates = plan.leaf_rates(10**9, priorities)
        assert set(rates) == set(range(8))
        assert min(rates.values()) > 0
        assert sum(rates.values()) <= 10**9


def test_classes_are_of_limited_endpoints_and_of_the_probe():
    one = made(limits=[{"endpoint": "c2", "egress": "10mbit"}])
    minors = {c.minor for c in plan.classes(one, "egress")}
    index = one.endpoints[1].index
    leaves = {i << 3 | priority for i in (4095, index) for priority in range(8)}
    assert minors == {0x8FFF, 0x8000 | index} | leaves
    assert plan.classes(one, "ingress") == []


def test_a_code_point_alone_leaves_the_priority():
    urgent = made(classes=[{"endpoint": "c1", "class": "realtime"}])
    marked = settings.edit(urgent, {"classes": [{"endpoint": "c1", "dscp": 40}]})
    (found,) = (e.klass for e in marked.endpoints if e.name == "c1")
    assert (found.priority, found.dscp) == (7, 40)
