# SPDX-License-Identifier: Apache-2.0
"""A lab of virtual machines as others see it: Ansible's inventory, and `slimlab status`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lab.errors import LabError, Refused
from lab.state import Node, Plan, State
from lab.vm import guest, layout

#: How long a shim may wait for its router, in microseconds: the most that it takes.
BOUND_US = 1_000_000

#: What QEMU itself takes beside a node's memory, in MiB.
_OVERHEAD_MB = 400

_LOOK = """
uname -r
systemctl show --property=MainPID --value slim-router.service
ethtool -k lan0
"""


def check(hosts: int) -> None:
    """Refuse more machines than fit into this one's memory."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        return
    each = layout.MEMORY_MB + _OVERHEAD_MB
    fit = int(found[1]) // 1024 // each
    if hosts > fit:
        raise Refused(
            f"--hosts {hosts}: a virtual machine takes {each} MiB, and this machine has "
            f"memory for {fit}; choose fewer, or --kind netns"
        )


def connection(state: State, node: Node) -> dict[str, Any]:
    """How Ansible gets onto one node: over SSH, as on any fleet."""
    place = guest.directory(state)
    image = Path((place / "image").read_text().strip())
    return {
        "ansible_host": "127.0.0.1",
        "ansible_port": int((place / node.name / "port").read_text()),
        "ansible_ssh_private_key_file": str(image / "key"),
        # The connection that the lab's own commands use too.
        "ansible_control_path": str(guest.host(state, node.name).control),
        "ansible_ssh_common_args": (
            f"-o HostKeyAlias={layout.HOST_KEY_ALIAS} -o UserKnownHostsFile={place}/known_hosts "
            "-o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -o KexAlgorithms=curve25519-sha256"
        ),
    }


def variables(plan: Plan) -> dict[str, Any]:
    """Nothing is special about the machines, but that an emulator is slow."""
    return {
        "ansible_user": "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_args": "-F /dev/null -o ControlMaster=auto -o ControlPersist=yes",
        "ansible_timeout": 30,
        "slim_secure_mode": plan.secure,
        # Bounds for a processor that is twenty times slower, and shared.
        "slim_router_bounds": {
            "swap_us": BOUND_US,
            "blocking_swap_us": BOUND_US,
            "reply_us": BOUND_US,
            "lease_s": 30,
        },
        "slim_verify_timeout": 60,
    }


def _look(state: State, node: str) -> tuple[str, int | None, dict[str, str]]:
    """Kernel, router's pid and offload settings of a node."""
    lines = guest.script(state, node, _LOOK).splitlines()
    pid = int(lines[1]) if lines[1].strip().isdigit() else 0
    wanted = {
        "tx-checksumming": "tx",
        "generic-segmentation-offload": "gso",
        "tcp-segmentation-offload": "tso",
        "generic-receive-offload": "gro",
    }
    offload = {}
    for line in lines[2:]:
        name, _colon, value = line.strip().partition(":")
        if name in wanted:
            offload[wanted[name]] = value.split()[0]
    return lines[0].strip(), pid or None, offload


def collect(state: State, plan: Plan) -> dict[str, Any]:
    """Everything that `status` shows, as data; LabError if a node does not answer."""
    nodes = []
    offload: dict[str, str] = {}
    for node in plan.nodes:
        if guest.process(state, node.name).pid() is None:
            raise LabError(
                f"the virtual machine of {node.name} does not run; its last words are in "
                f"{guest.process(state, node.name).console}; tools/slimlab up builds the lab anew"
            )
        release, router, offload = _look(state, node.name)
        nodes.append(
            {"name": node.name, "address": node.address, "router": router, "kernel": release}
        )
    return {
        "name": state.name,
        "phase": plan.phase,
        "kind": "vm",
        "secure": plan.secure,
        "rtt_us": plan.rtt_us,
        "congestion_control": "cubic",
        "offload": offload,
        "steering": "none",
        "cpus": os.cpu_count(),
        "inventory": str(state.inventory),
        "nodes": nodes,
        "endpoints": [
            {"name": end.name, "node": end.node, "vip": end.vip, "tenant": end.tenant}
            for end in plan.endpoints
        ],
    }
