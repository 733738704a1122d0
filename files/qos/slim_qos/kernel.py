# SPDX-License-Identifier: Apache-2.0
"""Queues, classes and filters of one network namespace by pyroute2, as little of it as
0.7 and 0.9 have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.tcmsg import plugins, sched_pfifo

# bfifo has pfifo's one parameter, in bytes (net/sched/sch_fifo.c).
plugins.setdefault("bfifo", sched_pfifo)

__all__ = ["NetlinkError"]

MARK = "slim.overlay"
"""The alias of the links that are ours."""
ROOT = 0xFFFFFFFF
CLSACT = 0xFFFFFFF1
INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # of clsact: linux/pkt_sched.h, TC_H_MIN_*
ETH_P_ALL = 3
PREF = 7
"""Of all our filters. Those of others before it see packets first."""
ARPHRD_ETHER, ARPHRD_LOOPBACK = 1, 772
ENOENT, ENODEV, EEXIST, EINVAL, EOPNOTSUPP = 2, 19, 17, 22, 95
QUANTUM = 65536
"""Bytes that a class may send at its turn: no less than one frame, whole GSO ones too."""


def attribute(message: Any, name: str) -> Any:
    """The first attribute of this name; None if there is none."""
    for entry in message["attrs"]:
        if entry[0] == name:
            return entry[1]
    return None


@dataclass(frozen=True, slots=True)
class Link:
    """One link."""

    index: int
    name: str
    kind: str
    alias: str
    type: int  # ARPHRD_*
    up: bool
    peer: int  # index of a veth's other end, in the namespace that has it


@dataclass(frozen=True, slots=True)
class Qdisc:
    """One queue."""

    kind: str
    handle: int
    parent: int


@dataclass(frozen=True, slots=True)
class Class:
    """One class of an htb."""

    minor: int
    parent: int  # minor; 0 is the queue itself
    rate: int  # bits per second
    ceil: int
    prio: int  # 0 goes first
    leaf: bool = True
    burst_us: int = 2000  # of its rate, what may go at once: bridges a late timer
    spare: bool = False  # a leaf that only connections of an earlier class may use


class Space:
    """What one network namespace has."""

    def __init__(self) -> None:
        self.ipr = IPRoute()

    def close(self) -> None:
        """Give the netlink socket back."""
        self.ipr.close()

    # --- links ---------------------------------------------------------------
    def links(self) -> dict[str, Link]:
        """All of them by name."""
        found = {}
        for message in self.ipr.get_links():
            info = attribute(message, "IFLA_LINKINFO")
            link = Link(
                index=int(message["index"]),
                name=str(attribute(message, "IFLA_IFNAME")),
                kind=str((attribute(info, "IFLA_INFO_KIND") if info else "") or ""),
                alias=str(attribute(message, "IFLA_IFALIAS") or ""),
                type=int(message["ifi_type"]),
                up=bool(message["flags"] & 1),
                peer=int(attribute(message, "IFLA_LINK") or 0),
            )
            found[link.name] = link
        return found

    def holder(self, address: str) -> int:
        """Index of the link that has *address*; 0 if there is none."""
        for message in self.ipr.get_addr():
            texts = (attribute(message, "IFA_LOCAL"), attribute(message, "IFA_ADDRESS"))
            if address in texts:
                return int(message["index"])
        return 0

    def add_ifb(self, name: str) -> int:
        """A new ifb device, up. Returns its index."""
        self.ipr.link("add", ifname=name, kind="ifb")
        index = int(self.ipr.link_lookup(ifname=name)[0])
        # Of the queue for what has no class; 32 would be lost in one burst.
        self.ipr.link("set", index=index, ifalias=MARK, txqlen=1000)
        self.ipr.link("set", index=index, state="up")
        return index

    # --- queues --------------------------------------------------------------
    def qdiscs(self, index: int) -> list[Qdisc]:
        """The queues of one device."""
        return [
            Qdisc(str(attribute(m, "TCA_KIND")), int(m["handle"]), int(m["parent"]))
            for m in self.ipr.get_qdiscs(index=index)
            if m["index"] == index
        ]

    def clsacts(self) -> dict[int, Qdisc]:
        """By device: what stands where a clsact would."""
        return {
            int(m["index"]): Qdisc(str(attribute(m, "TCA_KIND")), int(m["handle"]), CLSACT)
            for m in self.ipr.get_qdiscs()
            if m["parent"] == CLSACT
        }

    def classes(self, index: int, handle: int) -> dict[int, Class]:
        """The classes of the htb with this handle by minor number."""
        found = {}
        for m in self.ipr.get_classes(index=index):
            if m["index"] != index or m["handle"] >> 16 != handle >> 16:
                continue
            if attribute(m, "TCA_KIND") != "htb":
                continue
            options = attribute(m, "TCA_OPTIONS")
            parms = attribute(options, "TCA_HTB_PARMS")
            rates = [
                int(attribute(options, big) or parms[small])
                for big, small in (("TCA_HTB_RATE64", "rate"), ("TCA_HTB_CEIL64", "ceil"))
            ]
            minor = int(m["handle"]) & 0xFFFF
            parent = 0 if m["parent"] in (ROOT, handle) else int(m["parent"]) & 0xFFFF
            found[minor] = Class(
                minor, parent, rates[0] * 8, rates[1] * 8, int(parms["prio"]), parms["level"] == 0
            )
        return found

    def counters(self, index: int, handle: int) -> dict[int, tuple[int, int, int]]:
        """(bytes, packets, drops) by minor number of the class."""
        found = {}
        for m in self.ipr.get_classes(index=index):
            if m["index"] == index and m["handle"] >> 16 == handle >> 16:
                stats = attribute(m, "TCA_STATS2")
                basic, queue = (
                    attribute(stats, "TCA_STATS_BASIC"),
                    attribute(stats, "TCA_STATS_QUEUE"),
                )
                found[int(m["handle"]) & 0xFFFF] = (
                    int(basic["bytes"]), int(basic["packets"]), int(queue["drops"]),
                )  # fmt: skip
        return found

    def add_htb(self, index: int, handle: int, default: int) -> None:
        """An htb as the device's root."""
        self.ipr.tc("add", "htb", index, handle, parent=ROOT, default=default)

    def put_class(self, index: int, handle: int, wanted: Class, new: bool) -> None:
        """Add a class, or change its rates."""
        rate, ceil = max(1, wanted.rate // 8), max(1, wanted.ceil // 8)
        self.ipr.tc(
            "add-class" if new else "change-class", "htb", index, handle | wanted.minor,
            parent=handle | wanted.parent, rate=rate, ceil=ceil, prio=wanted.prio,
            burst=burst(rate, wanted.burst_us), cburst=burst(ceil, wanted.burst_us),
            quantum=QUANTUM,
        )  # fmt: skip

    def put_leaf(self, index: int, kind: str, parent: int, handle: int, limit: int) -> None:
        """The queue of a class; *limit* is bytes."""
        if kind == "bfifo":
            self.ipr.tc("replace", "bfifo", index, handle, parent=parent, limit=limit)
        else:
            self.ipr.tc("replace", kind, index, handle, parent=parent)

    def drop_qdisc(self, index: int, qdisc: Qdisc) -> None:
        """Take a root queue or a clsact away, with all that is in it."""
        self.ipr.tc("del", qdisc.kind, index, qdisc.handle, parent=qdisc.parent)

    def add_clsact(self, index: int) -> None:
        """A place for filters, on both sides."""
        self.ipr.tc("add", "clsact", index)

    # --- filters -------------------------------------------------------------
    def filters(self, index: int, parent: int) -> dict[int, tuple[int, str]]:
        """cls_bpf filters: handle to (preference, name)."""
        found = {}
        for m in self.ipr.get_filters(index=index, parent=parent):
            options = attribute(m, "TCA_OPTIONS")
            if m["handle"] and attribute(m, "TCA_KIND") == "bpf" and options is not None:
                name = attribute(options, "TCA_BPF_NAME")
                found[int(m["handle"])] = (int(m["info"]) >> 16, str(name or ""))
        return found

    def has_filters(self, index: int, parent: int) -> bool:
        """Anybody's, of any kind."""
        return any(m["index"] == index for m in self.ipr.get_filters(index=index, parent=parent))

    def put_filter(self, index: int, parent: int, fd: int, name: str, redirect: int) -> None:
        """Ours, in place of ours; *redirect* is the index of a device, or 0."""
        action: dict[str, Any] = {}
        if redirect:
            action["action"] = [
                {
                    "kind": "mirred", "direction": "egress", "action": "redirect",
                    "ifindex": redirect,
                }
            ]  # fmt: skip
        self.ipr.tc(
            "replace-filter", "bpf", index, 1, parent=parent, prio=PREF, protocol=ETH_P_ALL,
            fd=fd, name=name, **action,
        )  # fmt: skip

    def drop_filter(self, index: int, parent: int) -> None:
        """Ours."""
        self.ipr.tc("del-filter", "bpf", index, 1, parent=parent, prio=PREF, protocol=ETH_P_ALL)


def burst(rate: int, microseconds: int) -> int:
    """Bytes that may go at once at *rate* (bytes per second), no less than ten full frames."""
    return max(rate * microseconds // 1_000_000, 15_140)


@contextmanager
def home() -> Iterator[Space]:
    """Our own namespace."""
    space = Space()
    try:
        yield space
    finally:
        space.close()


@contextmanager
def inside(path: str) -> Iterator[Space]:
    """The namespace at a path; the process itself is back before this yields.

    :raises OSError: it is not there, or we may not enter it.
    """
    back = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            netns.setns(target)
            try:
                space = Space()
            finally:
                netns.setns(back)
        finally:
            os.close(target)
    finally:
        os.close(back)
    try:
        yield space
    finally:
        space.close()


def is_home(path: str) -> bool:
    """Is the namespace at *path* our own?"""
    here, there = Path("/proc/self/ns/net").stat(), Path(path).stat()
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
