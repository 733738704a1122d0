# SPDX-License-Identifier: Apache-2.0
"""What /etc/slim/fallback.json says, checked before anything is done with it."""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Outer Ethernet 14, IPv4 20, UDP 8, VXLAN 8: RFC 7348 section 5.
VXLAN_OVERHEAD = 50
# The smallest MTU that IPv4 may meet: RFC 791.
MTU_MIN = 68
# IFNAMSIZ less the closing zero: netdevice(7).
NAME_MAX = 15
# 24 bits: RFC 7348 section 5.
VNI_MAX = (1 << 24) - 1
DEFAULT = "default"
PROVIDERS = ("vxlan", "host-gw", "bgp", "existing")
# Those that carry packets as they are, and endpoints without a common link.
ROUTED = ("host-gw", "bgp")
# rt_table(5): 253 to 255 are the kernel's own, and 0 is none.
TABLE_MAX = (1 << 32) - 1
TABLES_TAKEN = (253, 254, 255)


class ConfigError(ValueError):
    """The configuration cannot be used; the text names thing, cause and next step."""


@dataclass(frozen=True)
class Endpoint:
    """One endpoint of this host."""

    name: str
    tenant: str
    vip: ipaddress.IPv4Address
    # Path of the network namespace.
    netns: str
    # Name of the endpoint's interface in there.
    interface: str
    # Whether packets are routed to it; else it is a port of a bridge.
    routed: bool = False

    @property
    def link(self) -> str:
        """The host's end of the veth pair; the same for an endpoint at every boot.

        The two kinds differ in name: none is ever taken for the other and rebuilt halfway.
        """
        digest = hashlib.sha256(f"{self.tenant}\0{self.name}".encode()).hexdigest()
        return f"{'slr' if self.routed else 'slv'}{digest[:10]}"

    @property
    def mac(self) -> str:
        """Locally administered, made of the vip: peers' neighbour entries outlive a rebuild."""
        return "02:51:" + ":".join(f"{octet:02x}" for octet in self.vip.packed)


@dataclass(frozen=True)
class Segment:
    """One layer-2 network: a bridge, its tunnel device, and whom that leads to."""

    tenant: str
    vni: int
    bridge: str
    device: str
    overlay: tuple[ipaddress.IPv4Network, ...]
    # Addresses of the other hosts.
    peers: tuple[ipaddress.IPv4Address, ...]

    def network_of(self, vip: ipaddress.IPv4Address) -> ipaddress.IPv4Network:
        """The overlay network that the vip lies in.

        :raises ConfigError: none.
        """
        for network in self.overlay:
            if vip in network:
                return network
        raise ConfigError(
            f"vip {vip} lies outside the overlay; correct slim_endpoints or slim_overlay_networks"
        )


@dataclass(frozen=True)
class Way:
    """A part of the overlay that lies behind another host."""

    network: ipaddress.IPv4Network
    # Address of that host.
    host: ipaddress.IPv4Address


@dataclass(frozen=True)
class Config:
    """The fallback overlay as it should be on this host."""

    provider: str
    # Address of this host on the network between the hosts.
    address: ipaddress.IPv4Address
    overlay: tuple[ipaddress.IPv4Network, ...]
    # Addresses of the other hosts.
    peers: tuple[ipaddress.IPv4Address, ...]
    # Endpoints that are to be connected by us.
    endpoints: tuple[Endpoint, ...]
    vni: int
    # UDP port of the tunnel.
    port: int
    bridge: str
    device: str
    # Bytes; 0 takes the MTU of the interface that has the address, less the overhead.
    mtu: int
    # Tenants with a network of their own.
    tenants: tuple[Segment, ...] = ()
    # Routes to the other hosts' vips and prefixes.
    ways: tuple[Way, ...] = ()
    # Routing table that our routing daemon fills.
    table: int = 4244

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Every network of this host; that of the tenants without one of their own first."""
        first = Segment(DEFAULT, self.vni, self.bridge, self.device, self.overlay, self.peers)
        return (first, *self.tenants)

    def segment_of(self, endpoint: Endpoint) -> Segment:
        """The network that an endpoint is part of."""
        for segment in self.tenants:
            if segment.tenant == endpoint.tenant:
                return segment
        return self.segments[0]


def _take(content: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = content.get(key, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{key} {value!r} is not a {kind.__name__}; run the playbook again")
    return value


def _link_name(text: str, key: str) -> str:
    if not text or len(text) > NAME_MAX or "/" in text or any(char.isspace() for char in text):
        raise ConfigError(
            f"{key} {text!r} cannot be an interface's name; "
            f"choose 1 to {NAME_MAX} letters without slash or space"
        )
    return text


def _segment(entry: dict[str, Any], overlay: tuple[ipaddress.IPv4Network, ...]) -> Segment:
    vni = _take(entry, "vni", int)
    return Segment(
        tenant=_take(entry, "name", str),
        vni=vni,
        # The number has 8 digits at most: these fit NAME_MAX, and tell a reader of `ip link`.
        bridge=f"br-sl{vni}",
        device=f"vx-sl{vni}",
        overlay=tuple(ipaddress.IPv4Network(item) for item in _take(entry, "overlay", list, []))
        or overlay,
        peers=tuple(ipaddress.IPv4Address(item) for item in _take(entry, "peers", list, [])),
    )


def _check_segments(config: Config) -> None:
    tenants: set[str] = set()
    names: dict[str | int, str] = {}
    for segment in config.segments:
        if not 0 < segment.vni <= VNI_MAX:
            raise ConfigError(
                f"tenant {segment.tenant}: vni {segment.vni} is not from 1 to {VNI_MAX}; correct it"
            )
        if segment.tenant in tenants:
            raise ConfigError(f"tenant {segment.tenant} is there twice; run the playbook again")
        tenants.add(segment.tenant)
        for what, name in (
            ("vni", segment.vni), ("interface", segment.bridge), ("interface", segment.device)
        ):  # fmt: skip
            if name in names:
                raise ConfigError(
                    f"tenant {segment.tenant}: {what} {name} is also that of tenant {names[name]};"
                    " give each a VNI of its own"
                )
            names[name] = segment.tenant


def _check_ways(config: Config) -> None:
    if config.tenants and config.provider in ROUTED:
        raise ConfigError(
            f"provider {config.provider} has one network for all tenants; "
            "leave tenants out or choose vxlan"
        )
    seen: dict[ipaddress.IPv4Network, ipaddress.IPv4Address] = {}
    for way in config.ways:
        if not any(way.network.subnet_of(network) for network in config.overlay):
            raise ConfigError(
                f"route to {way.network} lies outside the overlay; "
                "correct slim_endpoints, slim_host_prefixes or slim_overlay_networks"
            )
        if way.network in seen:
            raise ConfigError(
                f"route to {way.network} leads to {way.host} and to {seen[way.network]}; "
                "run the playbook again"
            )
        seen[way.network] = way.host


def parse(text: str) -> Config:
    """The configuration from JSON text.

    :raises ConfigError: it cannot be used.
    """
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ConfigError("the configuration is not an object; run the playbook again")
        if content.get("version") != 1:
            raise ConfigError(
                f"version {content.get('version')!r} is not known; install a matching slim_fallback"
            )
        provider = _take(content, "provider", str)
        if provider not in PROVIDERS:
            raise ConfigError(
                f"provider {provider!r} is not known; choose one of {', '.join(PROVIDERS)}"
            )
        endpoints = []
        for entry in _take(content, "endpoints", list, []):
            if not entry.get("attach", False):
                continue
            endpoints.append(
                Endpoint(
                    name=_take(entry, "name", str),
                    tenant=_take(entry, "tenant", str, "default"),
                    vip=ipaddress.IPv4Address(_take(entry, "vip", str)),
                    netns=_take(entry, "netns", str),
                    interface=_link_name(
                        _take(entry, "interface", str, "eth0"), "the endpoint's interface"
                    ),
                    routed=provider in ROUTED,
                )
            )
        overlay = tuple(ipaddress.IPv4Network(item) for item in _take(content, "overlay", list))
        config = Config(
            provider=provider,
            address=ipaddress.IPv4Address(_take(content, "address", str)),
            overlay=overlay,
            peers=tuple(ipaddress.IPv4Address(item) for item in _take(content, "peers", list, [])),
            endpoints=tuple(endpoints),
            vni=_take(content, "vni", int, 4242),
            port=_take(content, "port", int, 8472),
            bridge=_link_name(_take(content, "bridge", str, "br-slim"), "bridge"),
            device=_link_name(_take(content, "device", str, "vx-slim"), "device"),
            mtu=_take(content, "mtu", int, 0),
            tenants=tuple(
                _segment(entry, overlay) for entry in _take(content, "tenants", list, [])
            ),
            ways=tuple(
                Way(
                    ipaddress.IPv4Network(_take(entry, "to", str)),
                    ipaddress.IPv4Address(_take(entry, "via", str)),
                )
                for entry in _take(content, "routes", list, [])
            ),
            table=_take(content, "table", int, 4244),
        )
    except ConfigError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the configuration is damaged: {error}; run the playbook again"
        ) from error
    _check_segments(config)
    if not 0 < config.port < 65536:
        raise ConfigError(f"port {config.port} is not a UDP port; correct it")
    if config.mtu and config.mtu < MTU_MIN:
        raise ConfigError(f"mtu {config.mtu} is below {MTU_MIN}; leave it out or raise it")
    if not 0 < config.table <= TABLE_MAX or config.table in TABLES_TAKEN:
        raise ConfigError(
            f"table {config.table} cannot be ours; choose a number from 1 to {TABLE_MAX} "
            f"but {', '.join(map(str, TABLES_TAKEN))}"
        )
    for endpoint in config.endpoints:
        config.segment_of(endpoint).network_of(endpoint.vip)
    _check_ways(config)
    return config


def load(path: Path) -> Config:
    """The configuration from a file.

    :raises ConfigError: it cannot be read or used.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; run the playbook") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is damaged: {error}; run the playbook again") from error
