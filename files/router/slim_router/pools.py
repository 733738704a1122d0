# SPDX-License-Identifier: Apache-2.0
"""Pools: vips that the map gives to hosts, not to endpoints.

Containers that a runtime starts are not in the map. The map says which hosts may have
the vips of a prefix; which of them has one, the hosts say themselves (directory.py).
"""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from .reader import ConfigError, Reader, kind

HOSTS_MAX = 64
"""Hosts of one pool: whoever looks for a vip of it opens a trunk to each of them."""
POOLS_MAX = 10_000

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool of the map."""

    tenant: str
    prefix: Network
    hosts: frozenset[str]


class Pools:
    """All pools, found by vip. Those of one tenant do not overlap."""

    def __init__(self, specs: Iterable[PoolSpec] = ()) -> None:
        self.specs = tuple(specs)
        self._found: dict[tuple[str, int, int], dict[int, PoolSpec]] = {}
        for spec in self.specs:
            net = spec.prefix
            kept = self._found.setdefault((spec.tenant, net.version, net.prefixlen), {})
            kept[int(net.network_address)] = spec

    def of(self, key: Key) -> PoolSpec | None:
        """The pool that has the vip of *key*."""
        if not self.specs:
            return None
        tenant, vip = key
        address = ipaddress.ip_address(vip)
        number, size = int(address), address.max_prefixlen
        for (owner, version, length), kept in self._found.items():
            if owner == tenant and version == address.version:
                spec = kept.get(number >> size - length << size - length)
                if spec is not None:
                    return spec
        return None

    def hosts_of(self, key: Key) -> frozenset[str]:
        """The hosts that may have *key*; none where it is in no pool."""
        spec = self.of(key)
        return spec.hosts if spec is not None else frozenset()


def parse(listed: object, where: str, hosts: Iterable[str]) -> Pools:
    """Checked pools from decoded JSON. Raises ConfigError."""
    known = frozenset(hosts)
    if not isinstance(listed, list) or len(listed) > POOLS_MAX:
        raise ConfigError(
            f"{where}: pools: a {kind(listed)}, not a list of at most {POOLS_MAX} pools;"
            " give one, or leave it out"
        )
    specs = [_pool(item, f"{where}: pool {number}", known) for number, item in enumerate(listed)]
    # (sorted, one that overlaps another follows the one that holds it)
    ordered = sorted(
        specs, key=lambda s: (s.tenant, s.prefix.version, int(s.prefix[0]), s.prefix.prefixlen)
    )
    for before, spec in itertools.pairwise(ordered):
        alike = (before.tenant, before.prefix.version) == (spec.tenant, spec.prefix.version)
        if alike and spec.prefix[0] in before.prefix:
            raise ConfigError(
                f"{where}: pools: {before.prefix} and {spec.prefix} of tenant {spec.tenant}"
                " overlap; keep one, or cut one of them"
            )
    return Pools(specs)


def _pool(item: object, where: str, known: frozenset[str]) -> PoolSpec:
    reader = Reader(item, where, ("tenant", "prefix", "hosts"))
    text = reader.get("prefix")
    try:
        if not isinstance(text, str):
            raise ValueError("not a string")
        prefix = ipaddress.ip_network(text)
    except ValueError as error:
        raise reader.fail(
            "prefix", f"{text!r} is not a prefix ({error})", "write it as ADDRESS/LENGTH"
        ) from None
    hosts = reader.get("hosts")
    if not isinstance(hosts, list) or not hosts or not all(isinstance(host, str) for host in hosts):
        raise reader.fail("hosts", "not a list of names of hosts", "give at least one")
    strangers = sorted(set(hosts) - known)
    if strangers:
        raise reader.fail(
            "hosts", f"{strangers[0]} is not among the map's hosts", "add it there or correct it"
        )
    if len(set(hosts)) > HOSTS_MAX:
        raise reader.fail(
            "hosts", f"{len(set(hosts))} hosts, {HOSTS_MAX} are possible",
            "divide the prefix among groups of hosts, or give each host one of its own",
        )  # fmt: skip
    return PoolSpec(reader.text("tenant", default="default"), prefix, frozenset(hosts))
