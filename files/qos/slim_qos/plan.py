# SPDX-License-Identifier: Apache-2.0
"""What the kernel should have, computed from the settings: trees of classes, filters.

::

    host connections                       the endpoint's fallback
    out: device, lo  --leaves-->  +-----------+  <--from_fallback-- its veth (host's end)
                                  | slim-out  |     (to this host; what goes elsewhere is
                                  | htb 5c:   |      marked there and leaves by the device)
                                  +-----------+
    in:  device, lo  --enters-->  +-----------+  <--to_fallback---- its veth
                                  | slim-in   |
                                  | htb 5d:   |
                                  +-----------+

Both are ifb devices: what comes back out of them goes on where it was taken. So one
class sees all that an endpoint sends, whatever way it takes, and no root qdisc of the
host is touched. With ``link`` the device's own root is an htb, too (5e:), which
shares the link by priority.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from slim_qos import programs
from slim_qos.kernel import Class
from slim_qos.settings import PROBE_INDEX, SO_PRIORITY, Endpoint, Settings

OUT, IN, LINK = 0x5C0000, 0x5D0000, 0x5E0000
"""Handles of our queues."""
OUT_DEVICE, IN_DEVICE = "slim-out", "slim-in"
INNER = 0x8000  # plus the endpoint's index: the class above its leaves
PROBE_RATE = 1_000_000_000
ROOT_MINOR, LINK_BASE = 1, 0x10
# Hundredths of the link that a priority has whatever the others want.
LINK_SHARES = (2, 3, 5, 20, 10, 20, 20, 20)
LINK_BURST_US = 250
"""What bulk sends at once is what the urgent ones wait for, on a device as fast as its link."""
NORMAL = 3
NAME = "slim"


@dataclass(frozen=True, slots=True)
class Filter:
    """A classifier that is to be at a place, and what makes it."""

    name: str
    make: Callable[[], int]  # a descriptor of the program
    redirect: str = ""  # name of an ifb, or ""


def leaf_rates(total: int, priorities: list[int]) -> dict[int, int]:
    """What each leaf may have before it has to ask: four tenths for the urgent ones
    together, one tenth for the others; one that is alone has nine. The priorities that
    are not used have a hundredth each: a live connection keeps the class that it was
    made with, and must find the endpoint's limit there."""
    urgent = [p for p in priorities if p > NORMAL]
    other = [p for p in priorities if p <= NORMAL]
    rates = dict.fromkeys(range(8), total // 100)
    if len(priorities) == 1:
        return rates | {priorities[0]: total * 9 // 10}
    rates |= {p: total * 4 // 10 // len(urgent) for p in urgent}
    return rates | {p: total // 10 // len(other) for p in other}


def _endpoint_classes(index: int, rate: int, priorities: list[int]) -> list[Class]:
    inner = INNER | index
    rates = leaf_rates(rate, priorities)
    return [Class(inner, 0, rate, rate, 0, leaf=False)] + [
        Class(index << 3 | p, inner, rates[p], rate, 7 - p, spare=p not in priorities)
        for p in sorted(rates)
    ]


def classes(settings: Settings, side: str) -> list[Class]:
    """Of slim-out ("egress") or slim-in ("ingress"), parents first; none if nobody is limited."""
    limited = shaped(settings, side)
    if not limited:
        return []
    found = _endpoint_classes(PROBE_INDEX, PROBE_RATE, [NORMAL])
    for endpoint in limited:
        found += _endpoint_classes(
            endpoint.index, getattr(endpoint.limits, side), endpoint.priorities
        )
    return found


def link_classes(settings: Settings) -> list[Class]:
    """Of the device's root; none without a link rate."""
    if not settings.link:
        return []
    link = settings.link
    return [Class(ROOT_MINOR, 0, link, link, 0, leaf=False, burst_us=LINK_BURST_US)] + [
        Class(LINK_BASE | p, ROOT_MINOR, link * share // 100, link, 7 - p, burst_us=LINK_BURST_US)
        for p, share in enumerate(LINK_SHARES)
    ]


def shaped(settings: Settings, side: str) -> list[Endpoint]:
    """The endpoints that have a rate in this direction."""
    return [e for e in settings.endpoints if getattr(e.limits, side)]


def queue_limit(rate: int) -> int:
    """Bytes that may wait in a leaf of *rate* bits per second: 50 ms of it, within bounds. The
    lower one is two segments of lo, whose frames have 64 KB."""
    return min(max(rate // 160, 128 * 1024), 8 * 1024 * 1024)


def _name(what: str, *parameters: object) -> str:
    digest = hashlib.sha256(repr(parameters).encode()).hexdigest()[:12]
    return f"{NAME}:{what}:{digest}"


def _indices(settings: Settings, side: str) -> tuple[int, ...]:
    return (*sorted(e.index for e in shaped(settings, side)), PROBE_INDEX)


def device_out(settings: Settings) -> Filter | None:
    """At the egress of the device and of lo."""
    if not shaped(settings, "egress"):
        return None
    indices = _indices(settings, "egress")
    return Filter(
        _name("leaves", settings.mark, indices),
        partial(programs.leaves, settings.mark, indices), OUT_DEVICE,
    )  # fmt: skip


def device_in(settings: Settings) -> Filter | None:
    """At the ingress of the device and of lo."""
    if not shaped(settings, "ingress"):
        return None
    indices = _indices(settings, "ingress")
    return Filter(
        _name("enters", settings.mark, indices),
        partial(programs.enters, settings.mark, indices, IN >> 16), IN_DEVICE,
    )  # fmt: skip


def veth_in(settings: Settings, endpoint: Endpoint) -> Filter | None:
    """At the ingress of the host's end of the endpoint's veth: what it sends."""
    if not endpoint.limits.egress and not settings.link:
        return None
    priority = endpoint.klass.priority
    mark = settings.mark | endpoint.minor(priority)
    local = (
        tuple(sorted(e.vip for e in settings.endpoints if ":" not in e.vip))
        if endpoint.limits.egress
        else ()
    )
    return Filter(
        _name("from", mark, priority, local),
        partial(programs.from_fallback, mark, SO_PRIORITY[priority], local),
        OUT_DEVICE if endpoint.limits.egress else "",
    )  # fmt: skip


def veth_out(_settings: Settings, endpoint: Endpoint) -> Filter | None:
    """At the egress of the host's end of the endpoint's veth: what it receives."""
    if not endpoint.limits.ingress:
        return None
    classid = IN | endpoint.minor(endpoint.klass.priority)
    return Filter(_name("to", classid), partial(programs.to_fallback, classid), IN_DEVICE)


def out_root(settings: Settings) -> Filter:
    """On slim-out's queue: all of the mark's lower half is the class."""
    return Filter(
        _name("class", settings.mark, OUT),
        partial(programs.to_class, settings.mark, OUT >> 16, 0xFFFF, 0),
    )


def link_root(settings: Settings) -> Filter:
    """On the device's own queue: the priority is the class."""
    return Filter(
        _name("link", settings.mark, LINK),
        partial(programs.to_class, settings.mark, LINK >> 16, 7, LINK_BASE),
    )
