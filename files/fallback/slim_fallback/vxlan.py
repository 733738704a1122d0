# SPDX-License-Identifier: Apache-2.0
"""Bridge, VXLAN device with a static flood list, and the endpoints' veth pairs.

One flat layer 2 for all hosts: broadcast and unknown frames are replicated by
the sending host to every other one (head-end replication, no multicast), and
the device learns from answers which host has which MAC.

        endpoint's namespace          host
        eth0 vip/len  ------- slv...  br-slim  vx-slim === UDP 8472 === peers
"""

from __future__ import annotations

from functools import partial

from slim_fallback import links
from slim_fallback.config import DEFAULT, VXLAN_OVERHEAD, Endpoint, Segment
from slim_fallback.provider import Provider


class Vxlan(Provider):
    """A layer 2 of our own above UDP."""

    overhead = VXLAN_OVERHEAD

    def _build(self, space: links.Space) -> None:
        # Index of each tenant's bridge, 0 where it would have to be made.
        self.bridges: dict[str, int] = {}
        for segment in self.config.segments:
            self.wanted_links |= {segment.bridge, segment.device}
            bridge = self.bridges[segment.tenant] = self._bridge(space, segment)
            device = self._device(space, segment, bridge)
            self._flood_list(space, segment, device)
        for endpoint in self.config.endpoints:
            self._endpoint(space, endpoint)

    def _attach(self, space: links.Space, there: links.Space, endpoint: Endpoint) -> None:
        segment = self.config.segment_of(endpoint)
        self._pair(space, there, endpoint, self.bridges[segment.tenant])
        network = segment.network_of(endpoint.vip)
        index = self._interface(there, endpoint, network)
        if not index:
            return
        routes = there.routes(index)
        for other in segment.overlay:
            if other != network and str(other) not in routes:
                self.do(
                    f"endpoint {endpoint.name}: route {other}",
                    partial(there.ipr.route, "add", dst=str(other), oif=index, scope=253),
                )

    def _note(self, kind: str, name: str, segment: Segment) -> None:
        """Write down that the link is ours, before it is made."""
        if self.record.note(kind, name, default=segment.tenant == DEFAULT):
            self._save()

    def _bridge(self, space: links.Space, segment: Segment) -> int:
        """Index of the bridge, 0 where it would have to be made."""
        name = segment.bridge
        link = space.links().get(name)
        if link is not None:
            self._own(link, recorded=name in self.record.links)
        self._note("bridge", name, segment)
        if link is None:
            self.do(f"add bridge {name}", lambda: space.ipr.link("add", ifname=name, kind="bridge"))
            link = space.links().get(name)
        if link is None:
            return 0
        self._adjust(space, link, 0)
        return link.index

    def _device(self, space: links.Space, segment: Segment, bridge: int) -> int:
        """Index of the tunnel device, 0 where it would have to be made."""
        config = self.config
        name = segment.device
        link = space.links().get(name)
        if link is not None:
            self._own(link, recorded=name in self.record.links)
            settings = (
                link.data.get("IFLA_VXLAN_ID"),
                link.data.get("IFLA_VXLAN_PORT"),
                link.data.get("IFLA_VXLAN_LOCAL"),
            )
            if link.kind != "vxlan" or settings != (segment.vni, config.port, str(config.address)):
                # These cannot be changed on a device that is there.
                self.do(f"remove {name}: its settings differ", self._delete(space, link))
                link = None
        self._note("device", name, segment)
        if link is None:
            self.do(
                f"add vxlan {name}: vni {segment.vni}, port {config.port}, local {config.address}",
                lambda: space.ipr.link(
                    "add",
                    ifname=name,
                    kind="vxlan",
                    vxlan_id=segment.vni,
                    vxlan_port=config.port,
                    vxlan_local=str(config.address),
                    vxlan_learning=True,
                ),
            )
            link = None if self.dry else space.links().get(name)
        if link is None:
            return 0
        self._adjust(space, link, bridge)
        return link.index

    def _flood_list(self, space: links.Space, segment: Segment, device: int) -> None:
        wanted = {str(peer) for peer in segment.peers if peer != self.config.address}
        there = space.flood_list(device) if device else set()
        of = "" if segment.tenant == DEFAULT else f"{segment.device}: "
        for address in sorted(wanted - there):
            self.do(f"{of}flood to {address}", partial(space.flood, "append", device, address))
        for address in sorted(there - wanted):
            self.do(f"{of}flood no more to {address}", partial(space.flood, "del", device, address))
