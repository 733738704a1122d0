# SPDX-License-Identifier: Apache-2.0
"""The policy: reading, normal form, slices, the compiled table, differences, findings.

JSON --parse--> Policy --Slicer--> Slice --pieces--> Assembler --> Slice --> Table.decide
  \\                                                                           /
   +---- naive first match with the standard library's networks --- must agree +
"""

from __future__ import annotations

import copy
import ipaddress
import json
import random
import time
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slim_router import matcher, policy, prefix, slices
from slim_router.changes import diff
from slim_router.findings import covers, findings
from slim_router.link import MESSAGE_MAX
from slim_router.matcher import NONE, Side, Table
from slim_router.policy import Policy, Rule, dump, first_match, parse
from slim_router.prefix import Prefix
from slim_router.reader import ConfigError
from slim_router.slices import Assembler, PieceError, Slicer, slice_for
from slim_router.wire import pack_addr, unpack_addr

RULE: dict[str, Any] = {
    "id": "web",
    "action": "allow",
    "sources": ["10.44.0.0/16"],
    "destinations": ["10.44.1.7"],
    "ports": [80, "8000-8080"],
    "tenant": "blue",
    "comment": "front end",
}
POLICY: dict[str, Any] = {"version": 1, "revision": 7, "default": "deny", "rules": [RULE]}


def _policy(*rules, **changes):
    return {**POLICY, "rules": list(rules), **changes}


def _with(**changes):
    return _policy({**RULE, **changes})


def _without(value, key):
    return {k: v for k, v in value.items() if k != key}


# --- a second opinion, without any of our code ----------------------------------


def _address(text):
    found = ipaddress.ip_address(text)
    return getattr(found, "ipv4_mapped", None) or found


def _networks(listed):
    made = []
    for text in listed or ():
        found = ipaddress.ip_network(text)
        mapped = getattr(found.network_address, "ipv4_mapped", None)
        if mapped is not None and found.prefixlen >= 96:
            found = ipaddress.ip_network((mapped, found.prefixlen - 96))
        made.append(found)
    return made


def _holds(networks, address):
    return any(address in each for each in networks if each.version == address.version)


class Naive:
    """The JSON form itself, judged rule by rule."""

    def __init__(self, value):
        self.default = value["default"] == "allow"
        self.rules = []
        for rule in value["rules"]:
            ports = []
            for item in rule.get("ports") or ():
                low, _unused, high = str(item).partition("-")
                ports.append(range(int(low), int(high or low) + 1))
            self.rules.append(
                (
                    rule["action"] == "allow",
                    _networks(rule.get("sources")),
                    _networks(rule.get("destinations")),
                    ports,
                    rule.get("tenant"),
                )
            )

    def decide(self, tenant, source, destination, dport):
        one, two = _address(source), _address(destination)
        for index, (allows, sources, destinations, ports, whose) in enumerate(self.rules):
            if (
                whose in (None, tenant)
                and (not sources or _holds(sources, one))
                and (not destinations or _holds(destinations, two))
                and (not ports or any(dport in each for each in ports))
            ):
                return allows, index
        return self.default, -1


# --- what hypothesis makes ---------------------------------------------------------

# Few addresses, so that prefixes nest and meet; IPv6 prefixes around the mapped ones too.
_BASES = [
    "10.44.0.0", "10.44.0.5", "10.44.1.129", "10.255.255.255", "0.0.0.0", "255.255.255.255",
    "::ffff:10.44.0.0", "fd44::", "fd44::1", "fd44:0:0:1::", "fd44::1:0:0:0", "::", "::1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::fffe:0:0", "::1:0:0:0",
]  # fmt: skip
_LENGTHS = [0, 1, 8, 15, 16, 17, 24, 25, 30, 31, 32]
_LENGTHS6 = [0, 1, 16, 48, 63, 64, 65, 80, 95, 96, 97, 112, 127, 128]


def _spellings():
    """Text of prefixes, in all of their spellings."""
    for text in _BASES:
        base = ipaddress.ip_address(text)
        mapped = getattr(base, "ipv4_mapped", None)
        whole = mapped or base
        for length in _LENGTHS6 if whole.version == 6 else _LENGTHS:
            made = ipaddress.ip_network((whole, length), strict=False)
            if mapped:
                yield f"::ffff:{made.network_address}/{96 + length}"
            else:
                yield str(made)
            if length == made.max_prefixlen:
                yield text


_PREFIXES = sorted(set(_spellings()))


def prefixes():
    return st.sampled_from(_PREFIXES)


_PORT = st.sampled_from([1, 2, 79, 80, 81, 443, 8000, 65534, 65535])
_RANGE = st.one_of(
    _PORT,
    _PORT.map(str),
    st.tuples(_PORT, _PORT).map(lambda two: f"{min(two)}-{max(two)}"),
)


def _optional(items):
    return st.one_of(st.none(), st.lists(items, min_size=1, max_size=4))


@st.composite
def policies(draw, most=12):
    """JSON of a policy that is right."""
    rules = []
    for number in range(draw(st.integers(0, most))):
        rule = {
            "id": f"r{number}",
            "action": draw(st.sampled_from(["allow", "deny"])),
            "sources": draw(_optional(prefixes())),
            "destinations": draw(_optional(prefixes())),
            "ports": draw(_optional(_RANGE)),
            "tenant": draw(st.sampled_from([None, None, "blue", "red"])),
            "comment": draw(st.sampled_from([None, "", "why: 端口 ü"])),
        }
        rules.append({key: value for key, value in rule.items() if draw(st.booleans()) or value})
    return {
        "version": 1,
        "revision": draw(st.integers(0, 2**63 - 1)),
        "default": draw(st.sampled_from(["allow", "deny"])),
        "rules": rules,
    }


def _edges(value):
    """Addresses at and beside the ends of all prefixes of a policy, as text, and a few more."""
    found = {"10.44.0.5", "fd44::1", "::1", "192.0.2.1"}
    for rule in value["rules"]:
        for each in _networks((rule.get("sources") or []) + (rule.get("destinations") or [])):
            last = 2**each.max_prefixlen - 1
            kind = ipaddress.IPv4Address if each.version == 4 else ipaddress.IPv6Address
            for number in (int(each[0]) - 1, int(each[0]), int(each[-1]), int(each[-1]) + 1):
                if 0 <= number <= last:
                    found.add(str(_address(str(kind(number)))))
    return sorted(found)


_DPORTS = st.one_of(
    st.sampled_from([1, 2, 3, 78, 79, 80, 81, 82, 442, 443, 444, 7999, 8000, 8001, 65533, 65534]),
    st.just(65535),
    st.integers(1, 65535),
)


@st.composite
def cases(draw):
    """(policy, tenant, source, destination, port), where they may meet."""
    value = draw(policies())
    ends = st.sampled_from(_edges(value))
    return (
        value,
        draw(st.lists(st.tuples(
            st.sampled_from(["blue", "red", "green"]), ends, ends, _DPORTS
        ), min_size=1, max_size=12)),
    )  # fmt: skip


# --- deciding ----------------------------------------------------------------------


def _tables(made: slices.Slice) -> tuple[Table, Table]:
    return Table(made.egress, made.default), Table(made.ingress, made.default)


@settings(max_examples=400, deadline=None)
@given(cases(), st.sampled_from([0, 4, 20, matcher.CELLS_MAX]), st.sampled_from([120, 59_000]))
def test_both_ends_decide_like_the_naive_first_match(case, room, piece):
    value, packets = case
    naive, read = Naive(value), parse(value)
    slicer = Slicer(read)
    with (
        mock.patch.object(matcher, "CELLS_MAX", room),
        mock.patch.object(slices, "PIECE_MAX", piece),
    ):
        for tenant, source, destination, dport in packets:
            src, dst = pack_addr(source), pack_addr(destination)
            wanted = naive.decide(tenant, source, destination, dport)
            assert first_match(read, tenant, src, dst, dport) == wanted
            egress, _unused = _tables(_sent(slicer, tenant, src))
            _unused, ingress = _tables(_sent(slicer, tenant, dst))
            assert egress.decide(dst, dport) == wanted
            assert ingress.decide(src, dport) == wanted


def _sent(slicer: Slicer, tenant: str, vip: bytes) -> slices.Slice:
    """What comes out at the worker's end of the link."""
    assembler = Assembler()
    found = None
    for data in slicer.pieces(tenant, vip):
        assert found is None
        assert len(data) <= MESSAGE_MAX
        found = assembler.feed(json.loads(data))
    assert found is not None
    assert found == slicer.slice_for(tenant, vip)
    return found


def _side(rules) -> Side:
    """Rules of (allows, [prefix text], [first, last, ...])."""
    made = Side()
    for index, (allows, peers, ports) in enumerate(rules):
        made.add(10 * index, allows, f"r{index}", [prefix.parse(each) for each in peers], ports)
    return made


def _naive_side(rules):
    """A judge of the same rules that shares no code with ours."""
    read = [(allows, _networks(peers), ports) for allows, peers, ports in rules]

    def decide(address, dport):
        where = _address(address)
        for index, (allows, peers, ports) in enumerate(read):
            if (
                not ports
                or any(a <= dport <= b for a, b in zip(ports[::2], ports[1::2], strict=True))
            ) and (not peers or _holds(peers, where)):
                return allows, 10 * index
        return True, -1

    return decide


def _shape(name, count):
    """Rules of one direction in a shape that hurts, and addresses that are in it."""
    rng = random.Random(f"{name}{count}")
    hosts = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count)]
    port = [1 + (7919 * n) % 65535 for n in range(count)]
    if name == "hosts":
        made = [([hosts[n]], [port[n]] * 2) for n in range(count)]
    elif name == "ports":
        made = [(["10.0.0.0/8"], [port[n]] * 2) for n in range(count)]
    elif name == "nested":
        made = [([f"{_masked(hosts[7], n % 33)}/{n % 33}"], [port[n]] * 2) for n in range(count)]
    elif name == "nested6":
        made = [([f"{_masked('fd44::7', n % 129)}/{n % 129}"], [port[n]] * 2) for n in range(count)]
    elif name == "half":
        made = [([hosts[n]] if n % 2 else ["10.0.0.0/8"], [port[n]] * 2) for n in range(count)]
    elif name == "any-half":
        made = [([hosts[n]] if n % 2 else [], [port[n]] * 2) for n in range(count)]
    elif name == "wide":
        made = [
            ([f"{_masked(hosts[n], 32 - n % 20)}/{32 - n % 20}"], [port[n] // 2 + 1, port[n]])
            for n in range(count)
        ]
    else:
        made = [
            ([f"fd44::{n >> 8:x}:{n & 255:x}"], [] if n % 3 else [80, 80]) for n in range(count)
        ]
    rules = [(rng.random() < 0.5, peers, ports) for peers, ports in made]
    rng.shuffle(rules)
    inside = [*rng.sample(hosts, min(20, count)), hosts[7 % count], "11.0.0.1", "192.0.2.1"]
    inside += ["fd44::7", "fd44::3", "fd44::1:0", "fd45::", "::", "ffff::"]
    return rules, inside, port


def _masked(text, length):
    return ipaddress.ip_network((text, length), strict=False).network_address


SHAPES = ["hosts", "ports", "nested", "nested6", "half", "any-half", "wide", "hosts6"]


@pytest.mark.parametrize("room", [0, 1000, matcher.CELLS_MAX])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_decides_like_the_naive_first_match(shape, room):
    rules, inside, ports = _shape(shape, 400)
    naive, rng = _naive_side(rules), random.Random(1)
    with mock.patch.object(matcher, "CELLS_MAX", room):
        table = Table(_side(rules), True)
    for address in inside:
        for dport in rng.sample(ports, 12):
            for beside in (dport - 1, dport, dport + 1):
                if 1 <= beside <= 65535:
                    wanted = naive(address, beside)
                    assert table.decide(pack_addr(address), beside) == wanted, (address, beside)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_shape_of_10000_rules_takes_much_room_or_time(shape):
    side = _side(_shape(shape, 10_000)[0])
    own = sum(len(ports) + 1 for ports in side.ports)
    steps = Table.compiling(side, True)
    longest, began, table = 0.0, time.thread_time(), None
    while table is None:
        step = time.thread_time()
        try:
            next(steps)
        except StopIteration as end:
            table = end.value
        longest = max(longest, time.thread_time() - step)
    assert time.thread_time() - began < 5
    assert longest < 1
    assert len(table._blocks) <= matcher.CELLS_MAX + own + 2 * len(side) + 3
    assert table.depth <= 14
    # The map of ports, the blocks, and two segments for each rule.
    assert table.size <= (1 << 17) + 4 * len(table._blocks) + 32 * len(side)


def test_the_same_rules_at_many_prefixes_share_their_cells():
    hosts = [f"10.0.{n}.1" for n in range(64)]
    one = Table(_side([(True, hosts[:1], [80, 80]), (False, ["10.0.0.0/8"], [])]), True)
    many = Table(_side([(True, hosts, [80, 80]), (False, ["10.0.0.0/8"], [])]), True)
    assert len(one._blocks) == len(many._blocks)


def test_rules_behind_one_that_matches_everything_take_no_cells():
    rules: list[Any] = [(False, [], [])]
    rules += [(True, [], [n, n]) for n in range(1, 1000)]
    assert len(Table(_side(rules), True)._blocks) == 3 + 3


def test_an_empty_table_says_the_default():
    for default in (True, False):
        for address in ("0.0.0.0", "::", "10.44.0.1", "ffff::"):
            assert Table(Side(), default).decide(pack_addr(address), 80) == (default, -1)
    # That IPv4 is kept apart costs nothing where no rule tells it from IPv6.
    assert len(Table(Side(), True)._lows) == 1


def test_ipv6_as_a_whole_does_not_hold_ipv4():
    for text in ("::/0", "::/1", "::/80", "::fffe:0:0/95"):
        table = Table(_side([(False, [text], [])]), True)
        assert table.decide(pack_addr("10.44.0.1"), 80) == (True, -1)
        assert table.decide(pack_addr("::fffe:0:1"), 80) == (False, 0)
        # What follows the IPv4 addresses on the line is in the prefix again, if it is.
        assert table.decide(pack_addr("::1:0:0:0"), 80)[0] is (text.endswith(("80", "95")))
    everything = Table(_side([(False, ["0.0.0.0/0"], [])]), True)
    assert everything.decide(pack_addr("::1:0:0:0"), 80) == (True, -1)
    assert everything.decide(pack_addr("255.255.255.255"), 80) == (False, 0)


def test_an_address_of_another_size_is_an_error():
    import struct

    with pytest.raises(struct.error):
        Table(Side(), True).decide(b"\x0a\x00\x00\x01", 80)


def test_rules_come_in_order():
    side = _side([(True, [], []), (True, [], [])])
    with pytest.raises(ValueError, match="rule 10 after rule 10"):
        side.add(10, True, "x", (), ())
    assert len(side) == 2
    with mock.patch.object(matcher, "NONE", 2), pytest.raises(ValueError, match="more than 2"):
        side.add(30, True, "x", (), ())


# --- reading and writing -------------------------------------------------------------


def test_the_documented_policy_is_read():
    read = parse(POLICY)
    assert (read.revision, read.default) == (7, "deny")
    (rule,) = read.rules
    assert str(rule) == "allow 10.44.0.0/16 to 10.44.1.7/32 port 80, 8000-8080 (tenant blue)"
    assert rule.comment == "front end"
    assert dump(read) == _policy({**RULE, "destinations": ["10.44.1.7/32"]})
    assert parse(_policy({"id": "x", "action": "deny"})).rules == (Rule("x", "deny"),)
    assert str(Rule("x", "deny")) == "deny any to any"


@settings(max_examples=300)
@given(policies())
def test_what_is_dumped_reads_as_the_same(value):
    read = parse(value)
    written = dump(read)
    assert parse(json.loads(json.dumps(written))) == read
    assert dump(parse(written)) == written


SAME = [
    ({"sources": ["::ffff:10.0.0.0/104"]}, {"sources": ["10.0.0.0/8"]}),
    ({"sources": ["::FFFF:0a00:0000/104"]}, {"sources": ["10.0.0.0/8"]}),
    ({"sources": ["::ffff:0:0/96"]}, {"sources": ["0.0.0.0/0"]}),
    ({"sources": ["10.0.0.1"]}, {"sources": ["10.0.0.1/32"]}),
    ({"sources": ["::ffff:10.0.0.1"]}, {"sources": ["10.0.0.1"]}),
    ({"sources": ["fd44::1"]}, {"sources": ["FD44:0:0::1/128"]}),
    ({"sources": ["10.0.0.0/9", "10.128.0.0/9"]}, {"sources": ["10.0.0.0/8"]}),
    ({"sources": ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/8"]}, {"sources": ["10.0.0.0/8"]}),
    (
        {"sources": ["10.0.0.3", "10.0.0.2", "10.0.0.0/31", "fd44::/16"]},
        {"sources": ["fd44::/16", "10.0.0.0/30"]},
    ),
    ({"sources": ["0.0.0.0/0", "::/0"]}, {}),
    ({"sources": ["::/1", "8000::/1", "128.0.0.0/1", "0.0.0.0/1"]}, {"sources": None}),
    ({"ports": [80, "80", "80-80"]}, {"ports": [80]}),
    ({"ports": ["81-90", 80, "85-100"]}, {"ports": ["80-100"]}),
    ({"ports": [3, 1, 2]}, {"ports": ["1-3"]}),
    ({"ports": ["1-65535"]}, {}),
    ({"ports": ["1-100", "101-65535"]}, {"ports": None}),
    ({"ports": ["0080"]}, {"ports": [80]}),
    ({"tenant": None, "comment": None}, {"comment": ""}),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_two_ways_to_say_the_same_are_equal(one, two):
    base = {"id": "x", "action": "allow"}
    assert parse(_policy({**base, **one})) == parse(_policy({**base, **two}))


DIFFERENT = [
    ({"sources": ["0.0.0.0/0"]}, {}),
    ({"sources": ["::/0"]}, {}),
    ({"sources": ["::/0"]}, {"sources": ["0.0.0.0/0"]}),
    ({"sources": ["10.0.0.1/32", "10.0.0.2/32"]}, {"sources": ["10.0.0.0/30"]}),
    ({"ports": [80, 82]}, {"ports": ["80-82"]}),
    ({"sources": ["10.0.0.1"]}, {"destinations": ["10.0.0.1"]}),
    ({"tenant": "blue"}, {}),
]


@pytest.mark.parametrize(("one", "two"), DIFFERENT)
def test_what_differs_is_not_equal(one, two):
    base = {"id": "x", "action": "allow"}
    assert parse(_policy({**base, **one})) != parse(_policy({**base, **two}))


@settings(max_examples=300)
@given(st.lists(prefixes(), max_size=12))
def test_prefixes_join_as_the_standard_library_joins_them(listed):
    ours = [str(each) for each in prefix.collapse(map(prefix.parse, listed))]
    networks = _networks(listed)
    wanted: list[str] = []
    for version in (4, 6):
        of_version = [each for each in networks if each.version == version]
        wanted += map(str, ipaddress.collapse_addresses(of_version))
    assert [str(ipaddress.ip_network(each)) for each in ours] == wanted


@settings(max_examples=200)
@given(prefixes(), prefixes())
def test_cover_is_that_of_the_standard_library(one, two):
    a, b = _networks([one, two])
    wanted = a.version == b.version and b.subnet_of(a)
    assert prefix.parse(one).covers(prefix.parse(two)) == wanted


BAD = [
    ([], "policy: a list, where an object"),
    (None, "policy: a null"),
    (_policy(version=2), "policy: version: 2, this router reads 1"),
    (_policy(version=True), "version: True"),
    (_without(POLICY, "version"), "version: missing"),
    (_without(POLICY, "revision"), "revision: missing"),
    (_without(POLICY, "default"), "default: missing"),
    (_without(POLICY, "rules"), "rules: missing"),
    (_policy(revision=-1), "revision: -1"),
    (_policy(revision=1.0), "revision: 1.0"),
    (_policy(revision="7"), "revision: '7'"),
    (_policy(default="drop"), "default: 'drop' is not an action; choose one of allow, deny"),
    (_policy(default=["allow"]), "default"),
    (_policy(colour=1), "policy: unknown key 'colour'; remove it"),
    ({**POLICY, "rules": {}}, "rules: a object, not a list"),
    ({**POLICY, "rules": "allow"}, "rules: a string, not a list"),
    ({**POLICY, "rules": [RULE] * 100_000}, "100000 rules, 50000 are possible; join"),
    (_policy("allow all"), "rule 1: a string, where an object"),
    (_policy(RULE, {**RULE, "id": "two"}, [[[]]]), "rule 3: a list, where an object"),
    (_policy(RULE, {**RULE, "colour": 1}), r"rule 2 \(web\): unknown key 'colour'"),
    (
        _policy(RULE, {"id": "x", "action": "deny"}, RULE),
        r"rule 3 \(web\): id: rule 1 \(web\) has it already; give each",
    ),
    (_policy(_without(RULE, "id")), "rule 1: id: missing"),
    (_with(id=""), "rule 1: id: '' is not an id"),
    (_with(id="a b"), "rule 1: id: 'a b' is not an id"),
    (_with(id="web\n"), "is not an id"),
    (_with(id="ü"), "is not an id"),
    (_with(id="x" * 65), "is not an id"),
    (_with(id=7), "rule 1: id: 7 is not an id"),
    (_policy(_without(RULE, "action")), r"rule 1 \(web\): action: missing"),
    (_with(action="drop"), r"rule 1 \(web\): action: 'drop' is not an action; choose"),
    (_with(action="ALLOW"), "action"),
    (_with(action=None), "action: None"),
    (_with(action={}), "action: {}"),
    (_with(sources=[]), r"rule 1 \(web\): sources: an empty list, which nothing would match"),
    (_with(sources="10.0.0.0/8"), r"rule 1 \(web\): sources: a string, not a list"),
    (_with(sources=[10]), "sources: 10 is a number, not a prefix"),
    (_with(sources=[None]), "sources: None is a null"),
    (_with(sources=["10.0.0"]), "sources: '10.0.0' is not an IPv4 or IPv6 prefix; write"),
    (_with(sources=["10.0.0.256"]), "is not an IPv4"),
    (_with(sources=["010.0.0.1"]), "is not an IPv4"),
    (_with(sources=["any"]), "is not an IPv4"),
    (_with(sources=[""]), "is not an IPv4"),
    (_with(sources=["10.0.0.1\0"]), "is not an IPv4"),
    (_with(sources=["\ud800:"]), "is not an IPv4"),
    (_with(sources=[" 10.0.0.1"]), "is not an IPv4"),
    (_with(sources=["x" * 10_000]), r"x\.\.\.' is not an IPv4"),
    (_with(sources=["10.0.0.0/33"]), "no length from 0 to 32 after the /"),
    (_with(sources=["fd44::/129"]), "no length from 0 to 128"),
    (_with(sources=["10.0.0.0/"]), "no length"),
    (_with(sources=["10.0.0.0/-8"]), "no length"),
    (_with(sources=["10.0.0.0/8/8"]), "no length"),
    (_with(sources=["10.0.0.0/255.0.0.0"]), "no length"),
    (_with(sources=["10.0.0.0/٨"]), "no length"),
    (
        _with(destinations=["10.44.1.7/16"]),
        r"rule 1 \(web\): destinations: 10.44.1.7/16 has bits set after its length;"
        " write 10.44.0.0/16, or 10.44.1.7 for this one address",
    ),
    (_with(sources=["fd44::1/64"]), "write fd44::/64"),
    (_with(sources=["::ffff:10.1.0.0/104"]), "write 10.0.0.0/8"),
    (_with(sources=["::ffff:10.0.0.0/95"]), "reaches beyond the IPv4-mapped addresses"),
    (_with(sources=["::ffff:0:0/80"]), "reaches beyond the IPv4-mapped addresses"),
    (_with(sources=["fe80::1%eth0"]), "has a scope id; leave out the %"),
    (_with(sources=["fe80::%1/64"]), "has a scope id"),
    (_with(sources=["10.0.0.1"] * 65), "sources: 65 entries, 64 are possible; divide"),
    (_with(ports=[]), "ports: an empty list"),
    (_with(ports=80), "ports: a number, not a list"),
    (_with(ports="80"), "ports: a string, not a list"),
    (_with(ports=[0]), r"rule 1 \(web\): ports: 0 is not from 1 to 65535"),
    (_with(ports=[70000]), r"rule 1 \(web\): ports: 70000 is not from 1 to 65535"),
    (_with(ports=["70000"]), "'70000' is not from 1 to 65535"),
    (_with(ports=["0-5"]), "'0-5' is not from 1"),
    (_with(ports=["5-65536"]), "'5-65536' is not from 1"),
    (_with(ports=["5-0"]), "'5-0' is not from 1"),
    (_with(ports=["9-3"]), "ports: '9-3' ends before it begins; write it as \"3-9\""),
    (_with(ports=[True]), "ports: True is not a port"),
    (_with(ports=[80.0]), "ports: 80.0 is not a port"),
    (_with(ports=[float("nan")]), "is not a port"),
    (_with(ports=[-1]), "-1 is not from 1"),
    (_with(ports=["-1"]), "is not a port"),
    (_with(ports=["80 "]), "is not a port"),
    (_with(ports=["80\n"]), "is not a port"),
    (_with(ports=["1-2-3"]), "is not a port"),
    (_with(ports=["http"]), "is not a port"),
    (_with(ports=["٨٠"]), "is not a port"),
    (_with(ports=[[80, 90]]), r"\[80, 90\] is not a port"),
    (_with(ports=[10**5000]), "ports: this number is not from 1"),
    (_with(ports=[None]), "None is not a port"),
    (_with(ports=list(range(1, 66))), "ports: 65 entries, 64 are possible"),
    (_with(tenant=""), "tenant: a string, not a name"),
    (_with(tenant=5), "tenant: a number"),
    (_with(tenant="a b"), "tenant: 'a b' holds a space"),
    (_with(tenant="t" * 256), "tenant: longer than 255"),
    (_with(comment=5), "comment: a number, not text"),
    (_with(comment="c" * 257), "comment: 257 characters, 256 are possible"),
    (_with(comment="a\nb"), "comment: holds a control character"),
    (_with(comment="\x1b[31m"), "comment: holds a control"),
    (_with(comment="\ud800"), "comment: holds a control"),
    (_with(comment="\u202e"), "comment: holds a control"),
    (_with(comment="a\u2028b"), "comment: holds a control"),
]


@pytest.mark.parametrize(("value", "words"), BAD)
def test_bad_input_is_named(value, words):
    with pytest.raises(ConfigError, match=words) as error:
        parse(value)
    assert len(str(error.value)) < 500


def test_parts_are_bounded_in_all(monkeypatch):
    monkeypatch.setattr(policy, "PARTS_MAX", 8)
    parse(_policy(RULE, {**RULE, "id": "two"}))
    with pytest.raises(ConfigError, match=r"rule 3 \(three\): with it the rules have more than 8"):
        parse(_policy(RULE, {**RULE, "id": "two"}, {**RULE, "id": "three"}))


def test_as_much_as_is_possible_is_read():
    most = {
        **RULE,
        "id": "x" * 64,
        "comment": "端" * 256,
        "tenant": "t" * 255,
        "sources": [f"10.{n}.0.0/17" for n in range(64)],
        "ports": [2 * n + 1 for n in range(64)],
    }
    read = parse(_policy(most))
    assert len(read.rules[0].sources) == len(read.rules[0].ports) == 64
    made = _sent(Slicer(read), "t" * 255, pack_addr("10.44.1.7"))
    assert len(made.ingress.incidences) == 64


def test_pieces_are_as_large_as_the_link_takes():
    rules = [{**RULE, "id": f"r{n}", "tenant": None} for n in range(3000)]
    made = list(Slicer(parse(_policy(*rules))).pieces("blue", pack_addr("10.44.1.7")))
    assert 3 <= len(made) <= 6
    assert all(50_000 < len(data) <= MESSAGE_MAX for data in made[:-1])
    assert all(json.loads(data)["part"] == part for part, data in enumerate(made))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
_TRICKY = st.one_of(
    _JSON,
    st.text(alphabet="0123456789abf.:/-%", max_size=20),
    st.lists(st.text(alphabet="0123456789abf.:/-%", max_size=20), min_size=1, max_size=3),
)


@settings(max_examples=400)
@given(st.sampled_from([*POLICY, *RULE]), _TRICKY)
@example("sources", ["1::%2/3"])
def test_any_value_anywhere_is_accepted_or_a_config_error(key, value):
    changed = {**POLICY, key: value} if key in POLICY else _with(**{key: value})
    try:
        read = parse(changed, "acl.json")
    except ConfigError as error:
        assert str(error).startswith("acl.json")
    else:
        assert parse(dump(read)) == read


@settings(max_examples=200)
@given(_JSON)
def test_any_json_is_no_policy(value):
    with pytest.raises(ConfigError, match="^policy"):
        parse(value)


def test_nested_junk_is_a_config_error():
    junk: Any = []
    for _unused in range(900):
        junk = [junk]
    for key in RULE:
        with pytest.raises(ConfigError):
            parse(_with(**{key: [junk]}))


# --- slices ------------------------------------------------------------------------


def test_a_slice_has_only_what_can_concern_the_endpoint():
    read = parse(
        _policy(
            RULE,
            {**RULE, "id": "red", "tenant": "red"},
            {"id": "in", "action": "deny", "destinations": ["10.44.0.0/24"]},
            {"id": "out", "action": "deny", "sources": ["10.44.0.0/24"], "ports": [22]},
            {"id": "all", "action": "allow", "sources": ["0.0.0.0/0", "::/0"]},
        )
    )
    made = slice_for(read, "blue", pack_addr("10.44.0.9"))
    assert made.egress.ids == ["web", "in", "out", "all"]
    assert made.ingress.ids == ["in", "out", "all"]
    assert list(made.ingress.indexes) == [2, 3, 4]
    assert slice_for(read, "red", pack_addr("fd44::1")).egress.ids == ["in", "all"]
    web = slice_for(read, "blue", pack_addr("10.44.1.7"))
    assert web.ingress.ids == ["web", "out", "all"]


def _three_pieces():
    read = parse(_policy(*({**RULE, "id": f"r{n}", "tenant": None} for n in range(6))))
    with mock.patch.object(slices, "PIECE_MAX", 260):
        made = [json.loads(data) for data in Slicer(read).pieces("blue", pack_addr("10.44.1.7"))]
    assert len(made) > 2
    return made


def test_pieces_that_do_not_follow_are_refused_and_the_next_slice_is_taken():
    good = _three_pieces()
    wrong = [
        ([good[1]], "part 1, where part 0 is due"),
        ([good[0], good[0]], "part 0, where part 1 is due"),
        ([good[0], good[2]], "part 2, where part 1 is due"),
        ([good[0], good[1], good[1]], "part 1, where part 2 is due"),
        ([good[0], {**good[1], "revision": 8}], "part 1 of revision 8 amid revision 7"),
        ([good[0], {**good[1], "default": "allow"}], "amid revision 7"),
        ([good[0], {**good[1], "egress": [], "ingress": []}, *good[2:]], "rules have come of 12"),
        ([{**good[0], "last": True, "count": 12}], "rules have come of 12"),
        ([{**good[0], "last": True}], "malformed"),
        ([{**good[0], "last": 1}], "neither true nor false"),
        ([{**good[0], "part": False}], "part False"),
        ([{**good[0], "revision": "7"}], "revision '7'"),
        ([{**good[0], "egress": None}], "malformed"),
        ([{**good[0], "default": "drop"}], "malformed"),
        ([{}], "malformed"),
    ]
    assembler = Assembler()
    for messages, words in wrong:
        for message in messages[:-1]:
            assert assembler.feed(message) is None
        with pytest.raises(PieceError, match=words):
            assembler.feed(messages[-1])
        found = [assembler.feed(message) for message in copy.deepcopy(good)]
        assert found[-1] is not None
        assert found[:-1] == [None] * (len(good) - 1)


ROW: list[Any] = [3, 1, "r3", ["10.44.1.7/32"], [80, 80, 8000, 8080]]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, -1), (0, 2**32), (0, True), (0, "3"), (0, None), (1, 2), (1, "allow"), (1, []),
        (2, 5), (3, ["10.44.1.7/16"]), (3, [5]), (3, "10.44.1.7"), (3, None), (4, [80]),
        (4, [81, 80]), (4, [0, 80]), (4, [1, 65536]), (4, [80, 80, 81, 90]), (4, [80, 80, 70, 75]),
        (4, ["80", "80"]), (4, [80.0, 80.0]), (4, None),
    ],
)  # fmt: skip
def test_a_rule_that_is_none_is_refused(place, value):
    piece = {
        "op": "policy", "revision": 1, "part": 0, "last": True, "count": 1, "default": "deny",
        "egress": [ROW], "ingress": [],
    }  # fmt: skip
    assert Assembler().feed(copy.deepcopy(piece)) is not None
    row = [*ROW]
    row[place] = value
    with pytest.raises(PieceError):
        Assembler().feed({**piece, "egress": [row]})
    no_rows: list[Any] = [[[]], [ROW[:4]], [[*ROW, 1]], [ROW, ROW], [None], 5, "x"]
    for rows in no_rows:
        with pytest.raises(PieceError):
            Assembler().feed({**piece, "egress": rows, "count": 2})


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(["revision", "part", "last", "default", "egress"]), _JSON))
def test_any_piece_is_taken_or_a_piece_error(changes):
    try:
        Assembler().feed({**_three_pieces()[0], **changes})
    except PieceError:
        pass


# --- differences -----------------------------------------------------------------------


def test_what_a_new_policy_changes_is_named():
    rules = [{"id": name, "action": "allow", "ports": [n]} for n, name in enumerate("abcdef", 1)]
    old = parse(_policy(*rules))
    new = [rules[5], rules[0], {**rules[1], "ports": [2, 9], "comment": "x"}, rules[3], rules[4]]
    new.insert(2, {"id": "new", "action": "deny"})
    found = diff(old, parse(_policy(*new, default="allow", revision=9)))
    assert found.lines() == [
        "default: deny -> allow",
        "- 3 c: allow any to any port 3",
        "+ 3 new: deny any to any",
        "~ 4 b: ports 2 -> 2, 9; comment none -> 'x'",
        "> f: 6 -> 1",
    ]
    shown = found.to_json()
    assert json.loads(json.dumps(shown)) == shown
    assert shown["added"] == [{"number": 3, "id": "new", "action": "deny"}]
    assert shown["changed"][0]["fields"] == ["ports", "comment"]
    assert shown["moved"] == [{"id": "f", "from": 6, "to": 1}]
    assert not diff(old, parse(_policy(*rules, revision=8)))


@settings(max_examples=200)
@given(policies(6), policies(6), st.randoms())
def test_no_difference_is_said_exactly_where_two_policies_say_the_same(one, two, rng):
    rng.shuffle(one["rules"])
    old, new = parse(one), parse(two)
    found = diff(old, new)
    assert bool(found) == (not old.same_as(new))
    assert not diff(old, old)
    names = {rule.id for rule in new.rules}
    moved = {name for name, _unused, _unused in found.moved}
    gone = {rule.id for _unused, rule in found.removed}
    assert gone == {rule.id for rule in old.rules} - names
    assert {rule.id for _unused, rule in found.added} == names - {rule.id for rule in old.rules}
    # Without what moved, what is in both is in the same order.
    still = [rule.id for rule in old.rules if rule.id in names and rule.id not in moved]
    assert still == [rule.id for rule in new.rules if rule.id in still]
    for change in found.changed:
        assert change.before != change.after


@given(st.permutations(range(7)))
def test_as_few_as_possible_are_called_moved(order):
    old = Policy(rules=tuple(Rule(f"r{n}", "allow") for n in range(7)))
    new = Policy(rules=tuple(Rule(f"r{n}", "allow") for n in order))
    best = 0
    for chosen in range(1 << 7):
        kept = [n for n in order if chosen >> n & 1]
        if kept == sorted(kept):
            best = max(best, len(kept))
    assert len(diff(old, new).moved) == 7 - best


# --- findings -----------------------------------------------------------------------------


def _naively_covered(value):
    """(number, number of the first that covers it), pair by pair."""
    rules = []
    for rule in value["rules"]:
        ports = set()
        for item in rule.get("ports") or ["1-65535"]:
            low, _unused, high = str(item).partition("-")
            ports |= set(range(int(low), int(high or low) + 1))
        sides = []
        for name in ("sources", "destinations"):
            networks = _networks(rule.get(name) or ["0.0.0.0/0", "::/0"])
            sides.append(
                [
                    joined
                    for version in (4, 6)
                    for joined in ipaddress.collapse_addresses(
                        each for each in networks if each.version == version
                    )
                ]
            )
        rules.append((rule.get("tenant"), ports, *sides))

    def inside(inner, outer):
        return all(any(a.version == b.version and a.subnet_of(b) for b in outer) for a in inner)

    for number, late in enumerate(rules):
        for earlier, early in enumerate(rules[:number]):
            if (
                early[0] in (None, late[0])
                and late[1] <= early[1]
                and inside(late[2], early[2])
                and inside(late[3], early[3])
            ):
                yield number + 1, earlier + 1
                break


@settings(max_examples=150, deadline=None)
@given(policies(), st.sampled_from([1, 3, 2048]))
def test_covered_rules_are_found_like_pair_by_pair(value, block):
    with mock.patch("slim_router.findings.BLOCK_RULES", block):
        found = findings(parse(value))
    assert [(each.number, each.by_number) for each in found.found] == list(_naively_covered(value))
    assert found.complete
    for each in found.found:
        assert each.contradicts == (
            value["rules"][each.number - 1]["action"]
            != value["rules"][each.by_number - 1]["action"]
        )


def test_findings_name_both_rules_and_the_next_step():
    rules = [
        {"id": "wide", "action": "allow", "sources": ["10.0.0.0/8"], "ports": ["1-1000"]},
        {"id": "same", "action": "allow", "sources": ["10.1.0.0/16"], "ports": [80, 443]},
        {"id": "other", "action": "deny", "sources": ["10.2.0.0/16"], "ports": [22]},
        {"id": "beyond", "action": "deny", "sources": ["10.2.0.0/16"], "ports": [1001]},
    ]
    assert [str(each) for each in findings(parse(_policy(*rules))).found] == [
        "rule 2 (same): never matches, rule 1 (wide) covers it and says the same; remove it",
        "rule 3 (other): never matches, rule 1 (wide) covers it and contradicts it;"
        " move it before that rule, or remove it",
    ]


def test_a_rule_covers_one_that_says_less_and_not_the_reverse():
    wide = parse(_policy({"id": "wide", "action": "deny"})).rules[0]
    for field in ("sources", "destinations", "ports", "tenant"):
        less = parse(_policy({"id": "less", "action": "deny", field: RULE[field]})).rules[0]
        assert covers(wide, less)
        assert not covers(less, wide)
    red, blue = (Rule(name, "deny", tenant=name) for name in ("red", "blue"))
    assert not covers(red, blue)


def test_both_ends_of_a_prefix_in_a_rule_are_not_all_of_it():
    rules = [
        {"id": "ends", "action": "allow", "sources": ["10.0.0.0", "10.0.0.255"]},
        {"id": "all", "action": "allow", "sources": ["10.0.0.0/24"]},
        {"id": "v6", "action": "allow", "destinations": ["::/0"]},
        {"id": "v4", "action": "allow", "destinations": ["0.0.0.0/0"]},
    ]
    read = parse(_policy(*rules))
    assert not findings(read).found
    assert not covers(read.rules[0], read.rules[1])
    assert covers(read.rules[1], read.rules[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_10000_rules_are_searched_within_seconds(shape):
    rules = tuple(
        Rule(
            f"r{number}",
            "allow" if allows else "deny",
            destinations=prefix.collapse(map(prefix.parse, peers)),
            ports=tuple(zip(ports[::2], ports[1::2], strict=True)),
        )
        for number, (allows, peers, ports) in enumerate(_shape(shape, 10_000)[0])
    )
    began = time.thread_time()
    found = findings(Policy(rules=rules))
    assert time.thread_time() - began < 5
    assert found.complete
    # One more, which the last of them covers.
    again = findings(Policy(rules=(*rules, rules[-1])))
    assert again.found[-1].number == 10_001


def test_a_search_that_takes_too_long_says_how_far_it_came():
    rules = tuple(Rule(f"r{n}", "allow", ports=((n, n),)) for n in range(1, 3000))
    found = findings(Policy(rules=rules), seconds=0)
    assert not found.complete
    assert found.compared < found.pairs


def test_addresses_print_as_they_are_packed():
    for text in ("10.44.0.1", "fd44::1", "::"):
        one = Prefix(int.from_bytes(pack_addr(text), "big"), 128)
        assert str(one) == f"{unpack_addr(pack_addr(text))}/{32 if one.is_v4 else 128}"
    assert NONE == 0xFFFF
