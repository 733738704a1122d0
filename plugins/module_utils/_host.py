# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""What a host must offer before Slim goes onto it.

Private to this collection. Judges the facts that the module slim_host_facts
brings; pure functions, so that every refusal has a unit test.
"""

from __future__ import annotations

import ipaddress
import re

from ansible_collections.slim.overlay.plugins.module_utils import _fleet
from ansible_collections.slim.overlay.plugins.module_utils._fleet import problem

# SO_NETNS_COOKIE, by which the router knows its callers, came with 5.14: socket(7).
KERNEL_MIN = (5, 14)
PYTHON_MIN = (3, 11)
# Outer Ethernet, IPv4, UDP and VXLAN: RFC 7348 section 5.
VXLAN_OVERHEAD = 50
# What every host has to take in one piece: RFC 791.
MTU_MIN = 576


def _version(text):
    found = re.match(r"(\d+)\.(\d+)", str(text))
    return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def _is_ours(facts, route):
    """Was the route made by a fallback of ours?"""
    built = facts["fallback"]
    if route.get("namespace"):
        return [route["namespace"], route["device"]] in built["attached"]
    # The routed providers' pairs; and routes that lead to the other hosts.
    return route["device"].startswith("slr") or (
        bool(route["gateway"]) and route["network"] in built["routes"]
    )


def way_to(facts, address):
    """The host's route to an address, longest prefix first; None where there is none."""
    target = ipaddress.IPv4Address(address)
    fitting = [
        route
        for route in facts["routes"]
        if target in ipaddress.IPv4Network(route["network"]) and not _is_ours(facts, route)
    ]
    return max(
        fitting, key=lambda route: ipaddress.IPv4Network(route["network"]).prefixlen, default=None
    )


def routes_into(facts, networks):
    """The routes that overlap one of the networks, of the host and inside its endpoints.

    The default route overlaps every one. Those of a fallback that we built do not count.
    """
    wanted = [ipaddress.IPv4Network(str(value)) for value in networks]
    return [
        route
        for route in facts["routes"] + facts["routes_inside"]
        if not _is_ours(facts, route)
        and any(ipaddress.IPv4Network(route["network"]).overlaps(mine) for mine in wanted)
    ]


def _software(thing, facts, settings):
    if _version(facts["kernel"]) < KERNEL_MIN:
        yield problem(
            thing,
            f"its kernel {facts['kernel']} is older than {KERNEL_MIN[0]}.{KERNEL_MIN[1]}, "
            "where SO_NETNS_COOKIE came in",
            "boot a newer kernel or leave the host out of slim_hosts",
        )
    python = facts["python"]
    if not python["version"]:
        yield problem(
            thing,
            f"the interpreter {python['path']} does not run",
            "install Python 3.11 or later there or set slim_router_python",
        )
    elif tuple(python["version"][:2]) < PYTHON_MIN:
        version = ".".join(str(part) for part in python["version"])
        yield problem(
            thing,
            f"{python['path']} is Python {version} and the router needs 3.11 or later",
            "install a newer Python and set slim_router_python to it",
        )
    elif not settings["manage_packages"]:
        for module in python["missing"]:
            if module == "pyroute2" and settings["fallback_provider"] == "existing":
                continue
            yield problem(
                thing,
                f"{python['path']} has no module {module}",
                "install it there or set slim_router_manage_packages: true",
            )
    elif python["missing"] and facts["os_family"] not in ("debian", "redhat"):
        yield problem(
            thing,
            f"{python['path']} lacks {', '.join(python['missing'])} and the package names "
            f"of {facts['distribution'] or 'this system'} are not known here",
            "install the modules there and set slim_router_manage_packages: false",
        )
    builder = settings["controller_machine"]
    if settings["shim_build"] == "controller" and facts["machine"] != builder:
        yield problem(
            thing,
            f"it is {facts['machine']} and the controller would build the shim for {builder}",
            "set slim_shim_build: host for it",
        )
    if settings["shim_build"] == "host":
        for tool in ("make", "cc"):
            if not facts["tools"].get(tool):
                yield problem(
                    thing,
                    f"slim_shim_build is host and there is no {tool}",
                    "install a C compiler and make there, or build on the controller",
                )


def _clashes(facts, settings, overlay):
    for route in facts["routes"]:
        network = ipaddress.IPv4Network(route["network"])
        if network.prefixlen == 0 or route["device"] in settings["own_devices"]:
            continue
        if _is_ours(facts, route):
            continue
        for mine in overlay:
            if mine.overlaps(network):
                yield problem(
                    f"overlay network {mine}",
                    f"it overlaps {network}, which is reached through {route['device']} of "
                    f"host {settings['name']}",
                    "choose an overlay network that no host network overlaps",
                )


def _mtu(thing, facts, settings):
    """Does the network between the hosts carry the overlay's packets whole?"""
    device = next(
        (
            entry["device"]
            for entry in facts["addresses"]
            if entry["address"] == settings["address"]
        ),
        None,
    )
    outer = facts["mtus"].get(device, 0)
    if not outer:
        return
    overhead = VXLAN_OVERHEAD if settings["fallback_provider"] == "vxlan" else 0
    room = outer - overhead
    if settings["fallback_mtu"] > room:
        yield problem(
            thing,
            f"slim_fallback_mtu is {settings['fallback_mtu']} and {device} has room for {room} "
            f"(its MTU {outer} less {overhead} for the encapsulation)",
            f"set slim_fallback_mtu: 0 or at most {room}, or raise the MTU between the hosts",
        )
    elif (settings["fallback_mtu"] or room) < MTU_MIN:
        yield problem(
            thing,
            f"the overlay's packets would have {settings['fallback_mtu'] or room} bytes and less "
            f"than {MTU_MIN} is of no use (MTU of {device}: {outer})",
            "raise the MTU between the hosts, or slim_fallback_mtu",
        )


def _neighbours(thing, facts, settings):
    """Are the other hosts on a link of this one?"""
    outside = [entry for entry in settings["reflectors"] if entry not in settings["fleet"]]
    for peer in settings["peers"]:
        way = way_to(facts, peer)
        if way is None:
            yield problem(
                thing,
                f"it has no route to the host address {peer}",
                "bring the network between the hosts up or correct slim_host_address",
            )
        elif way["gateway"] and not (settings["fallback_provider"] == "bgp" and outside):
            yield problem(
                thing,
                f"the next hop {peer} is not on one of its links but behind {way['gateway']}, "
                "which would not know the vips",
                "put the hosts on one link, choose slim_fallback_provider: vxlan, or bgp with the "
                "routers between them as slim_fallback_bgp_reflectors",
            )


def _bird(thing, facts, settings):
    bird = facts["bird"]
    taken = any(entry["port"] == settings["bgp_port"] for entry in facts["listeners"])
    if taken and not bird["configured"]:
        yield problem(
            thing,
            f"TCP port {settings['bgp_port']} for BGP is taken by another program",
            "stop that program, or set slim_fallback_bgp_port to another one for all hosts",
        )
    if not bird["program"] and not settings["manage_packages"]:
        yield problem(
            thing,
            "the routing daemon bird is not there and packages are not to be installed",
            "install BIRD 2 (package bird2, bird on EL) or set slim_router_manage_packages: true",
        )
    elif not bird["program"] and facts["os_family"] not in ("debian", "redhat"):
        yield problem(
            thing,
            "the routing daemon bird is not there and its package name on "
            f"{facts['distribution'] or 'this system'} is not known here",
            "install BIRD 2 there",
        )


def _network(thing, facts, settings):
    address = settings["address"]
    known = sorted({entry["address"] for entry in facts["addresses"]})
    if address and known and address not in known:
        yield problem(
            thing,
            f"slim_host_address {address} is not on any of its interfaces",
            f"choose one of {', '.join(known)}",
        )
    overlay = []
    for value in settings["overlay_networks"]:
        try:
            overlay.append(ipaddress.IPv4Network(str(value)))
        except ValueError:
            continue
    if settings["fallback_provider"] == "vxlan" and not facts["vxlan"]:
        yield problem(
            thing,
            f"its kernel {facts['kernel']} has no vxlan driver",
            "install the package with the kernel's modules or use slim_fallback_provider: existing",
        )
    if settings["fallback_provider"] != "existing":
        yield from _clashes(facts, settings, overlay)
        yield from _mtu(thing, facts, settings)
    if settings["fallback_provider"] in _fleet.ROUTED:
        yield from _neighbours(thing, facts, settings)
    if settings["fallback_provider"] == "bgp":
        yield from _bird(thing, facts, settings)
    if settings["fallback_provider"] == "existing":
        ways = routes_into(facts, overlay)
        secret = {route["device"] for route in ways} & set(facts["wireguard"])
        if secret and not settings["allow_plaintext"]:
            yield problem(
                thing,
                f"the overlay is encrypted ({', '.join(sorted(secret))}) and Slim's connections "
                "between the hosts would not be",
                "protect the network between the hosts (WireGuard or IPsec on slim_host_address) "
                "and set slim_allow_plaintext: true, or do not deploy Slim there",
            )
        for mine in overlay:
            reach = routes_into(facts, [mine])
            if not reach:
                yield problem(
                    thing,
                    f"slim_fallback_provider is existing and neither it nor an endpoint of it "
                    f"has a route into {mine}",
                    "bring the overlay up first, correct slim_overlay_networks, or let "
                    "slim_fallback_provider: vxlan build one",
                )


def _service(thing, facts, settings):
    if settings["service_manager"] == "systemd" and not facts["systemd"]:
        yield problem(
            thing,
            "slim_service_manager is systemd and systemd does not run there",
            "set slim_service_manager: keeper and slim_router_keeper_command, or boot with systemd",
        )
    if settings["service_manager"] == "keeper" and not settings["keeper_command"]:
        yield problem(
            thing,
            "the router would be run by a keeper and slim_router_keeper_command is empty "
            "(systemd does not run there, or slim_service_manager is keeper)",
            "set slim_router_keeper_command, or boot with systemd",
        )
    for listener in facts["listeners"]:
        if listener["port"] == settings["trunk_port"] and not settings["router_installed"]:
            yield problem(
                thing,
                f"TCP port {listener['port']} for the trunk is taken by another program",
                "stop that program or set slim_trunk_port",
            )
            break
    if not facts["root"]:
        yield problem(
            thing,
            "the tasks do not run as root",
            "set ansible_become: true or log in as root",
        )


def _guard(thing, facts, settings):
    """Can the kernel hold containers to their connections, as slim_secure_mode asks?"""
    guard = facts["guard"]
    plain = "or set slim_secure_mode: none if every program in its endpoints is trusted"
    if settings["secure_mode"] == "bpf":
        if "bpf" not in guard["lsm"]:
            yield problem(
                thing,
                "slim_secure_mode is bpf and its kernel runs without the BPF LSM "
                f"(/sys/kernel/security/lsm: {','.join(guard['lsm']) or 'none'})",
                f"boot it with lsm={','.join([*guard['lsm'], 'bpf'])}, use kmod, {plain}",
            )
        if not guard["btf"]:
            yield problem(
                thing,
                "slim_secure_mode is bpf and its kernel has no type information "
                "(/sys/kernel/btf/vmlinux)",
                f"boot a kernel built with CONFIG_DEBUG_INFO_BTF, use kmod, {plain}",
            )
    if settings["secure_mode"] == "kmod":
        if not guard["modules"]:
            yield problem(
                thing,
                "slim_secure_mode is kmod and its kernel takes no modules, or traces no functions "
                "(/proc/modules, /proc/sys/kernel/ftrace_enabled)",
                f"boot a kernel with CONFIG_MODULES and CONFIG_FUNCTION_TRACER, use bpf, {plain}",
            )
        if guard["secure_boot"] and not settings["sign_key"]:
            yield problem(
                thing,
                "slim_secure_mode is kmod, Secure Boot is on, and an unsigned module is refused",
                "set slim_kmod_sign_key and slim_kmod_sign_certificate to a key that its "
                f"firmware knows, use bpf, {plain}",
            )
        if facts["os_family"] not in ("debian", "redhat") and not guard["headers"]:
            yield problem(
                thing,
                "slim_secure_mode is kmod, the headers of its kernel are not there and the "
                f"package names of {facts['distribution'] or 'this system'} are not known here",
                f"install headers, make and a C compiler there, use bpf, {plain}",
            )


def problems(facts, settings):
    """Why Slim cannot go onto this host.

    :param facts: ansible_facts.slim_host.
    :param settings: dict with name, address, trunk_port, overlay_networks,
        fallback_provider, service_manager, keeper_command, shim_build,
        controller_machine, manage_packages, own_devices, router_installed,
        allow_plaintext, data_ports, secure_mode, sign_key, fallback_mtu, bgp_port, peers
        (addresses of the other hosts), fleet (names of the hosts) and reflectors.
    :returns: list of problems.
    """
    thing = f"host {settings['name']}"
    found = list(_software(thing, facts, settings))
    found += _network(thing, facts, settings)
    found += _service(thing, facts, settings)
    found += _guard(thing, facts, settings)
    return found


def notes(facts, settings):
    """What is worth a word but stops nothing.

    :returns: list of sentences.
    """
    thing = f"host {settings['name']}"
    found = []
    if facts["ipv6_disabled"]:
        found.append(
            f"{thing}: IPv6 is disabled; programs that open AF_INET6 sockets for IPv4 peers "
            "(JVM, nginx) will open AF_INET ones or fail, with Slim as without it"
        )
    if facts["libc"] == "musl":
        found.append(
            f"{thing}: it runs on musl; programs of the host need libslim-musl.so, "
            "containers need the one of their own image's libc"
        )
    if settings["fallback_provider"] == "existing" and settings["overlay_networks"]:
        for value in settings["overlay_networks"]:
            mine = ipaddress.IPv4Network(str(value))
            if all(route["network"].endswith("/0") for route in routes_into(facts, [mine])):
                found.append(
                    f"{thing}: {mine} is reached by the default route only; "
                    "make sure that this is the overlay"
                )
    first, last = facts["local_ports"]
    low, high = settings["data_ports"]
    if first <= high and low <= last:
        found.append(
            f"{thing}: slim_data_ports {low} to {high} overlap the kernel's range for outgoing "
            f"connections, {first} to {last}; a worker may find its port in use"
        )
    return found
