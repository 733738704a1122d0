# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""The fleet as the inventory describes it, and what is wrong with it.

Private to this collection. Pure functions over plain data: nothing here talks
to a host. A problem is a dictionary with the keys C(thing), C(cause) and
C(next), which reads as one sentence, see L(sentence).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json

TRUNK_PORT = 6790
DATA_PORTS = (20000, 20999)
OVERLAY = ("10.44.0.0/16",)
PROVIDERS = ("vxlan", "host-gw", "bgp", "existing")
# Those whose routes the hosts make themselves, packet by packet as it is.
ROUTED = ("host-gw", "bgp")
# RFC 6996 and RFC 7607: all but 0 and the last of both ranges.
ASN_MAX = (1 << 32) - 2
ASN_RESERVED = (23456, 65535)
# TCP_MD5SIG_MAXKEYLEN: linux/tcp.h.
PASSWORD_MAX = 80
# Hold time in seconds: RFC 4271 section 4.2.
HOLD = (3, 65535)
DEFAULT_TENANT = "default"
DEFAULT_VNI = 4242
# 24 bits, and 0 is none: RFC 7348 section 5.
VNI_MAX = (1 << 24) - 1
FIREWALLS = ("managed", "checked", "ignored")
SERVICE_MANAGERS = ("systemd", "keeper")
SECURE_MODES = ("none", "bpf", "kmod")
# Hosts of one pool: pools.py of the router says why.
POOL_HOSTS_MAX = 64

# sun_path has 108 bytes with its closing zero: unix(7).
SOCKET_PATH_MAX = 107
# Linux IFNAMSIZ less the closing zero: netdevice(7).
NAME_MAX = 63
# map.json carries at most this many bytes of a netns path.
PATH_MAX = 4096


def problem(thing, cause, remedy):
    """One thing that is wrong, with its cause and the next step."""
    return {"thing": thing, "cause": cause, "next": remedy}


def sentence(entry):
    """The problem as one line of text."""
    return f"{entry['thing']}: {entry['cause']}; {entry['next']}"


def _address(text):
    """An IPv4Address, or None where text is not one."""
    try:
        return ipaddress.IPv4Address(str(text))
    except ValueError:
        return None


def _networks(values):
    """The overlay's networks that parse; the others are reported by _check_networks."""
    found = []
    for value in values:
        try:
            found.append(ipaddress.IPv4Network(str(value)))
        except ValueError:
            continue
    return found


def _plain(value):
    """Ansible's tagged and lazy containers as ordinary ones."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def build(hostvars, names):
    """The fleet out of the hosts' variables.

    :param hostvars: mapping of host name to its variables.
    :param names: the hosts to look at, normally those of the group slim_hosts.
    :returns: dict with C(hosts) (name to address, trunk_port, data_ports, prefixes),
        C(endpoints) (list, each with host) and C(pools) (list, each with the hosts
        whose variables have it). What the inventory has wrong stays in as it is, for
        L(problems) to name.
    """
    hosts = {}
    endpoints = []
    pools = {}
    for name in names:
        values = hostvars[name]
        explicit = "slim_host_address" in values
        if explicit:
            address = values["slim_host_address"]
        else:
            facts = values.get("ansible_facts") or {}
            address = (facts.get("default_ipv4") or {}).get("address")
            if not address:
                address = (facts.get("slim_host") or {}).get("default_address")
        hosts[str(name)] = {
            "address": str(address) if address else "",
            "explicit": explicit,
            "trunk_port": values.get("slim_trunk_port", TRUNK_PORT),
            "data_ports": _plain(values.get("slim_data_ports", list(DATA_PORTS))),
            "prefixes": _plain(values.get("slim_host_prefixes", [])),
        }
        listed = values.get("slim_endpoints", [])
        if not isinstance(listed, (list, tuple)):
            listed = [listed]
        for entry in listed:
            plain = _plain(entry)
            if isinstance(plain, dict):
                plain = {"tenant": "default", "netns": "", "attach": False, **plain}
                plain["host"] = str(name)
                for key in ("name", "vip", "tenant", "netns"):
                    if key in plain and plain[key] is not None:
                        plain[key] = str(plain[key])
            else:
                plain = {"host": str(name), "wrong": str(plain)}
            endpoints.append(plain)
        for entry in _listed(values.get("slim_pools", [])):
            plain = _plain(entry)
            if isinstance(plain, dict) and set(plain) <= {"prefix", "tenant"}:
                key = (str(plain.get("tenant", DEFAULT_TENANT)), str(plain.get("prefix", "")))
            else:
                key = (None, str(plain))
            pools.setdefault(key, set()).add(str(name))
    return {
        "hosts": hosts,
        "endpoints": endpoints,
        "pools": [
            {"tenant": tenant, "prefix": prefix, "hosts": sorted(members)}
            for (tenant, prefix), members in sorted(
                pools.items(), key=lambda item: (str(item[0][0]), item[0][1])
            )
        ],
    }


def _listed(value):
    """A list, or the one thing that was given in place of one."""
    return value if isinstance(value, (list, tuple)) else [value]


def _check_settings(settings):
    for key, variable, known in (
        ("fallback_provider", "slim_fallback_provider", PROVIDERS),
        ("secure_mode", "slim_secure_mode", SECURE_MODES),
        ("service_manager", "slim_service_manager", SERVICE_MANAGERS),
        ("host_firewall", "slim_host_firewall", FIREWALLS),
    ):
        value = settings[key]
        if value not in known:
            yield problem(
                f"{variable} {value}", "it is not known here", f"choose one of {', '.join(known)}"
            )
    for path in settings["socket_paths"]:
        size = len(str(path).encode())
        if size > SOCKET_PATH_MAX:
            yield problem(
                f"socket path {path}",
                f"it has {size} bytes and a Unix socket's path has room for {SOCKET_PATH_MAX}",
                "choose a shorter directory",
            )


def _check_networks(settings):
    values = settings["overlay_networks"]
    if not isinstance(values, (list, tuple)) or not values:
        yield problem(
            "slim_overlay_networks",
            "it is not a list with at least one network",
            "give it as a list, for example [10.44.0.0/16]",
        )
        return
    parsed = []
    for value in values:
        try:
            network = ipaddress.IPv4Network(str(value))
        except ValueError as error:
            yield problem(
                f"overlay network {value}",
                f"it is not an IPv4 network ({error})",
                "write it as NETWORK/LENGTH with no host bits set",
            )
            continue
        for other in parsed:
            if network.overlaps(other):
                yield problem(
                    f"overlay network {network}", f"it overlaps {other}", "keep one of the two"
                )
        parsed.append(network)


def _check_ports(name, host, endpoints):
    """Ports of one host; endpoints is the number that it has."""
    trunk = host["trunk_port"]
    if not isinstance(trunk, int) or isinstance(trunk, bool) or not 0 < trunk < 65536:
        yield problem(
            f"host {name}",
            f"slim_trunk_port {trunk} is not a TCP port",
            "choose a number from 1 to 65535 (normally 6790)",
        )
        trunk = None
    ports = host["data_ports"]
    if (
        not isinstance(ports, (list, tuple))
        or len(ports) != 2
        or not all(isinstance(port, int) and 0 < port < 65536 for port in ports)
        or ports[0] > ports[1]
    ):
        yield problem(
            f"host {name}",
            f"slim_data_ports {ports} is not a range of TCP ports",
            "give [FIRST, LAST], for example [20000, 20999]",
        )
        return
    if trunk is not None and ports[0] <= trunk <= ports[1]:
        yield problem(
            f"host {name}",
            f"slim_trunk_port {trunk} lies inside slim_data_ports {ports[0]} to {ports[1]}",
            "move one of them",
        )
    room = ports[1] - ports[0] + 1
    if room < endpoints:
        yield problem(
            f"host {name}",
            f"slim_data_ports {ports[0]} to {ports[1]} has {room} ports "
            f"for {endpoints} endpoints and each needs one",
            "widen the range",
        )


def _tenants(settings):
    """The entries of slim_tenants that are entries at all, by name; the first of a name counts."""
    found = {}
    listed = settings.get("tenants") or []
    for entry in listed if isinstance(listed, (list, tuple)) else []:
        if isinstance(entry, dict) and entry.get("name"):
            found.setdefault(str(entry["name"]), entry)
    return found


def _check_tenants(fleet, settings):
    listed = settings.get("tenants") or []
    if not isinstance(listed, (list, tuple)):
        yield problem(
            "slim_tenants", "it is not a list", "give it as a list of {name, vni}, [] for none"
        )
        return
    if not listed:
        return
    if settings["fallback_provider"] != "vxlan":
        yield problem(
            "slim_tenants",
            f"provider {settings['fallback_provider']} has one network for all tenants",
            "set slim_fallback_provider to vxlan, or slim_tenants to []",
        )
    networks = _networks(settings["overlay_networks"] or [])
    names = set()
    vnis = {settings.get("fallback_vni", DEFAULT_VNI): DEFAULT_TENANT}
    for entry in listed:
        if not isinstance(entry, dict) or not entry.get("name"):
            yield problem(
                "slim_tenants",
                f"it holds {_plain(entry)!r}, which has no name",
                "give name and vni",
            )
            continue
        name = str(entry["name"])
        thing = f"tenant {name}"
        for key in sorted(set(map(str, entry)) - {"name", "vni", "cidr"}):
            yield problem(thing, f"it has an unknown key {key}", "give name, vni and cidr only")
        if name == DEFAULT_TENANT:
            yield problem(
                thing,
                "it is there without being listed",
                "leave it out; slim_fallback_vni is its VNI",
            )
        elif name in names:
            yield problem(thing, "it is listed twice in slim_tenants", "keep one of the two")
        names.add(name)
        vni = entry.get("vni")
        if not isinstance(vni, int) or isinstance(vni, bool) or not 0 < vni <= VNI_MAX:
            yield problem(
                thing,
                f"vni {vni!r} is not a VXLAN network identifier",
                f"give a number from 1 to {VNI_MAX}",
            )
        elif vni in vnis:
            yield problem(
                thing, f"vni {vni} is already that of tenant {vnis[vni]}", "choose another"
            )
        else:
            vnis[vni] = name
        if entry.get("cidr") is not None:
            yield from _check_cidr(thing, entry["cidr"], networks)
    for endpoint in fleet["endpoints"]:
        tenant = endpoint.get("tenant")
        if "wrong" not in endpoint and tenant not in names and tenant != DEFAULT_TENANT:
            yield problem(
                f"endpoint {endpoint.get('name') or '(no name)'}",
                f"tenant {tenant} is not in slim_tenants",
                "add it there with a VNI of its own, or correct the name",
            )


def _check_cidr(thing, text, networks):
    try:
        network = ipaddress.IPv4Network(str(text))
    except ValueError as error:
        yield problem(
            thing, f"cidr {text} is not an IPv4 network ({error})", "write it as NETWORK/LENGTH"
        )
        return
    if networks and not any(network.subnet_of(other) for other in networks):
        yield problem(
            thing,
            f"cidr {text} lies outside the overlay {', '.join(str(net) for net in networks)}",
            "choose one inside it or extend slim_overlay_networks",
        )


def _check_hosts(fleet, settings, complete):
    owners = {}
    networks = _networks(settings["overlay_networks"] or [])
    counts = {}
    for endpoint in fleet["endpoints"]:
        counts[endpoint["host"]] = counts.get(endpoint["host"], 0) + 1
    for name, host in fleet["hosts"].items():
        yield from _check_ports(name, host, counts.get(name, 0))
        text = host["address"]
        if not text:
            if host["explicit"] or complete:
                yield problem(
                    f"host {name}",
                    "it has no address that the other hosts could reach",
                    "set slim_host_address for it (it has no default IPv4 route to take one from, "
                    "or it was left out by --limit and its facts are not known)",
                )
            continue
        address = _address(text)
        if address is None:
            yield problem(
                f"host {name}",
                f"slim_host_address {text} is not an IPv4 address",
                "write it as four numbers, for example 192.0.2.1",
            )
            continue
        if address.is_loopback or address.is_unspecified or address.is_multicast:
            yield problem(
                f"host {name}",
                f"slim_host_address {text} cannot be reached from another host",
                "give the address of the network between the hosts",
            )
            continue
        if address in owners:
            yield problem(
                f"host {name}",
                f"its address {text} is already that of host {owners[address]}",
                "correct slim_host_address of one of the two",
            )
        owners.setdefault(address, name)
        for network in networks:
            if address in network:
                yield problem(
                    f"overlay network {network}",
                    f"it contains the host address {text} of {name}",
                    "choose an overlay network that no host network overlaps",
                )


def _check_prefixes(fleet, settings):
    """Prefixes of hosts: inside the overlay, nobody else's, and with no vip of another host."""
    networks = _networks(settings["overlay_networks"] or [])
    taken = {}
    for name, host in fleet["hosts"].items():
        listed = host.get("prefixes") or []
        if not isinstance(listed, (list, tuple)):
            yield problem(
                f"host {name}", "slim_host_prefixes is not a list", "give it as a list of networks"
            )
            continue
        for text in listed:
            thing = f"host {name}"
            try:
                prefix = ipaddress.IPv4Network(str(text))
            except ValueError as error:
                yield problem(
                    thing,
                    f"slim_host_prefixes holds {text}, which is not an IPv4 network ({error})",
                    "write it as NETWORK/LENGTH with no host bits set",
                )
                continue
            if networks and not any(prefix.subnet_of(network) for network in networks):
                yield problem(
                    thing,
                    f"its prefix {prefix} lies outside the overlay "
                    f"{', '.join(str(net) for net in networks)}",
                    "choose one inside it or extend slim_overlay_networks",
                )
            for other, owner in taken.items():
                if prefix.overlaps(other):
                    yield problem(
                        thing,
                        f"its prefix {prefix} overlaps {other} of host {owner}",
                        "correct slim_host_prefixes of one of the two",
                    )
            taken[prefix] = name
    for endpoint in fleet["endpoints"]:
        vip = _address(endpoint.get("vip"))
        for prefix, owner in taken.items():
            if vip is not None and vip in prefix and endpoint["host"] != owner:
                yield problem(
                    f"endpoint {endpoint.get('name') or '(no name)'}",
                    f"vip {vip} lies in the prefix {prefix} of host {owner}",
                    "choose another vip or correct slim_host_prefixes",
                )


def _check_bgp(fleet, settings):
    bgp = settings.get("bgp") or {}
    if settings["fallback_provider"] != "bgp" or not bgp:
        return
    asn = bgp["asn"]
    if not 0 < asn <= ASN_MAX or asn in ASN_RESERVED:
        yield problem(
            f"slim_fallback_bgp_asn {asn}",
            "it is not a number of an autonomous system",
            "choose a private one, from 64512 to 65534 or from 4200000000 to 4294967294",
        )
    if not HOLD[0] <= bgp["hold"] <= HOLD[1]:
        yield problem(
            f"slim_fallback_bgp_hold {bgp['hold']}",
            f"a hold time has {HOLD[0]} to {HOLD[1]} seconds",
            "correct it",
        )
    if not 0 < bgp["port"] < 65536:
        yield problem(f"slim_fallback_bgp_port {bgp['port']}", "it is not a TCP port", "correct it")
    password = str(bgp["password"])
    # Never named: only what is wrong with it.
    if len(password.encode()) > PASSWORD_MAX or not all(
        " " <= char <= "~" and char != '"' for char in password
    ):
        yield problem(
            "slim_fallback_bgp_password",
            f"it has more than {PASSWORD_MAX} bytes, a double quote or signs beyond ASCII",
            "choose another",
        )
    reflectors = bgp["reflectors"]
    if not isinstance(reflectors, (list, tuple)):
        yield problem("slim_fallback_bgp_reflectors", "it is not a list", "give it as a list")
        return
    for entry in reflectors:
        if str(entry) not in fleet["hosts"] and _address(entry) is None:
            yield problem(
                f"slim_fallback_bgp_reflectors {entry}",
                "it is neither a host of the fleet nor an IPv4 address",
                "name a host of the group slim_hosts or give the address of a router of the site",
            )


def _check_endpoints(fleet, settings):
    tenants = _tenants(settings) if settings["fallback_provider"] == "vxlan" else {}
    names = {}
    local = {}
    vips = {}
    spaces = {}
    for endpoint in fleet["endpoints"]:
        host = endpoint["host"]
        if "wrong" in endpoint:
            yield problem(
                f"host {host}",
                f"slim_endpoints holds {endpoint['wrong']!r}, which is not an endpoint",
                "give a list of {name, vip, tenant, netns, attach}",
            )
            continue
        name = endpoint.get("name")
        if not name:
            yield problem(f"host {host}", "an endpoint has no name", "give each endpoint a name")
            name = "(no name)"
        thing = f"endpoint {name}"
        where = f"{host}/{name}"
        if len(name.encode()) > NAME_MAX or any(char.isspace() or char == "/" for char in name):
            yield problem(
                thing,
                f"the name has more than {NAME_MAX} bytes, white space or a slash",
                "choose a plain, short name",
            )
        tenant = endpoint.get("tenant") or ""
        if not tenant or len(tenant.encode()) > 255 or "\0" in tenant:
            yield problem(
                thing, "its tenant is empty or longer than 255 bytes", "choose a shorter tenant"
            )
        if (tenant, name) in names:
            yield problem(
                thing,
                f"the name is taken by {names[tenant, name]} (this one is on {host})",
                "rename one of the two",
            )
        elif (host, name) in local:
            # slimctl and the logs of a host know its endpoints by their names.
            yield problem(
                thing,
                f"host {host} has another endpoint of this name, of tenant {local[host, name]}",
                "rename one of the two",
            )
        names.setdefault((tenant, name), where)
        local.setdefault((host, name), tenant)
        # Tenants without a network of their own share the default one.
        own = tenants.get(tenant)
        networks = _networks(
            [own["cidr"]]
            if own is not None and own.get("cidr") is not None
            else settings["overlay_networks"] or []
        )
        held = vips.setdefault(tenant if own is not None else DEFAULT_TENANT, {})
        yield from _check_vip(thing, where, endpoint, networks, held, fleet)
        yield from _check_netns(thing, where, endpoint, spaces)


def _check_vip(thing, where, endpoint, networks, vips, fleet):
    text = endpoint.get("vip")
    if not text:
        yield problem(thing, f"it has no vip (on {endpoint['host']})", "give it one")
        return
    vip = _address(text)
    if vip is None:
        yield problem(
            thing, f"vip {text} is not an IPv4 address", "write it without a prefix length"
        )
        return
    if vip in vips:
        yield problem(
            thing,
            f"vip {vip} is already held by {vips[vip]}",
            "remove it there or choose another",
        )
    vips.setdefault(vip, where)
    inside = [network for network in networks if vip in network]
    if networks and not inside:
        yield problem(
            thing,
            f"vip {vip} lies outside the overlay {', '.join(str(net) for net in networks)}",
            "choose a vip inside it or extend slim_overlay_networks",
        )
    for network in inside:
        if network.prefixlen < 31 and vip in (network.network_address, network.broadcast_address):
            yield problem(
                thing,
                f"vip {vip} is the network or broadcast address of {network}",
                "choose another",
            )
    for name, host in fleet["hosts"].items():
        if host["address"] and _address(host["address"]) == vip:
            yield problem(thing, f"vip {vip} is the address of host {name}", "choose another")


def _check_netns(thing, where, endpoint, spaces):
    netns = endpoint.get("netns") or ""
    if not netns:
        yield problem(
            thing,
            "it has no netns",
            "give the path of its network namespace, for example /run/netns/web",
        )
        return
    if not netns.startswith("/") or len(netns.encode()) > PATH_MAX:
        yield problem(thing, f"netns {netns} is not an absolute path", "give one")
    if not isinstance(endpoint.get("attach"), bool):
        yield problem(
            thing, f"attach {endpoint.get('attach')!r} is not a boolean", "use true or false"
        )
    key = (endpoint["host"], netns)
    if key in spaces:
        yield problem(
            thing,
            f"netns {netns} is already that of {spaces[key]}",
            "one network namespace holds one endpoint",
        )
    spaces.setdefault(key, where)


def _check_pools(fleet, settings):
    tenants = _tenants(settings) if settings["fallback_provider"] == "vxlan" else {}
    overlay = _networks(settings["overlay_networks"] or [])
    parsed = []
    for pool in fleet["pools"]:
        thing = f"pool {pool['prefix']} (slim_pools of {pool['hosts'][0]})"
        if pool["tenant"] is None:
            yield problem(thing, "it is not a pool", "give a list of {prefix, tenant}")
            continue
        try:
            network = ipaddress.IPv4Network(pool["prefix"])
        except ValueError as error:
            yield problem(
                thing,
                f"its prefix is not an IPv4 network ({error})",
                "write it as NETWORK/LENGTH with no host bits set",
            )
            continue
        own = tenants.get(pool["tenant"])
        if settings.get("tenants") and own is None and pool["tenant"] != DEFAULT_TENANT:
            yield problem(
                thing,
                f"tenant {pool['tenant']} is not in slim_tenants",
                "add it there with a VNI of its own, or correct the name",
            )
        cidr = own.get("cidr") if own is not None else None
        inside = overlay if cidr is None else _networks([cidr])
        if inside and not any(network.subnet_of(other) for other in inside):
            yield problem(
                thing,
                f"it lies outside the overlay {', '.join(str(net) for net in inside)}",
                "choose a prefix inside it, or extend slim_overlay_networks",
            )
        for tenant, other in parsed:
            if tenant == pool["tenant"] and network.overlaps(other):
                yield problem(
                    thing, f"it overlaps the pool {other} of other hosts", "cut one of the two"
                )
        parsed.append((pool["tenant"], network))
        if len(pool["hosts"]) > POOL_HOSTS_MAX:
            yield problem(
                thing,
                f"{len(pool['hosts'])} hosts have it, {POOL_HOSTS_MAX} are possible",
                "divide it among groups of hosts, or give each host a prefix of its own",
            )


def problems(fleet, settings, complete=True):
    """Everything that is wrong with the inventory.

    :param fleet: from L(build).
    :param settings: dict with overlay_networks, fallback_provider, secure_mode,
        service_manager, host_firewall and socket_paths; tenants and fallback_vni
        where tenants have networks of their own.
    :param complete: facts of the hosts are known; without them a host whose
        address comes from its facts is not reported yet.
    :returns: list of problems, empty where the inventory is good.
    """
    found = list(_check_settings(settings))
    found += _check_networks(settings)
    if not fleet["hosts"]:
        found.append(
            problem("group slim_hosts", "it has no hosts", "put the hosts of the fleet into it")
        )
    found += _check_hosts(fleet, settings, complete)
    found += _check_prefixes(fleet, settings)
    found += _check_bgp(fleet, settings)
    found += _check_tenants(fleet, settings)
    found += _check_endpoints(fleet, settings)
    found += _check_pools(fleet, settings)
    return found


def routes(fleet, host):
    """Which parts of the overlay lie on a host, and which behind the others.

    :param fleet: from L(build), without problems.
    :param host: name of the host.
    :returns: dict with own (networks) and others (list of dicts with to and via): a
        host's prefixes, and each vip that lies in none of them as a network of its own.
    """
    parts = {}
    for name, entry in fleet["hosts"].items():
        parts[name] = {ipaddress.IPv4Network(str(text)) for text in entry.get("prefixes") or []}
    for endpoint in fleet["endpoints"]:
        vip = ipaddress.IPv4Network(endpoint["vip"])
        prefixes = parts[endpoint["host"]]
        if not any(vip.subnet_of(prefix) for prefix in prefixes):
            prefixes.add(vip)
    others = [
        {"to": str(network), "via": fleet["hosts"][name]["address"]}
        for name, networks in parts.items()
        if name != host
        for network in sorted(networks)
    ]
    return {
        "own": [str(network) for network in sorted(parts[host])],
        "others": sorted(others, key=lambda entry: (entry["to"], entry["via"])),
    }


def neighbours(fleet, host, reflectors):
    """Whom the routing daemon of a host talks to.

    :param fleet: from L(build), without problems.
    :param host: name of the host.
    :param reflectors: hosts of the fleet, or addresses of other routers, that pass routes on;
        where there are none every host talks to every other one.
    :returns: list of dicts with name (of a host, or an address), address and client (it gets
        from this host what the others have said).
    """
    hosts = fleet["hosts"]
    chosen = [str(entry) for entry in reflectors]
    inside = [name for name in chosen if name in hosts]
    peers = hosts if not chosen or host in inside else inside
    found = [
        {
            "name": name,
            "address": hosts[name]["address"],
            "client": host in inside and name not in inside,
        }
        for name in peers
        if name != host
    ]
    found += [
        {"name": entry, "address": entry, "client": False} for entry in chosen if entry not in hosts
    ]
    return sorted(found, key=lambda entry: entry["name"])


def segments(fleet, tenants, host):
    """The tenants' networks that one host is part of: those of the endpoints that it has.

    :param fleet: from L(build), without problems.
    :param tenants: slim_tenants, without problems.
    :param host: name of the host.
    :returns: list of dicts with name, vni, overlay (networks, empty for those of the
        fleet) and peers (addresses of the other hosts that have, or may have, endpoints of
        the tenant).
    """
    found = []
    for name, entry in sorted(_tenants({"tenants": tenants}).items()):
        where = {
            endpoint["host"] for endpoint in fleet["endpoints"] if endpoint.get("tenant") == name
        }
        for pool in fleet["pools"]:
            if pool["tenant"] == name:
                where.update(pool["hosts"])
        if host in where:
            found.append(
                {
                    "name": name,
                    "vni": int(entry["vni"]),
                    "overlay": [str(entry["cidr"])] if entry.get("cidr") is not None else [],
                    "peers": sorted(fleet["hosts"][other]["address"] for other in where - {host}),
                }
            )
    return found


def digest(content):
    """Tells one map's content from another's; the revision is no part of it."""
    kept = {key: content.get(key) for key in ("version", "hosts", "endpoints")}
    if content.get("pools"):
        kept["pools"] = content["pools"]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def fleet_map(fleet, installed=None, seen=()):
    """The content of map.json.

    :param fleet: from L(build), without problems.
    :param installed: dict with revision and digest of the map that the host has.
    :param seen: the same of the other hosts of this run. A host whose map must
        change gets a revision above all of them, so that revisions only grow.
    """
    keys = ("name", "tenant", "vip", "host", "netns")
    content = {
        "version": 1,
        "revision": 0,
        "hosts": {
            name: {"address": host["address"], "trunk_port": host["trunk_port"]}
            for name, host in sorted(fleet["hosts"].items())
        },
        "endpoints": [
            {key: endpoint[key] for key in keys}
            for endpoint in sorted(
                fleet["endpoints"], key=lambda item: (item["tenant"], item["host"], item["name"])
            )
        ],
    }
    if fleet["pools"]:
        content["pools"] = fleet["pools"]
    known = [int((entry or {}).get("revision", 0)) for entry in (installed, *seen)]
    if installed and installed.get("digest") == digest(content):
        content["revision"] = known[0]
    else:
        content["revision"] = 1 + max(known)
    return content
