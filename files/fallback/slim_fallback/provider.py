# SPDX-License-Identifier: Apache-2.0
"""What every provider of the fallback overlay can do, and what they share.

A provider brings the host to what the configuration says (apply), tells how far
the host is from that (plan), takes away what any provider of ours has made
(remove), and says how it stands (status). Whatever another provider made goes
with apply: a change of provider leaves nothing behind.
"""

from __future__ import annotations

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slim_fallback import links
from slim_fallback.config import Config, Endpoint
from slim_fallback.record import Record

# The endpoint's end has this name until it is in its namespace, where the
# wanted one is free: two pairs may be in the making at once.
INTERIM = "slp"
# A network of one or two addresses has no broadcast: RFC 3021.
MAX_BROADCAST = 31


class FallbackError(RuntimeError):
    """The overlay cannot be built; the text names thing, cause and next step."""


@dataclass
class Outcome:
    """What was done, or would be done."""

    changes: list[str] = field(default_factory=list)
    # Endpoints that were left alone: name and reason.
    skipped: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "changed": bool(self.changes),
            "changes": self.changes,
            "skipped": self.skipped,
        }


class Provider(ABC):
    """One way to carry packets between the endpoints of different hosts."""

    # Bytes that a packet grows by between the hosts.
    overhead = 0

    def __init__(self, config: Config, record: Record) -> None:
        self.config = config
        self.record = record
        # Only tell. Later steps then see what earlier ones would have made as
        # missing and are told as well.
        self.dry = False
        self.outcome = Outcome()
        # Bytes that a packet of the overlay may have.
        self.mtu = 0
        # Links that are, or would be, taken away: what hangs on them is no obstacle.
        self.doomed: set[int] = set()
        # What the provider wants to have, for what is not wanted to be told from it.
        self.wanted_links: set[str] = set()
        self.wanted_routes: set[links.Route] = set()
        self.wanted_rules: set[links.Rule] = set()
        self.wanted_forwarding: set[str] = set()

    def apply(self) -> Outcome:
        """Build what is missing, correct what differs, take away what is not wanted any more.

        :raises FallbackError: something that is not ours is in the way.
        """
        with links.home() as space:
            self._check(space)
            # An endpoint that changes its network lets go of the old one first.
            self._tidy_pairs(space)
            self._build(space)
            self._tidy(space)
        return self.outcome

    def plan(self) -> Outcome:
        """What apply would do; changes nothing.

        :raises FallbackError: as apply.
        """
        self.dry = True
        return self.apply()

    def remove(self) -> Outcome:
        """Take away what we made, under whichever provider, and nothing else."""
        with links.home() as space:
            self._tidy_routing(space)
            there = space.links()
            ours = [
                link
                for link in there.values()
                if link.alias == links.MARK
                or link.name in self.record.veths
                or link.name in self.record.links
            ]
            # Ports before their bridge, so that none is left without a master for long.
            for link in sorted(ours, key=lambda link: link.kind == "bridge"):
                self.do(f"remove {link.kind} {link.name}", self._delete(space, link))
        if not self.dry:
            self.record.forget()
        return self.outcome

    def status(self) -> dict[str, Any]:
        """How it stands: what is missing, and what of ours is there.

        :raises FallbackError: as apply.
        """
        missing = self.plan()
        with links.home() as space:
            ours = [link.name for link in space.links().values() if link.alias == links.MARK]
            routes = [str(route) for route in space.all_routes() if route.ours]
        return {
            "provider": self.config.provider,
            "complete": not missing.changes and not missing.skipped,
            "missing": missing.changes,
            "skipped": missing.skipped,
            "links": sorted(ours),
            "routes": sorted(routes),
        }

    def _check(self, space: links.Space) -> None:
        """Refuse what cannot work, before anything is changed.

        :raises FallbackError: it cannot.
        """
        self.mtu = self._mtu(space)

    @abstractmethod
    def _build(self, space: links.Space) -> None:
        """Make what is missing and say in the wanted_ sets what belongs there."""

    @abstractmethod
    def _attach(self, space: links.Space, there: links.Space, endpoint: Endpoint) -> None:
        """Connect one endpoint, whose namespace is there."""

    def do(self, text: str, action: Callable[[], Any]) -> None:
        """One step: told, and done unless dry."""
        self.outcome.changes.append(text)
        if not self.dry:
            action()

    def _save(self) -> None:
        if not self.dry:
            self.record.save()

    def _delete(self, space: links.Space, link: links.Link) -> Callable[[], Any]:
        return lambda: space.ipr.link("del", index=link.index)

    def _mtu(self, space: links.Space) -> int:
        """Bytes that a frame of the overlay may carry."""
        if self.config.mtu:
            return self.config.mtu
        for index, address, _length in space.addresses():
            if address == str(self.config.address):
                for link in space.links().values():
                    if link.index == index:
                        return link.mtu - self.overhead
        raise FallbackError(
            f"host address {self.config.address} is not on any interface of this host; "
            "correct slim_host_address or bring the interface up"
        )

    def _own(self, link: links.Link, *, recorded: bool) -> None:
        """Refuse to touch a link that somebody else made under our name."""
        if link.alias != links.MARK and not recorded:
            raise FallbackError(
                f"{link.kind or 'interface'} {link.name} is there already and was not made by "
                "slim_fallback; remove it or choose another name for ours"
            )

    def _adjust(self, space: links.Space, link: links.Link, master: int) -> None:
        """MTU, alias, master and state of a link of ours."""
        wanted: dict[str, Any] = {}
        if link.alias != links.MARK:
            wanted["ifalias"] = links.MARK
        if link.mtu != self.mtu:
            wanted["mtu"] = self.mtu
        if master and link.master != master:
            wanted["master"] = master
        if wanted:
            text = ", ".join(f"{key} {value}" for key, value in wanted.items())
            self.do(
                f"set {link.name}: {text}",
                lambda: space.ipr.link("set", index=link.index, **wanted),
            )
        if not link.up:
            self.do(
                f"set {link.name}: up", lambda: space.ipr.link("set", index=link.index, state="up")
            )

    def _endpoint(self, space: links.Space, endpoint: Endpoint) -> None:
        try:
            if links.same_space(endpoint.netns):
                raise FallbackError(
                    f"endpoint {endpoint.name}: netns {endpoint.netns} is that of the host; "
                    "correct slim_endpoints"
                )
            with links.inside(endpoint.netns) as there:
                self._attach(space, there, endpoint)
        except (FileNotFoundError, NotADirectoryError):
            self._skip(endpoint, f"netns {endpoint.netns} is not there")
        except OSError as error:
            # A path that is no namespace answers EINVAL: setns(2).
            self._skip(endpoint, f"netns {endpoint.netns} cannot be entered: {error.strerror}")

    def _skip(self, endpoint: Endpoint, reason: str) -> None:
        self.outcome.skipped.append({"endpoint": endpoint.name, "reason": reason})

    def _pair(
        self,
        space: links.Space,
        there: links.Space,
        endpoint: Endpoint,
        master: int,
    ) -> None:
        """The veth pair between host and namespace; master is a bridge's index, or 0."""
        name = endpoint.link
        link = space.links().get(name)
        interface = there.links().get(endpoint.interface)
        if link is not None:
            self._own(link, recorded=name in self.record.veths)
            if interface is None or interface.peer != link.index:
                # The other end is in a namespace that had this path before.
                self.do(f"remove {name}: it ends elsewhere", self._delete(space, link))
                link = None
        if link is None and interface is not None and interface.peer not in self.doomed:
            raise FallbackError(
                f"endpoint {endpoint.name}: {endpoint.interface} in {endpoint.netns} is there "
                "already and was not made by slim_fallback; set attach: false for this endpoint "
                "or slim_fallback_interface to another name"
            )
        if link is None:
            if self.record.veths.get(name) != endpoint.netns:
                self.record.veths[name] = endpoint.netns
                self._save()
            self.do(
                f"connect endpoint {endpoint.name}: {name} to {endpoint.interface} "
                f"in {endpoint.netns}",
                lambda: self._connect(space, there, endpoint),
            )
            link = None if self.dry else space.links().get(name)
        elif self.record.veths.get(name) != endpoint.netns:
            self.record.veths[name] = endpoint.netns
            self._save()
        if link is not None:
            self._adjust(space, link, master)

    def _connect(self, space: links.Space, there: links.Space, endpoint: Endpoint) -> None:
        """Make the pair and move one end."""
        interim = INTERIM + endpoint.link[3:]
        space.ipr.link("add", ifname=endpoint.link, kind="veth", peer={"ifname": interim})
        made = space.links()
        try:
            with open(endpoint.netns, "rb") as target:  # noqa: PTH123 - the descriptor is wanted
                space.ipr.link("set", index=made[interim].index, net_ns_fd=target.fileno())
            moved = there.links()[interim]
            there.ipr.link("set", index=moved.index, ifname=endpoint.interface)
        except Exception:
            # Half a pair under our name would be in the way of the next run.
            space.ipr.link("del", index=made[endpoint.link].index)
            raise

    def _interface(
        self, there: links.Space, endpoint: Endpoint, network: ipaddress.IPv4Network
    ) -> int:
        """Address, MAC and MTU of the endpoint's end; its index, 0 where it would have to be made.

        :param network: what the endpoint takes for its own link.
        """
        mine = (str(endpoint.vip), network.prefixlen)
        text = f"{mine[0]}/{mine[1]}"
        link = there.links().get(endpoint.interface)
        if link is None:
            self.do(f"endpoint {endpoint.name}: {endpoint.interface} gets {text}", lambda: None)
            return 0
        index = link.index
        if link.mac != endpoint.mac:
            self.do(
                f"endpoint {endpoint.name}: mac {endpoint.mac}",
                lambda: there.ipr.link("set", index=index, address=endpoint.mac),
            )
        if link.mtu != self.mtu:
            self.do(
                f"endpoint {endpoint.name}: mtu {self.mtu}",
                lambda: there.ipr.link("set", index=index, mtu=self.mtu),
            )
        if not link.up:
            self.do(
                f"endpoint {endpoint.name}: {endpoint.interface} up",
                lambda: there.ipr.link("set", index=index, state="up"),
            )
        loopback = there.links().get("lo")
        if loopback is not None and not loopback.up:
            self.do(
                f"endpoint {endpoint.name}: lo up",
                lambda: there.ipr.link("set", index=loopback.index, state="up"),
            )
        present = [(address, length) for _index, address, length in there.addresses(index)]
        for address, length in present:
            if (address, length) != mine:
                self.do(
                    f"endpoint {endpoint.name}: drop address {address}/{length}",
                    partial(there.ipr.addr, "del", index=index, address=address, prefixlen=length),
                )
        broadcast = (
            {"broadcast": str(network.broadcast_address)}
            if network.prefixlen < MAX_BROADCAST
            else {}
        )
        if mine not in present:
            self.do(
                f"endpoint {endpoint.name}: address {text}",
                lambda: there.ipr.addr(
                    "add", index=index, address=mine[0], prefixlen=mine[1], **broadcast
                ),
            )
        return index

    def _tidy_pairs(self, space: links.Space) -> None:
        """Take away the pairs of endpoints that are gone from the configuration."""
        wanted = {endpoint.link for endpoint in self.config.endpoints}
        for link in space.links().values():
            known = link.name in self.record.veths or link.alias == links.MARK
            if link.kind == "veth" and known and link.name not in wanted:
                self.doomed.add(link.index)
                self.do(f"remove {link.name}: its endpoint is gone", self._delete(space, link))
        gone = set(self.record.veths) - wanted
        if gone:
            for name in gone:
                del self.record.veths[name]
            self._save()

    def _tidy(self, space: links.Space) -> None:
        """Take away what is gone from the configuration, but for the endpoints' pairs."""
        self._tidy_routing(space)
        for link in space.links().values():
            if (
                link.alias == links.MARK
                and link.kind in ("bridge", "vxlan")
                and link.name not in self.wanted_links
            ):
                self.do(
                    f"remove {link.name}: it is not in the configuration any more",
                    self._delete(space, link),
                )
        if self.record.drop_links(self.wanted_links):
            self._save()

    def _tidy_routing(self, space: links.Space) -> None:
        """Take away routes, rules and settings that are ours and not wanted."""
        for rule in sorted(space.rules() - self.wanted_rules, key=str):
            self.do(f"remove rule {rule}", partial(space.rule, "del", rule))
        if self.record.table and not self.wanted_rules:
            # What a routing daemon of ours left when it was killed.
            for route in space.all_routes(self.record.table):
                if route.protocol == links.PROTOCOL_BIRD:
                    self.do(f"remove route {route}", partial(space.route, "del", route))
            self.record.table = 0
            self._save()
        # There is one route of a network and metric.
        wanted = {(route.to, route.metric) for route in self.wanted_routes}
        for route in space.all_routes():
            # What leads through a link that goes would go with it.
            if (
                route.ours
                and (route.to, route.metric) not in wanted
                and route.index not in self.doomed
            ):
                self.do(f"remove route {route}", partial(space.route, "del", route))
        for device in sorted(set(self.record.forwarding) - self.wanted_forwarding):
            before = self.record.forwarding[device]
            if space.forwarding(device) not in (before, None):
                self.do(
                    f"set {device}: forwarding {before}, as it was",
                    partial(space.set_forwarding, device, before),
                )
            if not self.dry:
                del self.record.forwarding[device]
                self._save()
