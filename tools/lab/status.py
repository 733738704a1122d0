# SPDX-License-Identifier: Apache-2.0
"""What runs in the lab, and under which conditions figures from it stand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lab import congestion, names
from lab.errors import LabError
from lab.room import Room
from lab.state import Plan, State

_OFFLOADS = {
    "tx-checksumming": "tx",
    "generic-segmentation-offload": "gso",
    "tcp-segmentation-offload": "tso",
    "generic-receive-offload": "gro",
    "tx-udp_tnl-segmentation": "tunnel-segmentation",
}


def _offload(room: Room) -> dict[str, str]:
    """Offload settings of a room's eth0, as ethtool states them."""
    found = {}
    for line in room.run("ethtool", "-k", "eth0").splitlines():
        name, _colon, value = line.strip().partition(":")
        if name in _OFFLOADS:
            found[_OFFLOADS[name]] = value.split()[0]
    return found


def _router(room: Room) -> int | None:
    """Pid of the node's router, None if it does not run."""
    try:
        pid = int(room.run("cat", names.ROUTER_PIDFILE))
    except (LabError, ValueError):
        return None
    return pid if Path(f"/proc/{pid}").exists() else None


def collect(state: State, plan: Plan) -> dict[str, Any]:
    """Everything that `status` shows, as data."""
    first = Room(state, plan.nodes[0].name)
    rooms = [Room(state, node.name) for node in plan.nodes]
    rooms += [Room(state, endpoint.name) for endpoint in plan.endpoints]
    seen = {congestion.seen_on(room) for room in rooms}
    steering = first.run("/bin/sh", "-c", "cat /sys/class/net/eth0/queues/rx-*/rps_cpus")
    return {
        "name": state.name,
        "phase": plan.phase,
        "kind": "netns",
        "secure": plan.secure,
        "rtt_us": plan.rtt_us,
        "congestion_control": seen.pop() if len(seen) == 1 else "mixed",
        "offload": _offload(first),
        "steering": "rps" if any(line.strip("0,") for line in steering.split()) else "none",
        "cpus": os.cpu_count(),
        "inventory": str(state.inventory),
        "nodes": [
            {"name": node.name, "address": node.address, "router": _router(Room(state, node.name))}
            for node in plan.nodes
        ],
        "endpoints": [
            {"name": end.name, "node": end.node, "vip": end.vip, "tenant": end.tenant}
            for end in plan.endpoints
        ],
    }


def render(facts: dict[str, Any]) -> str:
    """The same for people."""
    offload = " ".join(f"{name} {value}" for name, value in facts["offload"].items())
    lines = [
        f"lab {facts['name'] or '(default)'}: {facts['phase']}, kind {facts['kind']}, "
        f"secure mode {facts['secure']}",
        f"congestion control: {facts['congestion_control']} on every IPv4 route",
        f"delay between hosts: {facts['rtt_us']} us per round trip"
        + (" (relay of our own)" if facts["rtt_us"] else " added"),
        f"offload on the cables: {offload}; steering {facts['steering']}; {facts['cpus']} CPUs",
    ]
    for node in facts["nodes"]:
        router = f"router {node['router']}" if node["router"] else "no router"
        kernel = f"  kernel {node['kernel']}" if "kernel" in node else ""
        lines.append(f"{node['name']}  {node['address']}  {router}{kernel}")
        lines += [
            f"  {end['name']}  {end['vip']}  tenant {end['tenant']}"
            for end in facts["endpoints"]
            if end["node"] == node["name"]
        ]
    return "\n".join(lines)
