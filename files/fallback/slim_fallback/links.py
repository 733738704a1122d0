# SPDX-License-Identifier: Apache-2.0
"""The kernel's links by pyroute2, as little of it as 0.7 and 0.9 have in common."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns

# Our links carry this as their alias: it is proof when the record is lost.
MARK = "slim.overlay"
AF_BRIDGE = 7
# linux/if.h
IFF_UP = 1
ANYWHERE = "00:00:00:00:00:00"


@dataclass(frozen=True)
class Link:
    """One link, as it is."""

    index: int
    name: str
    kind: str
    mtu: int
    up: bool
    alias: str
    mac: str
    # Index of the bridge that it is a port of, or 0.
    master: int
    # Index of the other end of a veth pair, in the namespace that has it, or 0.
    peer: int
    # What the kind adds (IFLA_INFO_DATA), by attribute name.
    data: dict[str, Any]


def _attribute(message: Any, name: str) -> Any:
    for key, value in message["attrs"]:
        if key == name:
            return value
    return None


def _link(message: Any) -> Link:
    info = _attribute(message, "IFLA_LINKINFO")
    kind = _attribute(info, "IFLA_INFO_KIND") if info else None
    data = _attribute(info, "IFLA_INFO_DATA") if info else None
    return Link(
        index=int(message["index"]),
        name=str(_attribute(message, "IFLA_IFNAME")),
        kind=str(kind or ""),
        mtu=int(_attribute(message, "IFLA_MTU") or 0),
        up=bool(message["flags"] & IFF_UP),
        alias=str(_attribute(message, "IFLA_IFALIAS") or ""),
        mac=str(_attribute(message, "IFLA_ADDRESS") or ""),
        master=int(_attribute(message, "IFLA_MASTER") or 0),
        peer=int(_attribute(message, "IFLA_LINK") or 0),
        data=dict(data["attrs"]) if data is not None and "attrs" in data else {},
    )


class Space:
    """The links of one network namespace."""

    def __init__(self) -> None:
        self.ipr = IPRoute()

    def close(self) -> None:
        """Give the netlink socket back."""
        self.ipr.close()

    def links(self) -> dict[str, Link]:
        """Every link by its name."""
        found = [_link(message) for message in self.ipr.get_links()]
        return {link.name: link for link in found}

    def addresses(self, index: int = 0) -> list[tuple[int, str, int]]:
        """(link index, IPv4 address, prefix length), of one link or of all."""
        found = []
        for message in self.ipr.get_addr(family=2):
            text = _attribute(message, "IFA_LOCAL") or _attribute(message, "IFA_ADDRESS")
            if not index or message["index"] == index:
                found.append((int(message["index"]), str(text), int(message["prefixlen"])))
        return found

    def routes(self, index: int) -> set[str]:
        """Destinations of the IPv4 routes of the main table through a link."""
        found = set()
        for message in self.ipr.get_routes(family=2, table=254):
            target = _attribute(message, "RTA_DST")
            if _attribute(message, "RTA_OIF") == index and target:
                found.add(f"{target}/{message['dst_len']}")
        return found

    def flood_list(self, index: int) -> set[str]:
        """Addresses that the tunnel device replicates unknown and broadcast frames to."""
        found = set()
        for message in self.ipr.get_neighbours(family=AF_BRIDGE, ifindex=index):
            target = _attribute(message, "NDA_DST")
            # The kernel before 4.20 ignores the dump's filter.
            if message["ifindex"] != index or not target:
                continue
            if _attribute(message, "NDA_LLADDR") == ANYWHERE:
                found.add(str(target))
        return found

    def flood(self, verb: str, index: int, address: str) -> None:
        """Append or delete one address of the flood list: bridge(8), all-zero address."""
        self.ipr.fdb(verb, ifindex=index, lladdr=ANYWHERE, dst=address)


@contextmanager
def home() -> Iterator[Space]:
    """The links of our own namespace."""
    space = Space()
    try:
        yield space
    finally:
        space.close()


@contextmanager
def inside(path: str) -> Iterator[Space]:
    """The links of the namespace at a path.

    Only the netlink socket is made there (a socket stays in the namespace that
    it was made in); the process itself is back before this yields.

    :raises OSError: the namespace is not there, or we may not enter it.
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


def same_space(path: str) -> bool:
    """Whether the namespace at a path is our own."""
    here = Path("/proc/self/ns/net").stat()
    there = Path(path).stat()
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
