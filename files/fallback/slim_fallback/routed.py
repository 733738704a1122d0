# SPDX-License-Identifier: Apache-2.0
"""Packets between endpoints as they are, routed by the hosts: no encapsulation.

Each endpoint is alone on its link and sends everything for the overlay to an
address that exists on no interface; a fixed neighbour entry leads it to the host's
end of the pair. The host has a route to each endpoint of its own, and the overlay
as a whole is unreachable behind it, so that nothing for a vip that nobody has gets
out by the default route.

        endpoint's namespace                host
        eth0 vip/32  ----------------  slr...            eth0 === other hosts
        overlay via 169.254.1.1        vip on its link   their vips via their addresses

HostGateway makes the routes to the other hosts' vips itself. Bgp leaves that to
BIRD, in a table of its own: BIRD takes all routes of its protocol number in a table
for its own, so ours and the site's could not share one.
"""

from __future__ import annotations

import ipaddress
from functools import partial

from pyroute2.netlink.exceptions import NetlinkError

from slim_fallback import links
from slim_fallback.config import Endpoint
from slim_fallback.provider import FallbackError, Provider

# Link-local, as Calico's: RFC 3927. Never on the wire but as an ARP entry.
GATEWAY = "169.254.1.1"
# The host's end of every pair: endpoints' neighbour entries outlive a rebuild.
GATEWAY_MAC = "02:51:ff:ff:ff:fe"
# The worst metric: any other route of the same network is preferred.
LAST = (1 << 32) - 1
# Before the main table's rule, which is 32766: ip-rule(8).
RULE_PRIORITY = 4244


class Routed(Provider):
    """What both providers share: the endpoints' side, and what the hosts forward."""

    def _check(self, space: links.Space) -> None:
        super()._check(space)
        # Devices that lead to the other hosts.
        self.uplinks: set[int] = set()
        self.wanted_routes |= {
            links.Route(str(network), type="unreachable", metric=LAST)
            for network in self.config.overlay
        }

    def _build(self, space: links.Space) -> None:
        names = {link.index: link.name for link in space.links().values()}
        for index in sorted(self.uplinks):
            self._forward(space, names[index], keep=True)
        self._routes(space)
        for endpoint in self.config.endpoints:
            self._endpoint(space, endpoint)

    def _forward(self, space: links.Space, device: str, *, keep: bool) -> None:
        """Have packets that come in by a device forwarded.

        :param keep: remember how it was; a device of ours takes its setting with it.
        """
        before = space.forwarding(device)
        if keep:
            self.wanted_forwarding.add(device)
            if before == "0" and device not in self.record.forwarding:
                self.record.forwarding[device] = before
                self._save()
        if before == "0":
            self.do(f"set {device}: forwarding 1", partial(space.set_forwarding, device, "1"))

    def _routes(self, space: links.Space) -> None:
        """Have the wanted routes, but for those to endpoints of this host."""
        there = space.all_routes()
        before = {route.to for route in there if route.ours}
        for route in sorted(self.wanted_routes - set(there), key=str):
            verb = "replace" if route.to in before else "add"
            self.do(f"{verb} route {route}", partial(space.route, verb, route))

    def _attach(self, space: links.Space, there: links.Space, endpoint: Endpoint) -> None:
        self._pair(space, there, endpoint, 0)
        link = space.links().get(endpoint.link)
        if link is not None:
            self._host_end(space, link, endpoint)
        index = self._interface(there, endpoint, ipaddress.IPv4Network(endpoint.vip))
        if not index:
            return
        if (GATEWAY, GATEWAY_MAC) not in there.neighbours(index):
            self.do(
                f"endpoint {endpoint.name}: {GATEWAY} is {GATEWAY_MAC}",
                partial(there.neighbour, index, GATEWAY, GATEWAY_MAC),
            )
        wanted = {
            links.Route(str(network), via=GATEWAY, index=index) for network in self.config.overlay
        }
        present = {route for route in there.all_routes() if route.index == index and route.ours}
        for route in sorted(wanted - present, key=str):
            self.do(
                f"endpoint {endpoint.name}: route {route}",
                partial(there.route, "replace", route, onlink=True),
            )
        for route in sorted(present - wanted, key=str):
            self.do(
                f"endpoint {endpoint.name}: remove route {route}",
                partial(there.route, "del", route),
            )

    def _host_end(self, space: links.Space, link: links.Link, endpoint: Endpoint) -> None:
        vip = str(endpoint.vip)
        if link.mac != GATEWAY_MAC:
            self.do(
                f"set {link.name}: mac {GATEWAY_MAC}",
                lambda: space.ipr.link("set", index=link.index, address=GATEWAY_MAC),
            )
        self._forward(space, link.name, keep=False)
        if (vip, endpoint.mac) not in space.neighbours(link.index):
            self.do(
                f"set {link.name}: {vip} is {endpoint.mac}",
                partial(space.neighbour, link.index, vip, endpoint.mac),
            )
        route = links.Route(f"{vip}/32", index=link.index)
        self.wanted_routes.add(route)
        if route not in space.all_routes():
            self.do(f"add route {route}", partial(space.route, "replace", route))

    def _way(self, space: links.Space, host: ipaddress.IPv4Address) -> links.Route:
        """How packets to another host leave.

        :raises FallbackError: not at all.
        """
        try:
            way = space.way_to(str(host))
        except NetlinkError as error:
            raise FallbackError(
                f"host address {host}: there is no route to it ({error.args[1]}); bring the network "
                "between the hosts up or correct that host's slim_host_address"
            ) from error
        self.uplinks.add(way.index)
        return way

    def _refuse_foreign(self, space: links.Space) -> None:
        """Refuse where the site has a route of its own to what is to be ours.

        :raises FallbackError: it has.
        """
        wanted = {route.to for route in self.wanted_routes if route.metric != LAST}
        wanted |= {f"{endpoint.vip}/32" for endpoint in self.config.endpoints}
        for route in space.all_routes():
            if route.to in wanted and not route.ours:
                raise FallbackError(
                    f"route {route} is there already and was not made by slim_fallback; remove it "
                    "or choose another vip, or use provider existing"
                )


class HostGateway(Routed):
    """Routes to the other hosts' vips by their host addresses, which are on one link."""

    def _check(self, space: links.Space) -> None:
        super()._check(space)
        for way in self.config.ways:
            first = self._way(space, way.host)
            if first.via:
                raise FallbackError(
                    f"host address {way.host} is not on a link of this host but behind {first.via}; "
                    "put the hosts on one link, or choose provider vxlan, or bgp with reflectors "
                    "of the routers between them"
                )
            self.wanted_routes.add(
                links.Route(str(way.network), via=str(way.host), index=first.index)
            )
        self._refuse_foreign(space)


class Bgp(Routed):
    """Routes that BIRD learns from the other hosts, in a table of their own."""

    def _check(self, space: links.Space) -> None:
        super()._check(space)
        for peer in self.config.peers:
            self._way(space, peer)
        self._refuse_foreign(space)
        self.wanted_rules = {
            links.Rule(str(network), self.config.table, RULE_PRIORITY)
            for network in self.config.overlay
        }
        # A rule of ours is proof when the record is lost.
        ours = {rule.table for rule in space.rules()} | {self.record.table}
        if self.config.table not in ours and space.all_routes(self.config.table):
            raise FallbackError(
                f"routing table {self.config.table} is in use already; empty it or choose "
                "another number in slim_fallback_bgp_table"
            )

    def _build(self, space: links.Space) -> None:
        if self.record.table != self.config.table:
            self.record.table = self.config.table
            self._save()
        for rule in sorted(self.wanted_rules - space.rules(), key=str):
            self.do(f"add rule {rule}", partial(space.rule, "add", rule))
        super()._build(space)
