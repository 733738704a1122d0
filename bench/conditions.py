# SPDX-License-Identifier: Apache-2.0
"""The circumstances of a run: without them none of its figures means anything."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from bench.lab import Lab
from bench.model import SLIM

OFFLOADS = {
    "tcp-segmentation-offload": "TSO",
    "generic-segmentation-offload": "GSO",
    "generic-receive-offload": "GRO",
    "tx-udp_tnl-segmentation": "tunnel TSO",
}
"""Features that decide what an overlay costs (ethtool -k), and the word for each."""

SYSCTLS = (
    "net.ipv4.tcp_congestion_control",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_tw_reuse",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
)


def gather(lab: Lab, endpoints: list[str]) -> dict[str, Any]:
    """Look at this machine and at the nodes and endpoints that take part.

    A question that a node does not answer leaves its entry out; nothing fails.
    """
    nodes = {e: describe_network(lab, e, "host") for e in endpoints}
    inside = {e: describe_network(lab, e, "overlay") for e in endpoints[:2]}
    return {
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "router": version_of(lab, endpoints[0], "/opt/slim/router/current"),
        "shim": version_of(lab, endpoints[0], "/opt/slim/shim/current"),
        "shim_active": shim_active(lab, endpoints[0]),
        "lab": {
            name: value
            for name, value in lab.status().items()
            if name in ("kind", "secure", "rtt_us", "congestion_control", "steering")
        },
        "nodes": nodes,
        "endpoints": inside,
    }


def brief(found: dict[str, Any]) -> str:
    """The settings that decide a figure, in one line, to stand beside each."""
    lab = found.get("lab", {})
    parts = []
    network: dict[str, Any] = next(iter(found.get("nodes", {}).values()), {})
    controls = network.get("route_congestion") or [lab.get("congestion_control")]
    parts.append("TCP " + "/".join(str(one or "?") for one in controls))
    virtual = ("bridge", "vxlan")
    for name, about in network.get("devices", {}).items():
        if about["kind"] in virtual:
            continue
        # The node's way to the other hosts comes first: endpoints are joined later.
        words = [f"{word} {'on' if on else 'off'}" for word, on in about["offload"].items()]
        parts.append(f"{name} MTU {about['mtu']} {' '.join(words)}")
        break
    parts.append(f"steering {'on' if network.get('steering') else 'none'}")
    if "rtt_us" in lab:
        parts.append(f"{lab['rtt_us']} us of round trip added")
    return ", ".join(parts)


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the first CPU."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else "unknown"


def version_of(lab: Lab, endpoint: str, link: str) -> str:
    """Version behind a `current` link on the endpoint's node."""
    target = lab.run(endpoint, "host", ["readlink", "-f", link], check=False).strip()
    return Path(target).name if target and target != link else "not installed"


def shim_active(lab: Lab, endpoint: str) -> bool:
    """True if a process started in slim mode really has the shim mapped."""
    maps = lab.run(endpoint, SLIM, ["cat", "/proc/self/maps"], check=False)
    return "libslim" in maps


def describe_network(lab: Lab, endpoint: str, run: str) -> dict[str, Any]:
    """Devices with MTU and offload, packet steering, sysctls, default congestion control."""
    found: dict[str, Any] = {"devices": devices(lab, endpoint, run)}
    # The mount is private to this command: /sys of another namespace shows other devices.
    steering = lab.run(
        endpoint,
        run,
        [
            "unshare", "--mount", "sh", "-c",
            "mount -t sysfs sysfs /sys; grep -H . /sys/class/net/*/queues/rx-*/rps_cpus",
        ],
        check=False,
    )  # fmt: skip
    found["steering"] = parse_steering(steering)
    values = lab.run(endpoint, run, ["sysctl", "-e", *SYSCTLS], check=False)
    found["sysctl"] = {
        name.strip(): " ".join(value.split())
        for name, _unused, value in (line.partition("=") for line in values.splitlines())
        if value
    }
    routes = lab.run(endpoint, run, ["ip", "-4", "route", "show", "table", "all"], check=False)
    found["route_congestion"] = sorted(set(re.findall(r"congctl (\S+)", routes)))
    return found


def devices(lab: Lab, endpoint: str, run: str) -> dict[str, dict[str, Any]]:
    """MTU and offload settings of the devices (lo apart), by name."""
    listing = lab.run(endpoint, run, ["ip", "-j", "-d", "link", "show"], check=False)
    try:
        links = json.loads(listing or "[]")
    except ValueError:
        links = []
    found: dict[str, dict[str, Any]] = {}
    for link in links:
        name = link.get("ifname")
        if not name or name == "lo":
            continue
        features = lab.run(endpoint, run, ["ethtool", "-k", name], check=False)
        found[name] = {
            "kind": link.get("linkinfo", {}).get("info_kind", "?"),
            "mtu": link.get("mtu"),
            "offload": parse_offload(features),
        }
    return found


def parse_offload(text: str) -> dict[str, bool]:
    """On or off of the features of OFFLOADS, from `ethtool -k`."""
    found: dict[str, bool] = {}
    for line in text.splitlines():
        name, _unused, state = line.strip().partition(":")
        if name in OFFLOADS and state.split():
            found[OFFLOADS[name]] = state.split()[0] == "on"
    return found


def parse_steering(text: str) -> dict[str, str]:
    """CPU masks of receive packet steering by device, only those that are not zero."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        path, _unused, mask = line.rpartition(":")
        words = path.split("/")
        if len(words) > 4 and mask.strip().strip("0,"):
            found[words[4]] = mask.strip()
    return found


def parse_congestion(text: str) -> set[str]:
    """Congestion controls in force, from `ss -tinH`: the first word of a connection's details."""
    return {
        words[0]
        for words in (line.split() for line in text.splitlines() if line[:1] in " \t")
        if words and ("wscale" in words[1:2][0] if len(words) > 1 else False)
    }


def summary(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The conditions as rows of a table for people."""
    rows = [
        ("kernel", f"{found.get('kernel')}"),
        ("CPUs", f"{found.get('cpus')} x {found.get('cpu')}"),
        ("load before the run", f"{found.get('load_before')}"),
        ("SlimRouter, SlimSocket", f"{found.get('router')}, {found.get('shim')}"),
    ]
    if lab := found.get("lab"):
        rows.append(
            (
                "lab",
                f"{lab.get('kind')}, secure mode {lab.get('secure')}, "
                f"{lab.get('rtt_us')} us of round trip added between hosts",
            )
        )
    if not found.get("shim_active", True):
        rows.append(("warning", "a process in slim mode does not have the shim mapped"))
    if "congestion" in found:
        rows.append(("congestion control seen", ", ".join(found["congestion"]) or "not seen"))
    for label, key in (("host", "rtt_us_across"), ("overlay", "rtt_us_overlay")):
        if key in found:
            rows.append((f"shortest round trip, {label}", f"{found[key]:.1f} us"))
    for where, networks in (
        ("node", found.get("nodes", {})),
        ("endpoint", found.get("endpoints", {})),
    ):
        for name, network in networks.items():
            for device, about in network.get("devices", {}).items():
                offload = ", ".join(
                    f"{word} {'on' if state else 'off'}" for word, state in about["offload"].items()
                )
                steering = network.get("steering", {}).get(device, "none")
                rows.append(
                    (
                        f"{where} of {name}: {device}" if where == "node" else f"{name}: {device}",
                        (
                            f"{about['kind']}, MTU {about['mtu']}, {offload or 'offload unknown'}, "
                            f"packet steering {steering}"
                        ),
                    )
                )
    return rows
