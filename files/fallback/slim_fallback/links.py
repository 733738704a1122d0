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
# rtm_protocol of our routes and rules: a number that iproute2's table of names,
# etc/iproute2/rt_protos, leaves free.
PROTOCOL = 83
# linux/rtnetlink.h
PROTOCOL_BIRD = 12
TABLE_MAIN = 254
SCOPE_LINK = 253
ONLINK = 4
TYPES = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}
# linux/neighbour.h
NUD_PERMANENT = 0x80
SYSCTL = Path("/proc/sys/net/ipv4/conf")


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


@dataclass(frozen=True)
class Route:
    """One IPv4 route."""

    # NETWORK/LENGTH
    to: str
    # Address of the next hop, empty where there is none.
    via: str = ""
    # Index of the link that it leads through, or 0.
    index: int = 0
    type: str = "unicast"
    protocol: int = PROTOCOL
    # The smaller one wins among routes of one network.
    metric: int = 0
    table: int = TABLE_MAIN

    @property
    def ours(self) -> bool:
        """Made by us, and not by the site or a routing daemon."""
        return self.protocol == PROTOCOL

    def __str__(self) -> str:
        if self.type != "unicast":
            return f"{self.to}: {self.type}"
        return f"{self.to} via {self.via}" if self.via else f"{self.to} on its link"


@dataclass(frozen=True)
class Rule:
    """A rule of ours: packets to a network take a table first."""

    network: str
    table: int
    priority: int

    def __str__(self) -> str:
        return f"to {self.network}: table {self.table}"


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

    def all_routes(self, table: int = TABLE_MAIN) -> list[Route]:
        """Every IPv4 route of a table."""
        found = []
        for message in self.ipr.get_routes(family=2, table=table):
            # The kernel before 4.20 ignores the dump's filter.
            if (_attribute(message, "RTA_TABLE") or message["table"]) != table:
                continue
            found.append(
                Route(
                    to=f"{_attribute(message, 'RTA_DST') or '0.0.0.0'}/{message['dst_len']}",
                    via=str(_attribute(message, "RTA_GATEWAY") or ""),
                    index=int(_attribute(message, "RTA_OIF") or 0),
                    type=TYPES.get(message["type"], "other"),
                    protocol=int(message["proto"]),
                    metric=int(_attribute(message, "RTA_PRIORITY") or 0),
                    table=table,
                )
            )
        return found

    def routes(self, index: int) -> set[str]:
        """Destinations of the IPv4 routes of the main table through a link."""
        return {route.to for route in self.all_routes() if route.index == index}

    def route(self, verb: str, route: Route, *, onlink: bool = False) -> None:
        """Add, replace or delete one route.

        :param onlink: the next hop is on the link, whatever the addresses say.
        """
        wanted: dict[str, Any] = {"dst": route.to, "proto": route.protocol, "table": route.table}
        if route.type != "unicast":
            wanted["type"] = route.type
        elif not route.via:
            wanted["scope"] = SCOPE_LINK
        if route.via:
            wanted["gateway"] = route.via
        if route.index:
            wanted["oif"] = route.index
        if route.metric:
            wanted["priority"] = route.metric
        if onlink:
            wanted["flags"] = ONLINK
        self.ipr.route(verb, **wanted)

    def way_to(self, address: str) -> Route:
        """The route that packets to an address take now, by next hop and link.

        :raises NetlinkError: there is none.
        """
        [message] = self.ipr.route("get", dst=address)
        return Route(
            to=f"{address}/32",
            via=str(_attribute(message, "RTA_GATEWAY") or ""),
            index=int(_attribute(message, "RTA_OIF") or 0),
            type=TYPES.get(message["type"], "other"),
            protocol=0,
        )

    def rules(self) -> set[Rule]:
        """Our rules: those of our protocol number."""
        return {
            Rule(
                network=f"{_attribute(message, 'FRA_DST')}/{message['dst_len']}",
                table=int(_attribute(message, "FRA_TABLE") or message["table"]),
                priority=int(_attribute(message, "FRA_PRIORITY") or 0),
            )
            for message in self.ipr.get_rules(family=2)
            if _attribute(message, "FRA_PROTOCOL") == PROTOCOL
        }

    def rule(self, verb: str, rule: Rule) -> None:
        """Add or delete one rule."""
        address, _slash, length = rule.network.partition("/")
        self.ipr.rule(
            verb,
            dst=address,
            dst_len=int(length),
            table=rule.table,
            priority=rule.priority,
            protocol=PROTOCOL,
        )

    def neighbours(self, index: int) -> set[tuple[str, str]]:
        """IPv4 address and MAC of the entries of a link that were made to stay."""
        return {
            (str(_attribute(message, "NDA_DST")), str(_attribute(message, "NDA_LLADDR")))
            for message in self.ipr.get_neighbours(family=2, ifindex=index)
            if message["ifindex"] == index and message["state"] & NUD_PERMANENT
        }

    def neighbour(self, index: int, address: str, mac: str) -> None:
        """Have an entry that nobody needs to be asked for."""
        self.ipr.neigh("replace", dst=address, lladdr=mac, ifindex=index, state=NUD_PERMANENT)

    def forwarding(self, device: str) -> str | None:
        """ "1" where what comes in there is forwarded, "0" where not, None for no such device.

        Of our own namespace only: proc(5).
        """
        try:
            return (SYSCTL / device / "forwarding").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def set_forwarding(self, device: str, value: str) -> None:
        """:raises OSError: the device is gone, or the setting is read-only."""
        (SYSCTL / device / "forwarding").write_text(value, encoding="ascii")

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
