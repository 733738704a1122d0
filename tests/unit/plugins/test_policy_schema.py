# SPDX-License-Identifier: Apache-2.0
"""docs/policy.schema.json, which editors read, says what the router's own code says.

It may be milder, where a schema cannot tell; it is never stricter.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slim_router import policy
from tests.unit.plugins.test_policy_data import BAD, GOOD, refused, with_rule

jsonschema = pytest.importorskip("jsonschema", reason="the schema is tried with it")

PATH = Path(__file__).resolve().parents[3] / "docs" / "policy.schema.json"
SCHEMA: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
MILDER = ("has bits set", "ends before")
"""What only arithmetic tells."""


def fits(value: Any) -> bool:
    return bool(jsonschema.Draft7Validator(SCHEMA).is_valid(value))


def test_it_is_a_schema_and_its_bounds_are_the_code_s() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    parts = SCHEMA["definitions"]
    rule = parts["rule"]["properties"]
    assert tuple(parts["policy"]["properties"]) == policy.KEYS
    assert tuple(rule) == policy.RULE_KEYS
    assert tuple(parts["action"]["enum"]) == policy.ACTIONS
    assert parts["policy"]["properties"]["rules"]["maxItems"] == policy.RULES_MAX
    assert parts["prefixes"]["maxItems"] == rule["ports"]["maxItems"] == policy.LISTED_MAX
    assert rule["comment"]["maxLength"] == policy.COMMENT_MAX


def test_good_lists_fit_as_a_file_and_as_group_variables() -> None:
    for value in (GOOD, {**GOOD, "rules": []}, {**GOOD, "version": 1, "revision": 7}):
        assert fits(value)
        assert fits({"slim_policy": value, "other": 1})


@pytest.mark.parametrize(("value", "words"), BAD)
def test_what_the_code_refuses_does_not_fit(value: Any, words: str) -> None:
    milder = any(each in words for each in MILDER)
    assert fits(value) is milder
    assert fits({"slim_policy": value}) is milder


def near(pattern: str) -> st.SearchStrategy[str]:
    """Text that is right, or nearly so."""
    right = st.from_regex(re.compile(pattern), fullmatch=True)
    return right | st.builds(lambda a, b: a + b, right, st.sampled_from(["/", "-", ".", ":", "0"]))


OCTETS = r"[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,3})?"
GROUPS = r"[0-9a-f]{0,4}(:[0-9a-f]{0,4}){1,8}(\.[0-9]{1,3}){0,4}(/[0-9]{1,3})?"
ADDRESSES = (
    near(OCTETS)
    | near(GROUPS)
    | st.builds(lambda a, n: f"{a}/{n}", st.ip_addresses(), st.integers(0, 129))
    | st.ip_addresses().map(str)
    | st.ip_addresses(v=4).map(lambda a: f"::ffff:{a}")
    | st.text(max_size=4)
)
PORTS = (
    st.integers(-1, 65537)
    | near("[0-9]{1,6}(-[0-9]{1,6})?")
    | st.booleans()
    | st.none()
    | st.text(max_size=3)
)
WORDS = st.text(max_size=260) | st.none() | st.integers()


@settings(deadline=None)  # who is kept from running is not slow
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "sources": st.none() | st.lists(ADDRESSES, max_size=2),
            "destinations": st.lists(ADDRESSES, max_size=1),
            "ports": st.none() | st.lists(PORTS, max_size=3),
            "tenant": WORDS,
            "comment": WORDS,
            "id": near("[A-Za-z0-9._:-]{1,64}"),
        },
    )
)
@example({"ports": ["00080", "1-65535", 65535], "sources": ["::", "0.0.0.0/0", "10.0.0.0/008"]})
@example({"sources": ["::ffff:10.44.0.0/112", "fd44::/064"], "tenant": "\u00fc", "comment": ""})
def test_what_the_code_takes_fits(fields: dict[str, Any]) -> None:
    value = with_rule(**fields)
    if not refused(value):
        assert fits(value)
