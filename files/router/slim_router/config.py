# SPDX-License-Identifier: Apache-2.0
"""router.json and map.json: data classes, strict reading, checks.

Every complaint is a :class:`ConfigError` whose text names the thing, the cause
and the next step. Nothing here changes the host; the supervisor, the
``validate`` command and the tests share it. The formats are those of
docs/architecture.md, "Files that Ansible renders".
"""

from __future__ import annotations

import ipaddress
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import pools
from .pools import Pools
from .reader import ConfigError, Reader, kind
from .whole import is_whole

SUN_PATH_MAX = 107
"""Longest path of a Unix socket, bytes (unix(7): sun_path is 108 with its NUL)."""

FILE_MAX = 64 * 1024 * 1024
"""Longest file that is read, bytes; 100,000 endpoints take about 12 MB."""

SHIM_MAX_US = 1_000_000
"""The shim waits no longer, whatever it is told (files/shim/control.c, BOUND_MAX_US)."""

SECURE_MODES = ("none", "bpf", "kmod")
SECURE_FALLBACKS = ("overlay", "down")
"""Of an endpoint while the backend of its secure mode is not there."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Key = tuple[str, str]
"""(tenant, vip in text): what an endpoint is."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Time limits. The first five are the worker's, the others the trunk's."""

    swap_us: int = 5000  # how long a non-blocking connect may wait for its swap
    blocking_swap_us: int = 20000  # the same for a blocking connect
    reply_us: int = 20000  # how long a shim waits for any reply
    lease_s: float = 30  # how long a lease holds
    filters_s: float = 0  # how long live connections outlive the last proof; 0: for ever
    ping_s: float = 2  # seconds between PINGs on a trunk
    ping_misses: int = 3  # unanswered PINGs that end a trunk

    def for_worker(self) -> dict[str, float]:
        """The part that the worker's ``config`` message carries."""
        names = ("swap_us", "blocking_swap_us", "reply_us", "lease_s", "filters_s")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Tls:
    """Where the host's certificate, its key and the CA's certificate are."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class FlowLog:
    """Where the flow log goes, and its bound: max_bytes x files."""

    path: Path
    max_bytes: int = 64 << 20  # of one file
    files: int = 8  # the one that is written to included


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """router.json."""

    host: str  # our name in the map and in our certificate
    address: str  # host address, normalised text
    trunk_port: int
    data_ports: tuple[int, int]  # first and last, both included
    overlay: tuple[Network, ...]
    secure: str
    metrics: tuple[str, int] | None  # (address, port), None: no metrics
    tls: Tls
    bounds: Bounds = field(default_factory=Bounds)
    secure_fallback: str = "overlay"
    flat: bool = False  # the fallback does not separate tenants: a vip may be there once only
    flow_log: FlowLog | None = None


@dataclass(frozen=True, slots=True)
class HostSpec:
    """One host of the map."""

    name: str
    address: str
    trunk_port: int


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """One endpoint of the map."""

    name: str
    tenant: str
    vip: str  # normalised text
    host: str
    netns: str | None  # path; only meaningful on the endpoint's own host
    born: int = 0  # when it was attached, microseconds since 1970; 0: the map has it
    cookie: int = 0  # the only namespace that may be at netns; 0: any

    @property
    def key(self) -> Key:
        """(tenant, vip)."""
        return (self.tenant, self.vip)

    @property
    def label(self) -> str:
        """How messages name the endpoint: HOST/NAME, HOST/TENANT/NAME of other than the default."""
        tenant = "" if self.tenant == "default" else f"{self.tenant}/"
        return f"{self.host}/{tenant}{self.name}"


@dataclass(frozen=True, slots=True)
class FleetMap:
    """map.json."""

    revision: int
    hosts: dict[str, HostSpec]
    endpoints: dict[Key, EndpointSpec]
    pools: Pools = field(default_factory=Pools)

    def of_host(self, host: str) -> list[EndpointSpec]:
        """The endpoints that live on *host*."""
        return [spec for spec in self.endpoints.values() if spec.host == host]


# --- reading ----------------------------------------------------------------


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(
            key for key, times in Counter(key for key, _value in pairs).items() if times > 1
        )
        raise ConfigError(f"key {twice!r} appears twice in one object; keep one of them")
    return made


def load_json(path: Path) -> object:
    """What a JSON file of ours holds. Raises ConfigError."""
    try:
        if path.stat().st_size > FILE_MAX:
            raise ConfigError(
                f"{path}: larger than {FILE_MAX} bytes;"
                " it cannot be one of our files, render it again"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); run the slim_router role, which renders it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}; render it again") from error
    return decode(text, str(path))


def decode(text: str, where: str) -> object:
    """*text* of JSON without duplicate keys, decoded. Raises ConfigError."""
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, too
        raise ConfigError(
            f"{where}: not valid JSON ({error}); correct it or render it again"
        ) from error


ROUTER_KEYS = (
    "version", "host", "address", "trunk_port", "data_ports", "overlay", "secure",
    "secure_fallback", "flat", "metrics", "tls", "bounds", "flow_log",
)  # fmt: skip


def parse_router(value: object, where: str = "router.json") -> RouterConfig:
    """A checked :class:`RouterConfig` from decoded JSON. Raises ConfigError."""
    reader = Reader(value, where, ROUTER_KEYS)
    reader.version()
    trunk_port = reader.number("trunk_port", 1, 65535, 6790)
    secure = reader.get("secure", "none")
    if secure not in SECURE_MODES:
        raise reader.fail(
            "secure", f"{secure!r} is not a mode", f"choose one of {', '.join(SECURE_MODES)}"
        )
    fallback = reader.get("secure_fallback", "overlay")
    if fallback not in SECURE_FALLBACKS:
        raise reader.fail(
            "secure_fallback",
            f"{fallback!r} is not known",
            f"choose one of {', '.join(SECURE_FALLBACKS)}",
        )
    flat = reader.get("flat", False)
    if not isinstance(flat, bool):
        raise reader.fail("flat", f"{flat!r} is not true or false", "correct it")
    paths = Reader(reader.get("tls"), f"{where}: tls", ("ca", "cert", "key"))
    files = {}
    for name in ("ca", "cert", "key"):
        path = Path(paths.text(name, limit=4095))
        if not path.is_absolute():
            raise paths.fail(name, f"{path} is a relative path", "give an absolute one")
        files[name] = path
    return RouterConfig(
        host=reader.text("host", limit=253),
        address=reader.address("address"),
        trunk_port=trunk_port,
        data_ports=_data_ports(reader, trunk_port),
        overlay=_overlay(reader),
        secure=secure,
        secure_fallback=fallback,
        flat=flat,
        metrics=_metrics(reader),
        tls=Tls(**files),
        bounds=_bounds(reader.get("bounds", {}), f"{where}: bounds"),
        flow_log=_flow_log(reader.value.get("flow_log"), f"{where}: flow_log"),
    )


def _data_ports(reader: Reader, trunk_port: int) -> tuple[int, int]:
    value = reader.get("data_ports", [20000, 20999])
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(is_whole(v) and 1 <= v <= 65535 for v in value)
    ):
        raise reader.fail(
            "data_ports", f"{value!r} is not [first, last]", "give two port numbers from 1 to 65535"
        )
    first, last = value
    if first > last:
        raise reader.fail(
            "data_ports", f"{first} is greater than {last}", "put the lower port first"
        )
    if first <= trunk_port <= last:
        raise reader.fail(
            "data_ports", f"{first} to {last} holds trunk_port {trunk_port}", "move one of them"
        )
    return (first, last)


def _overlay(reader: Reader) -> tuple[Network, ...]:
    value = reader.get("overlay")
    if not isinstance(value, list) or not value:
        raise reader.fail(
            "overlay", "not a list of prefixes", 'give at least one, as in ["10.44.0.0/16"]'
        )
    if len(value) > 64:
        raise reader.fail("overlay", f"{len(value)} prefixes, 64 are possible", "join some")
    found: list[Network] = []
    for item in value:
        try:
            if not isinstance(item, str):
                raise ValueError("not a string")
            network = ipaddress.ip_network(item)
        except ValueError as error:
            raise reader.fail(
                "overlay", f"{item!r} is not a prefix ({error})", "write it as ADDRESS/LENGTH"
            ) from None
        if network.prefixlen == 0:
            raise reader.fail(
                "overlay", f"{item} is every address", "give the overlay's own prefix"
            )
        found.append(network)
    return tuple(found)


def _metrics(reader: Reader) -> tuple[str, int] | None:
    value = reader.value.get("metrics", "127.0.0.1:9478")
    if value is None or value == "":
        return None
    try:
        if not isinstance(value, str):
            raise ValueError
        text, _unused, port = value.rpartition(":")
        address = ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))
        if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
            raise ValueError
    except ValueError:
        raise reader.fail(
            "metrics", f"{value!r} is not ADDRESS:PORT", "correct it, or give null for no metrics"
        ) from None
    return (str(address), int(port))


def _flow_log(value: object, where: str) -> FlowLog | None:
    if value is None:
        return None
    default = FlowLog(Path())
    reader = Reader(value, where, tuple(FlowLog.__dataclass_fields__))
    path = Path(reader.text("path", limit=4000))
    if not path.is_absolute():
        raise reader.fail("path", f"{path} is a relative path", "give an absolute one")
    return FlowLog(
        path=path,
        max_bytes=reader.number("max_bytes", 1 << 16, 1 << 40, default.max_bytes),
        files=reader.number("files", 1, 1000, default.files),
    )


def _bounds(value: object, where: str) -> Bounds:
    default = Bounds()
    reader = Reader(value, where, tuple(Bounds.__dataclass_fields__))
    made = Bounds(
        swap_us=reader.number("swap_us", 0, SHIM_MAX_US, default.swap_us),
        blocking_swap_us=reader.number(
            "blocking_swap_us", 0, SHIM_MAX_US, default.blocking_swap_us
        ),
        reply_us=reader.number("reply_us", 100, SHIM_MAX_US, default.reply_us),
        lease_s=reader.seconds("lease_s", 0.1, 3600, default.lease_s),
        filters_s=reader.seconds("filters_s", 0, 86400, default.filters_s),
        ping_s=reader.seconds("ping_s", 0.05, 60, default.ping_s),
        ping_misses=reader.number("ping_misses", 1, 100, default.ping_misses),
    )
    if made.filters_s and made.filters_s < 2 * made.lease_s:
        raise reader.fail(
            "filters_s", f"{made.filters_s:g} is shorter than two leases of {made.lease_s:g} s",
            "give 0 (live connections stay) or at least twice lease_s",
        )  # fmt: skip
    return made


def parse_map(value: object, where: str = "map.json", *, flat: bool = False) -> FleetMap:
    """A checked :class:`FleetMap` from decoded JSON.

    *flat* says that the fallback cannot separate tenants, so that a vip may
    appear only once in the whole map. Raises ConfigError.
    """
    reader = Reader(value, where, ("version", "revision", "hosts", "endpoints", "pools"))
    reader.version()
    revision = reader.number("revision", 0, 2**63 - 1)
    hosts = _hosts(reader)
    listed = reader.get("endpoints")
    if not isinstance(listed, list):
        raise reader.fail(
            "endpoints", f"a {kind(listed)}, not a list", "give a list, [] if there is none"
        )
    endpoints: dict[Key, EndpointSpec] = {}
    holders: dict[str, EndpointSpec] = {}
    names: dict[tuple[str, str], EndpointSpec] = {}
    spaces: dict[tuple[str, str], EndpointSpec] = {}
    addresses = {host.address: host.name for host in hosts.values()}
    for number, item in enumerate(listed):
        spec = _endpoint(item, f"{where}: endpoint {number}", hosts)
        here = f"{where}: endpoint {spec.label}"
        held = endpoints.get(spec.key)
        if held is not None:
            raise ConfigError(
                f"{here}: vip {spec.vip} of tenant {spec.tenant} is already held by {held.label};"
                " remove it there or choose another"
            )
        if flat and spec.vip in holders:
            held = holders[spec.vip]
            raise ConfigError(
                f"{here}: vip {spec.vip} is already held by {held.label} of tenant"
                f" {held.tenant}, and the fallback provider does not separate tenants; choose"
                " another vip, or a provider with one network per tenant"
            )
        if spec.vip in addresses:
            raise ConfigError(
                f"{here}: vip {spec.vip} is the address of host {addresses[spec.vip]};"
                " choose a vip from the overlay"
            )
        if (spec.host, spec.name) in names:
            raise ConfigError(
                f"{here}: host {spec.host} has two endpoints of this name; rename one"
            )
        if spec.netns is not None and (spec.host, spec.netns) in spaces:
            raise ConfigError(
                f"{here}: netns {spec.netns} already belongs to"
                f" {spaces[spec.host, spec.netns].label}; give each endpoint one of its own"
            )
        endpoints[spec.key] = holders[spec.vip] = names[spec.host, spec.name] = spec
        if spec.netns is not None:
            spaces[spec.host, spec.netns] = spec
    found = pools.parse(reader.value.get("pools", []), where, hosts)
    return FleetMap(revision, hosts, endpoints, found)


def _hosts(reader: Reader) -> dict[str, HostSpec]:
    listed = reader.get("hosts")
    if not isinstance(listed, dict) or not listed:
        raise reader.fail(
            "hosts", f"a {kind(listed)} without hosts", "give an object with one entry per host"
        )
    hosts: dict[str, HostSpec] = {}
    taken: dict[tuple[str, int], str] = {}
    for name, item in listed.items():
        where = f"{reader.where}: host {name}"
        Reader({"name": name}, where, ("name",)).text("name", limit=253)
        entry = Reader(item, where, ("address", "trunk_port"))
        if "address" not in entry.value:
            raise entry.fail(
                "address", "missing", "give the host's address, its peers connect there"
            )
        spec = HostSpec(name, entry.address("address"), entry.number("trunk_port", 1, 65535, 6790))
        if (spec.address, spec.trunk_port) in taken:
            raise ConfigError(
                f"{where}: address {spec.address} is also that of host"
                f" {taken[spec.address, spec.trunk_port]}; correct one of them"
            )
        taken[spec.address, spec.trunk_port] = name
        hosts[name] = spec
    return hosts


def _endpoint(item: object, where: str, hosts: dict[str, HostSpec]) -> EndpointSpec:
    reader = Reader(item, where, ("name", "tenant", "vip", "host", "netns"))
    host = reader.text("host", limit=253)
    if host not in hosts:
        raise reader.fail(
            "host", f"{host} is not among the map's hosts", "add it there or correct the name"
        )
    netns = reader.value.get("netns")
    if netns is not None:
        netns = reader.text("netns", limit=4095)
        if not netns.startswith("/"):
            raise reader.fail(
                "netns", f"{netns} is a relative path", "give an absolute one, as in /run/netns/c1"
            )
    return EndpointSpec(
        name=reader.text("name", limit=128),
        tenant=reader.text("tenant", default="default"),
        vip=reader.address("vip"),
        host=host,
        netns=netns,
    )


# --- checks across files ----------------------------------------------------


def check_together(config: RouterConfig, fleet: FleetMap) -> None:
    """What neither file can show alone. Raises ConfigError."""
    me = fleet.hosts.get(config.host)
    if me is None:
        raise ConfigError(
            f"map.json: host {config.host} of router.json is missing;"
            " render map.json with this host in the inventory"
        )
    if (me.address, me.trunk_port) != (config.address, config.trunk_port):
        raise ConfigError(
            f"map.json: host {config.host} is at {me.address} port {me.trunk_port},"
            f" router.json says {config.address} port {config.trunk_port};"
            " render both files from one inventory"
        )
    for spec in fleet.endpoints.values():
        vip = ipaddress.ip_address(spec.vip)
        if not any(vip in network for network in config.overlay):
            raise ConfigError(
                f"map.json: endpoint {spec.label}: vip {spec.vip} lies outside the overlay"
                f" ({', '.join(map(str, config.overlay))}); choose a vip inside, or extend overlay"
            )
    for pool in fleet.pools.specs:
        if not any(
            pool.prefix[0] in network and pool.prefix.prefixlen >= network.prefixlen
            for network in config.overlay
        ):
            raise ConfigError(
                f"map.json: pool {pool.prefix}: it lies outside the overlay"
                f" ({', '.join(map(str, config.overlay))}); choose one inside, or extend overlay"
            )
    ours = fleet.of_host(config.host)
    first, last = config.data_ports
    if len(ours) > last - first + 1:
        raise ConfigError(
            f"router.json: data_ports: {last - first + 1} ports for {len(ours)} endpoints of"
            f" host {config.host}; widen the range"
        )
    for spec in ours:
        if spec.netns is None:
            raise ConfigError(
                f"map.json: endpoint {spec.label}: netns: missing on the endpoint's own host;"
                " give the path of its network namespace"
            )


def check_socket_path(path: Path) -> None:
    """Raises ConfigError if *path* is too long for a Unix socket."""
    size = len(str(path).encode())
    if size > SUN_PATH_MAX:
        raise ConfigError(
            f"socket {path}: the path has {size} bytes, {SUN_PATH_MAX} are possible;"
            " choose a shorter runtime directory"
        )


def load(config_path: Path, map_path: Path) -> tuple[RouterConfig, FleetMap]:
    """Both files, checked alone and together. Raises ConfigError."""
    config = parse_router(load_json(config_path), str(config_path))
    fleet = parse_map(load_json(map_path), str(map_path), flat=config.flat)
    check_together(config, fleet)
    return config, fleet
