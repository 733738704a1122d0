# SPDX-License-Identifier: Apache-2.0
"""Bridge, VXLAN device with a static flood list, and the endpoints' veth pairs.

One flat layer 2 for all hosts: broadcast and unknown frames are replicated by
the sending host to every other one (head-end replication, no multicast), and
the device learns from answers which host has which MAC.

        endpoint's namespace          host
        eth0 vip/len  ------- slv...  br-slim  vx-slim === UDP 8472 === peers
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slim_fallback import links
from slim_fallback.config import DEFAULT, VXLAN_OVERHEAD, Config, Endpoint, Segment
from slim_fallback.record import Record

# The endpoint's end has this name until it is in its namespace, where the
# wanted one is free: two pairs may be in the making at once.
INTERIM = "slp"


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


class Vxlan:
    """Brings the host to what the configuration says, or tells how far it is from it.

    :param dry: only tell. Later steps then see what earlier ones would have made
        as missing and are told as well.
    """

    def __init__(self, config: Config, record: Record, dry: bool) -> None:
        self.config = config
        self.record = record
        self.dry = dry
        self.outcome = Outcome()
        # Links that are, or would be, taken away: what hangs on them is no obstacle.
        self.doomed: set[int] = set()

    def do(self, text: str, action: Callable[[], Any]) -> None:
        """One step: told, and done unless dry."""
        self.outcome.changes.append(text)
        if not self.dry:
            action()

    def apply(self) -> Outcome:
        """Build what is missing, correct what differs, take away what is not wanted any more.

        :raises FallbackError: something that is not ours is in the way.
        """
        with links.home() as space:
            mtu = self._mtu(space)
            # An endpoint that changes its tenant lets go of the old network first.
            self._tidy_pairs(space)
            bridges = {}
            for segment in self.config.segments:
                bridge = bridges[segment.tenant] = self._bridge(space, segment, mtu)
                device = self._device(space, segment, bridge, mtu)
                self._flood_list(space, segment, device)
            for endpoint in self.config.endpoints:
                segment = self.config.segment_of(endpoint)
                self._endpoint(space, endpoint, segment, bridges[segment.tenant], mtu)
            self._tidy(space)
        return self.outcome

    def remove(self) -> Outcome:
        """Take away what we made, and nothing else."""
        with links.home() as space:
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
                        return link.mtu - VXLAN_OVERHEAD
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

    def _adjust(self, space: links.Space, link: links.Link, master: int, mtu: int) -> None:
        """MTU, alias, master and state of a link of ours."""
        wanted: dict[str, Any] = {}
        if link.alias != links.MARK:
            wanted["ifalias"] = links.MARK
        if link.mtu != mtu:
            wanted["mtu"] = mtu
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

    def _note(self, kind: str, name: str, segment: Segment) -> None:
        """Write down that the link is ours, before it is made."""
        if self.record.note(kind, name, default=segment.tenant == DEFAULT):
            self._save()

    def _bridge(self, space: links.Space, segment: Segment, mtu: int) -> int:
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
        self._adjust(space, link, 0, mtu)
        return link.index

    def _device(self, space: links.Space, segment: Segment, bridge: int, mtu: int) -> int:
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
        self._adjust(space, link, bridge, mtu)
        return link.index

    def _flood_list(self, space: links.Space, segment: Segment, device: int) -> None:
        wanted = {str(peer) for peer in segment.peers if peer != self.config.address}
        there = space.flood_list(device) if device else set()
        of = "" if segment.tenant == DEFAULT else f"{segment.device}: "
        for address in sorted(wanted - there):
            self.do(f"{of}flood to {address}", partial(space.flood, "append", device, address))
        for address in sorted(there - wanted):
            self.do(f"{of}flood no more to {address}", partial(space.flood, "del", device, address))

    def _endpoint(
        self, space: links.Space, endpoint: Endpoint, segment: Segment, bridge: int, mtu: int
    ) -> None:
        try:
            if links.same_space(endpoint.netns):
                raise FallbackError(
                    f"endpoint {endpoint.name}: netns {endpoint.netns} is that of the host; "
                    "correct slim_endpoints"
                )
            with links.inside(endpoint.netns) as there:
                self._pair(space, there, endpoint, bridge, mtu)
                self._interface(there, endpoint, segment, mtu)
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
        bridge: int,
        mtu: int,
    ) -> None:
        """The veth pair between bridge and namespace."""
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
            self._adjust(space, link, bridge, mtu)

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
        self, there: links.Space, endpoint: Endpoint, segment: Segment, mtu: int
    ) -> None:
        """Address, MAC, MTU and routes of the endpoint's end."""
        network = segment.network_of(endpoint.vip)
        mine = (str(endpoint.vip), network.prefixlen)
        text = f"{mine[0]}/{mine[1]}"
        link = there.links().get(endpoint.interface)
        if link is None:
            self.do(f"endpoint {endpoint.name}: {endpoint.interface} gets {text}", lambda: None)
            return
        index = link.index
        if link.mac != endpoint.mac:
            self.do(
                f"endpoint {endpoint.name}: mac {endpoint.mac}",
                lambda: there.ipr.link("set", index=index, address=endpoint.mac),
            )
        if link.mtu != mtu:
            self.do(
                f"endpoint {endpoint.name}: mtu {mtu}",
                lambda: there.ipr.link("set", index=index, mtu=mtu),
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
        if mine not in present:
            self.do(
                f"endpoint {endpoint.name}: address {text}",
                lambda: there.ipr.addr(
                    "add",
                    index=index,
                    address=mine[0],
                    prefixlen=mine[1],
                    broadcast=str(network.broadcast_address),
                ),
            )
        routes = there.routes(index)
        for other in segment.overlay:
            if other != network and str(other) not in routes:
                self.do(
                    f"endpoint {endpoint.name}: route {other}",
                    partial(there.ipr.route, "add", dst=str(other), oif=index, scope=253),
                )

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
        """Take away the networks that are gone from the configuration."""
        segments = self.config.segments
        bridges = {segment.bridge for segment in segments}
        devices = {segment.device for segment in segments}
        for link in space.links().values():
            if link.alias == links.MARK and (
                (link.kind == "bridge" and link.name not in bridges)
                or (link.kind == "vxlan" and link.name not in devices)
            ):
                self.do(
                    f"remove {link.name}: it is not in the configuration any more",
                    self._delete(space, link),
                )
        gone = self.record.others - bridges - devices
        if gone:
            self.record.others -= gone
            self._save()
