# SPDX-License-Identifier: Apache-2.0
"""/etc/slim/qos.json: what it may hold, how it is changed, what follows for sockets.

Rates are bits per second, counted as bytes of whole frames (Ethernet header included,
preamble and checksum not); 0 is "no limit". The router reads ``sockets`` of each
endpoint, which is computed here, so that the table of classes stands in one place.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

FORMAT = 1
FILE_MAX = 64 * 1024 * 1024
MARK = 0x5C000000
"""Upper half of our packet marks; the lower holds endpoint and class."""
RATE_MIN, RATE_MAX = 64_000, 400_000_000_000
INDEX_MAX = 4094
PROBE_INDEX = 4095
RULES_MAX = 256
NORMAL = 3
# Ethernet 14, IPv4 20, TCP with timestamps 32, in a frame of 1514 bytes: what the
# kernel's pacing counts is payload (net/ipv4/tcp_output.c, tcp_update_skb_after_send).
PAYLOAD, FRAME = 1448, 1514
UNITS = {"": 1, "bit": 1, "k": 10**3, "kbit": 10**3, "m": 10**6, "mbit": 10**6,
         "g": 10**9, "gbit": 10**9}  # fmt: skip


class SettingsError(ValueError):
    """What was asked cannot be; the text names thing, cause and next step."""


@dataclass(frozen=True, slots=True)
class Class:
    """How urgent, and which code point says so to the network."""

    priority: int = NORMAL  # 0 to 7, 7 goes first
    dscp: int = 0  # 0 to 63


CLASSES = {
    "bulk": Class(1, 10),  # AF11
    "normal": Class(NORMAL, 0),
    "interactive": Class(5, 18),  # AF21
    "realtime": Class(7, 46),  # EF
}
"""By name. Code points after RFC 4594, table 3."""

SO_PRIORITY = (2, 2, 2, 0, 4, 4, 6, 6)
"""By priority: bands 2, 1 and 0 of pfifo_fast and prio (linux/pkt_sched.h, TC_PRIO_*)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The class of connections to some ports of the service."""

    first: int
    last: int
    klass: Class


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates; 0 is none."""

    egress: int = 0
    ingress: int = 0
    connection: int = 0  # of each connection, in the direction that leaves


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of this host."""

    tenant: str
    name: str
    vip: str
    netns: str
    index: int = 0  # part of its mark; ours to choose, 0 is none yet
    limits: Limits = field(default_factory=Limits)
    klass: Class = field(default_factory=Class)
    rules: tuple[Rule, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """(tenant, name)."""
        return (self.tenant, self.name)

    @property
    def priorities(self) -> list[int]:
        """Those that its connections may have, the highest first."""
        return sorted({self.klass.priority, *(r.klass.priority for r in self.rules)}, reverse=True)

    def minor(self, priority: int) -> int:
        """Lower half of its mark, and the minor number of its leaf in the queues."""
        return self.index << 3 | priority


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file."""

    mark: int = MARK
    address: str = ""  # of the host; the device that has it is shaped
    devices: tuple[str, ...] = ()  # instead of that one
    link: int = 0  # rate of the link, shared by priority; 0: the link is let alone
    replace_root: bool = False  # somebody else's root qdisc may make way
    endpoints: tuple[Endpoint, ...] = ()

    @property
    def limited(self) -> bool:
        """Is there an endpoint with a rate of its own?"""
        return any(e.limits.egress or e.limits.ingress for e in self.endpoints)


# --- reading -------------------------------------------------------------------


def rate(value: object, what: str) -> int:
    """Bits per second from a number or from text such as 100Mbit. Raises SettingsError."""
    found: float
    if isinstance(value, str):
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)(?:/s)?", value.strip().lower())
        if match is None or match[2] not in UNITS:
            raise SettingsError(
                f"{what}: {value!r} is not a rate; give bits per second, or a number with kbit, mbit or gbit"
            )
        found = float(match[1]) * UNITS[match[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found = value
    else:
        raise SettingsError(f"{what}: {value!r} is not a rate; give bits per second or 100mbit")
    if found and not RATE_MIN <= found <= RATE_MAX:
        raise SettingsError(
            f"{what}: {value} is not from {RATE_MIN} to {RATE_MAX} bits per second; 0 is no limit"
        )
    return int(found)


def _number(value: object, what: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(
            f"{what}: {value!r} is not a whole number from {low} to {high}; correct it"
        )
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value or len(value) > 4095:
        raise SettingsError(f"{what}: {value!r} is not a name; give a non-empty string")
    return value


def _object(value: object, what: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{what}: not an object; run the slim_qos role again")
    for name in value:
        if name not in known:
            raise SettingsError(
                f"{what}: unknown key {name!r}; remove it, the known keys are {', '.join(known)}"
            )
    return value


def _list(value: object, what: str, longest: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > longest:
        raise SettingsError(f"{what}: not a list of at most {longest}; correct it")
    return value


def klass(value: dict[str, Any], what: str, now: Class | None = None) -> Class:
    """A class from {class: NAME} or {priority: N}, each with dscp or without; dscp alone
    leaves the rest as it is *now*."""
    name, priority, dscp = value.get("class"), value.get("priority"), value.get("dscp")
    if name is not None and name not in CLASSES:
        raise SettingsError(
            f"{what}: class {name!r} is not known; choose one of {', '.join(CLASSES)}, or a priority"
        )
    found = now or Class() if name is None else CLASSES[name]
    if priority is not None:
        if name is not None:
            raise SettingsError(f"{what}: both class and priority; give one of them")
        found = Class(_number(priority, f"{what}: priority", 0, 7), 0)
    if dscp is not None:
        found = replace(found, dscp=_number(dscp, f"{what}: dscp", 0, 63))
    return found


def span(value: object, what: str) -> tuple[int, int]:
    """(first, last) from 80 or from "8000-8010"."""
    first, _dash, last = str(value).partition("-")
    if not all(
        part.isascii() and part.isdigit() and len(part) < 6 for part in (first, last or first)
    ):
        raise SettingsError(f"{what}: {value!r} is not a port or a range; write 80 or 8000-8010")
    low, high = (_number(int(part), what, 1, 65535) for part in (first, last or first))
    if low > high:
        raise SettingsError(f"{what}: {value} begins behind its end; put the lower port first")
    return low, high


def _endpoint(value: object, what: str) -> Endpoint:
    entry = _object(
        value, what, ("tenant", "name", "vip", "netns", "index", "limits", "classes", "sockets")
    )
    limits = _object(
        entry.get("limits", {}), f"{what}: limits", ("egress", "ingress", "connection")
    )
    classes = _object(entry.get("classes", {}), f"{what}: classes", ("default", "ports"))
    rules = []
    for number, rule in enumerate(_list(classes.get("ports", []), f"{what}: ports", RULES_MAX)):
        here = f"{what}: ports {number}"
        fields = _object(rule, here, ("first", "last", "priority", "dscp"))
        first, last = span(f"{fields.get('first')}-{fields.get('last')}", here)
        rules.append(Rule(first, last, klass(fields, here)))
    default = _object(classes.get("default", {}), f"{what}: default", ("priority", "dscp"))
    vip = _text(entry.get("vip"), f"{what}: vip")
    try:
        ipaddress.ip_address(vip)
    except ValueError:
        raise SettingsError(f"{what}: vip {vip!r} is not an address; correct it") from None
    return Endpoint(
        tenant=_text(entry.get("tenant"), f"{what}: tenant"),
        name=_text(entry.get("name"), f"{what}: name"),
        vip=vip,
        netns=_text(entry.get("netns"), f"{what}: netns"),
        index=_number(entry.get("index", 0), f"{what}: index", 0, INDEX_MAX),
        limits=Limits(**{name: rate(limits.get(name, 0), f"{what}: {name}") for name in limits}),
        klass=klass(default, f"{what}: default"),
        rules=tuple(rules),
    )


def parse(value: object, what: str = "qos.json") -> Settings:
    """Checked settings from decoded JSON. Raises SettingsError."""
    top = _object(
        value, what,
        ("version", "mark", "address", "devices", "link", "replace_root", "endpoints"),
    )  # fmt: skip
    if top.get("version") != FORMAT:
        raise SettingsError(
            f"{what}: version {top.get('version')!r}, this program reads {FORMAT};"
            " deploy file and program of one collection version"
        )
    endpoints = _list(top.get("endpoints", []), f"{what}: endpoints", INDEX_MAX)
    settings = Settings(
        mark=_mark(top.get("mark", MARK), what),
        address=str(top.get("address", "")),
        devices=tuple(
            _text(name, f"{what}: devices") for name in _list(top.get("devices", []), what, 64)
        ),
        link=rate(top.get("link", 0), f"{what}: link"),
        replace_root=top.get("replace_root", False) is True,
        endpoints=tuple(_endpoint(e, f"{what}: endpoint {n}") for n, e in enumerate(endpoints)),
    )
    return _check(settings, what)


def _mark(value: object, what: str) -> int:
    mark = _number(value, f"{what}: mark", 0x10000, 0x7FFF0000)
    if mark & 0xFFFF:
        raise SettingsError(f"{what}: mark {mark:#x}: its lower 16 bits are ours; clear them")
    return mark


def _check(settings: Settings, what: str) -> Settings:
    for kind, seen in (
        ("endpoint", Counter("/".join(e.key) for e in settings.endpoints)),
        ("index", Counter(str(e.index) for e in settings.endpoints if e.index)),
    ):
        twice = next((name for name, times in seen.items() if times > 1), "")
        if twice:
            raise SettingsError(f"{what}: {kind} {twice} appears twice; keep one of them")
    return settings


def load(path: Path) -> Settings:
    """The file; an absent one is empty settings. Raises SettingsError."""
    try:
        if path.stat().st_size > FILE_MAX:
            raise SettingsError(f"{path}: larger than {FILE_MAX} bytes; it cannot be ours")
        return parse(json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}; run as root") from error
    except SettingsError:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, too
        raise SettingsError(
            f"{path}: damaged ({error}); remove it and run the slim_qos role again"
        ) from error


# --- writing -------------------------------------------------------------------


def sockets(settings: Settings, endpoint: Endpoint) -> dict[str, Any]:
    """What the router sets on the endpoint's host connections."""
    pacing = endpoint.limits.connection // 8 * PAYLOAD // FRAME

    def treatment(klass: Class) -> dict[str, int]:
        return {
            "mark": settings.mark | endpoint.minor(klass.priority),
            "priority": SO_PRIORITY[klass.priority],
            "tos": klass.dscp << 2,
            "pacing": pacing,
        }

    return {
        "default": treatment(endpoint.klass),
        "ports": [[rule.first, rule.last, treatment(rule.klass)] for rule in endpoint.rules],
    }


def as_json(settings: Settings) -> dict[str, Any]:
    """The file's content."""
    return {
        "version": FORMAT,
        "mark": settings.mark,
        "address": settings.address,
        "devices": list(settings.devices),
        "link": settings.link,
        "replace_root": settings.replace_root,
        "endpoints": [
            {
                "tenant": e.tenant,
                "name": e.name,
                "vip": e.vip,
                "netns": e.netns,
                "index": e.index,
                "limits": asdict(e.limits),
                "classes": {
                    "default": asdict(e.klass),
                    "ports": [
                        {"first": r.first, "last": r.last, **asdict(r.klass)} for r in e.rules
                    ],
                },
                "sockets": sockets(settings, e),
            }
            for e in settings.endpoints
        ],
    }


def save(settings: Settings, path: Path) -> None:
    """Replace the file, so that a reader never sees half of it. Raises OSError."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    with fresh.open("w", encoding="utf-8") as stream:
        os.fchmod(stream.fileno(), 0o600)
        json.dump(as_json(settings), stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)


# --- changing ------------------------------------------------------------------


def edit(settings: Settings, change: object) -> Settings:
    """*settings* after a change. Raises SettingsError.

    {"base": {...}}: mark, address, devices, link, replace_root, and the endpoints of the
    host (limits and classes of those that stay are kept). {"limits": [...]} and
    {"classes": [...]}: of endpoints that are there; what an entry leaves out stays.
    """
    parts = _object(change, "change", ("base", "limits", "classes"))
    if "base" in parts:
        settings = _rebase(settings, parts["base"])
    for entry in _list(parts.get("limits", []), "limits", INDEX_MAX):
        wanted = _object(entry, "limit", ("endpoint", "tenant", "egress", "ingress", "connection"))
        target, what = _target(settings, wanted)
        given = {
            name: rate(wanted[name], f"{what}: {name}")
            for name in ("egress", "ingress", "connection")
            if wanted.get(name) is not None
        }
        settings = _put(settings, replace(target, limits=replace(target.limits, **given)))
    for entry in _list(parts.get("classes", []), "classes", INDEX_MAX):
        wanted = _object(
            entry, "class", ("endpoint", "tenant", "class", "priority", "dscp", "ports")
        )
        target, what = _target(settings, wanted)
        if any(wanted.get(name) is not None for name in ("class", "priority", "dscp")):
            target = replace(target, klass=klass(wanted, what, target.klass))
        if wanted.get("ports") is not None:
            target = replace(target, rules=_rules(wanted["ports"], what))
        settings = _put(settings, target)
    return _check(settings, "change")


def _rules(value: object, what: str) -> tuple[Rule, ...]:
    rules = []
    for number, item in enumerate(_list(value, f"{what}: ports", RULES_MAX)):
        here = f"{what}: ports {number}"
        fields = _object(item, here, ("ports", "class", "priority", "dscp"))
        for ports in _list(fields.get("ports"), here, RULES_MAX):
            rules.append(Rule(*span(ports, here), klass(fields, here)))
    if len(rules) > RULES_MAX:
        raise SettingsError(
            f"{what}: {len(rules)} ranges of ports, {RULES_MAX} are possible; join some"
        )
    return tuple(rules)


def _target(settings: Settings, wanted: dict[str, Any]) -> tuple[Endpoint, str]:
    name, tenant = wanted.get("endpoint"), wanted.get("tenant")
    found = [e for e in settings.endpoints if e.name == name and tenant in (None, e.tenant)]
    if not found:
        raise SettingsError(
            f"endpoint {name}: not among the endpoints of this host; run the slim_qos role,"
            " or ask the endpoint's own host"
        )
    if len(found) > 1:
        raise SettingsError(f"endpoint {name}: of {len(found)} tenants; say which")
    return found[0], f"endpoint {name}"


def _put(settings: Settings, target: Endpoint) -> Settings:
    return replace(
        settings,
        endpoints=tuple(target if e.key == target.key else e for e in settings.endpoints),
    )


def _rebase(old: Settings, value: object) -> Settings:
    base = _object(
        value, "base", ("mark", "address", "devices", "link", "replace_root", "endpoints")
    )
    new = parse({"version": FORMAT, **base}, "base")
    known = {endpoint.key: endpoint for endpoint in old.endpoints}
    taken = {known[e.key].index for e in new.endpoints if e.key in known}
    endpoints = []
    free = (index for index in range(1, INDEX_MAX + 1) if index not in taken)
    for endpoint in new.endpoints:
        held = known.get(endpoint.key)
        if held is None:
            endpoints.append(replace(endpoint, index=next(free)))
        else:
            endpoints.append(replace(held, vip=endpoint.vip, netns=endpoint.netns))
    return replace(new, endpoints=tuple(endpoints))
