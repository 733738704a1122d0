# SPDX-License-Identifier: Apache-2.0
"""Endpoints that a container runtime attached: a directory with a file for each.

The directory is the truth. The router writes a file before it acknowledges one; whoever
starts a container while no router runs (slim-cni) leaves a file without the router's part,
and whoever ends one takes the file away. The supervisor looks once a second, so that what was
missed is found: a new file, one that is gone, a namespace that is gone.

A namespace is known by its cookie, which the kernel gives out once: a path that leads to
another namespace than the attached one leads nowhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import blake2s
from pathlib import Path

from . import config, log, netns
from .config import EndpointSpec, FleetMap, Key, RouterConfig
from .ports import replace_file
from .reader import ConfigError, Reader, normal
from .whole import is_whole

FORMAT = 1
ADDRESSES_MAX = 64
RECORDS_MAX = 10_000
TICK_NS = 100_000_000
AHEAD_US = 3600 * 1_000_000
"""A time of birth may be so far ahead of our clock; what is further is a clock gone wrong, or a
host that wants to have a vip for ever."""
KEYS = (
    "version", "network", "container", "ifname", "name", "tenant", "addresses", "netns",
    "vip", "cookie", "born",
)  # fmt: skip

Name = tuple[str, str, str]
"""(network, container, interface): what CNI calls an attachment."""


class AttachError(ValueError):
    """Cannot be attached; the text is for whoever starts the container."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attached container. What the router adds is empty until it has seen it."""

    network: str
    container: str
    ifname: str
    name: str
    tenant: str
    netns: str
    addresses: tuple[str, ...] = ()  # of its interface; none: those that the namespace has
    vip: str = ""
    cookie: int = 0
    born: int = 0  # microseconds since 1970

    @property
    def id(self) -> Name:
        """What CNI calls it."""
        return (self.network, self.container, self.ifname)

    @property
    def key(self) -> Key:
        """(tenant, vip)."""
        return (self.tenant, self.vip)

    def report(self) -> dict[str, object]:
        """For the admin socket."""
        return {**asdict(self), "addresses": list(self.addresses)}


def parse(value: object, where: str) -> Attachment:
    """A checked :class:`Attachment` from decoded JSON. Raises ConfigError."""
    reader = Reader(value, where, KEYS)
    reader.version()
    addresses = reader.value.get("addresses", [])
    if not isinstance(addresses, list) or len(addresses) > ADDRESSES_MAX:
        raise reader.fail("addresses", f"not a list of at most {ADDRESSES_MAX}", "correct it")
    path = reader.text("netns", limit=4095)
    if not path.startswith("/"):
        raise reader.fail("netns", f"{path} is a relative path", "give an absolute one")
    container = reader.text("container", limit=128)
    return Attachment(
        network=reader.text("network", limit=128),
        container=container,
        ifname=reader.text("ifname", limit=15),
        name=reader.text("name", limit=128, default=container[:12]),
        tenant=reader.text("tenant", default="default"),
        netns=path,
        addresses=tuple(
            Reader({"addresses": item}, where, ("addresses",)).address("addresses")
            for item in addresses
        ),
        vip=reader.address("vip") if reader.value.get("vip") else "",
        cookie=_number(reader, "cookie"),
        born=_number(reader, "born"),
    )


def _number(reader: Reader, name: str) -> int:
    value = reader.value.get(name, 0)
    if not is_whole(value) or not 0 <= value < 1 << 64:
        raise reader.fail(name, "not a number of 64 bits", "correct it")
    return value


def file_name(name: Name) -> str:
    """Of the attachment's file; slim-cni computes the same."""
    return blake2s("\0".join(name).encode(), digest_size=16).hexdigest() + ".json"


class Attachments:
    """All of this host. Nothing here waits; files are small and on a tmpfs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.records: dict[Name, Attachment] = {}
        self.refused: dict[Name, str] = {}
        """Files that are there and cannot be served, and why."""
        self.unreadable: dict[str, str] = {}
        self._seen: dict[Name, netns.Identity] = {}
        self._changed = -1  # the directory's mtime, nanoseconds, when it was last read

    # --- files --------------------------------------------------------------------

    def scan(self) -> tuple[list[Attachment], list[Attachment]]:
        """(attachments that others left here, those whose files they took away)."""
        found: dict[Name, Attachment] = {}
        try:
            changed = self.directory.stat().st_mtime_ns
            if changed == self._changed and not self.refused and not self.unreadable:
                return [], []
            names = sorted(path for path in self.directory.iterdir() if path.suffix == ".json")
        except FileNotFoundError:
            changed, names = 0, []
        # A change within a tick of the kernel's clock leaves the time as it is.
        self._changed = changed if time.time_ns() - changed > TICK_NS else -1
        self.unreadable = {}
        for path in names[:RECORDS_MAX]:
            try:
                record = parse(config.load_json(path), str(path))
                if file_name(record.id) != path.name:
                    raise ConfigError(f"{path}: not the name of what it holds; remove it")
            except ConfigError as error:
                if path.exists():  # else it went while we looked
                    self.unreadable[path.name] = str(error)
                continue
            found[record.id] = record
        self.refused = {name: why for name, why in self.refused.items() if name in found}
        new = [
            found[name]
            for name in found
            if name not in self.records or not found[name].cookie  # written anew without us
        ]
        gone = [record for name, record in self.records.items() if name not in found]
        return new, gone

    def has_file(self, name: Name) -> bool:
        """Is there a file of this attachment?"""
        return (self.directory / file_name(name)).exists()

    def keep(self, record: Attachment) -> None:
        """Have *record*, on disk before this returns. Raises OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        data = json.dumps({"version": FORMAT, **record.report()}).encode() + b"\n"
        replace_file(self.directory / file_name(record.id), data)
        self.records[record.id] = record
        self.refused.pop(record.id, None)
        identity = netns.identify(record.netns)
        if identity is not None:
            self._seen[record.id] = identity

    def drop(self, name: Name) -> Attachment | None:
        """Have it no more; what it was. Raises OSError."""
        (self.directory / file_name(name)).unlink(missing_ok=True)
        self.refused.pop(name, None)
        self._seen.pop(name, None)
        return self.records.pop(name, None)

    # --- namespaces ---------------------------------------------------------------

    def is_gone(self, record: Attachment) -> bool:
        """Does its path lead to its namespace no more?"""
        identity = netns.identify(record.netns)
        if identity is None:
            return True
        if self._seen.get(record.id) == identity:
            return False
        try:
            cookie = cookie_at(record.netns)
        except OSError:
            return True
        if cookie == record.cookie:
            self._seen[record.id] = identity
        return cookie != record.cookie

    # --- admission ------------------------------------------------------------------

    def admit(
        self, record: Attachment, settings: RouterConfig, fleet: FleetMap, taken: Iterable[str]
    ) -> Attachment:
        """*record* with vip and name, as it may be served; *taken* are the names of other
        endpoints of this host. Raises AttachError, OSError; changes nothing."""
        vip = record.vip or self._vip(record, settings, fleet)
        held = fleet.endpoints.get((record.tenant, vip))
        if held is not None:
            raise AttachError(
                f"vip {vip} of tenant {record.tenant} is that of endpoint {held.label} of the map;"
                " keep the addresses of the map's endpoints out of the range that the runtime"
                " gives out"
            )
        for other in self.records.values():
            if other.id != record.id and other.key == (record.tenant, vip):
                raise AttachError(
                    f"vip {vip} of tenant {record.tenant} is already held by {other.name}"
                    f" (container {other.container}); end that one, or give another address"
                )
        names = set(taken)
        name = record.name
        if name in names:
            name = f"{name[:100]}-{record.container[:12]}"
        if name in names:
            name = f"{name}-{file_name(record.id)[:8]}"
        return replace(record, vip=vip, name=name)

    @staticmethod
    def _vip(record: Attachment, settings: RouterConfig, fleet: FleetMap) -> str:
        try:
            addresses = record.addresses or tuple(addresses_at(record.netns))
        except OSError as error:
            cause = error.strerror or str(error)
            raise AttachError(
                f"netns {record.netns}: {cause}; start the container again"
            ) from error
        for address in addresses:
            if settings.host in fleet.pools.hosts_of((record.tenant, address)):
                return address
        if not addresses:
            raise AttachError(
                f"netns {record.netns}: no address in it; chain slim after the plugin that gives"
                " the container its address"
            )
        raise AttachError(
            f"none of {', '.join(addresses)} lies in a pool of tenant {record.tenant} that host"
            f" {settings.host} belongs to; add the range to slim_pools, or correct the range of"
            " the address plugin"
        )

    def specs(self, settings: RouterConfig, fleet: FleetMap) -> list[EndpointSpec]:
        """What can be served now; the map comes first. The rest is in :attr:`refused`."""
        taken = {spec.name for spec in fleet.of_host(settings.host)}
        found = []
        for record in sorted(self.records.values(), key=lambda each: each.born):
            try:
                fit = self.admit(record, settings, fleet, taken)
                if settings.host not in fleet.pools.hosts_of(fit.key):
                    raise AttachError(
                        f"vip {fit.vip} lies in no pool of host {settings.host} any more; add its"
                        " range to slim_pools, or end the container"
                    )
            except AttachError as error:
                if self.refused.get(record.id) != str(error):
                    log.error("attached-refused", container=record.container, cause=error)
                self.refused[record.id] = str(error)
                continue
            self.refused.pop(record.id, None)
            taken.add(fit.name)
            found.append(
                EndpointSpec(
                    fit.name, fit.tenant, fit.vip, settings.host, fit.netns, fit.born, fit.cookie
                )
            )
        return found


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def cookie_at(path: str) -> int:
    """The cookie of the network namespace at *path*. Raises OSError."""
    fd, _unused = netns.open_path(path)
    with netns.closing(fd):
        return netns.cookie_of_fd(fd)


def addresses_at(path: str) -> list[str]:
    """The IPv4 addresses in the namespace at *path*, loopback's left out. Raises OSError."""
    fd, _unused = netns.open_path(path)
    with netns.closing(fd):
        found = netns.inside(fd, netns.addresses)
    return [text for text in found if not normal(text).is_loopback]
