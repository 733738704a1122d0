# SPDX-License-Identifier: Apache-2.0
"""docs/policy.schema.json, which editors read, says what the router's own code says.

It may be milder where a schema cannot tell, and nowhere else; it is never stricter.
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
from slim_router.reader import ConfigError
from tests.fuzz.fuzzing import bend, generator, runs
from tests.fuzz.test_fuzz_policy import POLICY
from tests.unit.plugins.test_policy_data import BAD, GOOD, refused, with_rule
from tests.unit.router.test_policy import BAD as BAD_FOR_ROUTERS

jsonschema = pytest.importorskip("jsonschema", reason="the schema is tried with it")

PATH = Path(__file__).resolve().parents[3] / "docs" / "policy.schema.json"
SCHEMA: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))
JUDGE = jsonschema.Draft7Validator(SCHEMA)
MILDER = (
    "has bits set", "ends before", "reaches beyond",  # what only arithmetic tells
    "has it already",  # and what only the other rules do
    r"\.0 is not ",  # 80.0 is an integer in JSON Schema
    r"'.*:.*' is not an IPv4", r"'.*:.*' has no length",  # of hexadecimal digits and colons
    r"is not text", "longer than 255 bytes",  # code points, counted in bytes
    "holds a control",  # the rarer ones
    r"\\n' is not ", r"\\n' has no length",  # Python's $ lets a line feed pass, ECMA's does not
)  # fmt: skip
"""Why the code may refuse what fits."""


def fits(value: Any) -> bool:
    return bool(JUDGE.is_valid(value))


def cause(value: Any) -> str:
    """Why the router would refuse it; empty if it would not."""
    try:
        policy.parse({"version": 1, "revision": 0, **value} if isinstance(value, dict) else value)
    except ConfigError as error:
        return str(error)
    return ""


def judged_alike(value: Any) -> bool:
    """Do schema and code say the same, but for what a schema cannot tell?"""
    why = cause(value)
    return fits(value) is not bool(why) or (
        fits(value) and any(re.search(each, why) for each in MILDER)
    )


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
    milder = any(each in words for each in ("has bits set", "ends before"))
    assert fits(value) is milder
    assert fits({"slim_policy": value}) is milder


# (jsonschema cannot put a number of thousands of digits into its own message.)
@pytest.mark.parametrize(
    ("value", "words"), [each for each in BAD_FOR_ROUTERS if "this number" not in each[1]]
)
def test_what_the_router_s_own_tests_refuse_does_not_fit(value: Any, words: str) -> None:
    assert judged_alike(value), words


def test_bent_lists_are_judged_alike() -> None:
    rng = generator("schema")
    seen = set()
    for _unused in range(runs(1_000)):
        value = bend(rng, bend(rng, POLICY))
        assert judged_alike(value), (value, cause(value))
        seen.add((fits(value), bool(cause(value))))
    assert {(True, False), (False, True)} <= seen


def numbers() -> list[str]:
    """Ports of up to five digits, at every turn."""
    turns = (0, 1, 9, 10, 99, 100, 999, 1000, 5999, 6000, 9999, 10000, 59999, 60000, 64999, 65000,
             65499, 65500, 65529, 65530, 65535, 65536, 69999, 70000, 99999)  # fmt: skip
    return [f"{number:0{width}}" for number in turns for width in range(1, 6)]


def test_every_turn_of_a_port_and_of_a_length_is_judged_alike() -> None:
    ports = [*numbers(), "100000", "000080", "", "-", "-80", "80-", "80-81-82", " 80", "8O"]
    ports += [f"{one}-65535" for one in ports] + [f"1-{one}" for one in ports]
    for port in ports:
        assert judged_alike(with_rule(ports=[port])), port
    for address, bits in (("0.0.0.0", 32), ("::", 128)):
        for length in range(bits + 200):
            for text in (f"{length}", f"{length:02}", f"{length:03}", f"{length:04}"):
                source = f"{address}/{text}"
                assert judged_alike(with_rule(sources=[source])), source


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
