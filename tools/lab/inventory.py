# SPDX-License-Identifier: Apache-2.0
"""The inventory and environment that point ansible-playbook at the lab."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from lab import names
from lab.room import Room
from lab.state import Node, Plan, State
from lab.vm import fleet

KEEPER = Path(__file__).with_name("keeper.py")


def venv_python() -> str:
    """The interpreter that has Ansible and pyroute2: ours."""
    return sys.executable


def _write_shell(state: State, node: str) -> Path:
    """Write the shell that Ansible starts for `node`: every task runs inside."""
    directory = state.scratch / "shell"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / node
    words = shlex.join(Room(state, node).enter())
    path.write_text(
        f'#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\nexec {words} /bin/sh "$@"\n'
    )
    path.chmod(0o755)
    return path


def describe(state: State, plan: Plan) -> dict[str, Any]:
    """The whole inventory as data, in the form of Ansible's yaml plugin."""
    hosts: dict[str, Any] = {}
    for node in plan.nodes:
        hosts[node.name] = {
            **(fleet.connection(state, node) if plan.kind == "vm" else _connection(state, node)),
            "slim_host_address": node.address,
            "slim_endpoints": [
                {
                    "name": endpoint.name,
                    "vip": endpoint.vip,
                    "tenant": endpoint.tenant,
                    "netns": endpoint.netns,
                    "attach": True,
                }
                for endpoint in plan.endpoints
                if endpoint.node == node.name
            ],
        }
    return {
        "slim_hosts": {
            "hosts": hosts,
            "vars": {
                **(fleet.variables(plan) if plan.kind == "vm" else _variables(state)),
                "slim_overlay_networks": [names.OVERLAY_NETWORK],
                "slim_tenants": [
                    {"name": names.tenant_name(number), "vni": names.tenant_vni(number)}
                    for number in range(2, plan.tenants + 1)
                ],
                "slim_pools": [{"prefix": names.POOL}],
                "slim_fallback_provider": "vxlan",
                # The lab's only wires are inside this machine.
                "slim_allow_plaintext": True,
            },
        }
    }


def _connection(state: State, node: Node) -> dict[str, Any]:
    """How Ansible gets into one namespace node."""
    return {"ansible_shell_executable": str(_write_shell(state, node.name))}


def _variables(state: State) -> dict[str, Any]:
    """What is special about namespace nodes: no connection, no service manager, our Python."""
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": venv_python(),
        "ansible_become": False,
        "ansible_remote_tmp": str(state.scratch / "ansible-tmp"),
        # (the usual directories are the machine's)
        "slim_cni_bin_dir": f"{names.CNI}/bin",
        "slim_cni_conf_dir": f"{names.CNI}/net.d",
        "slim_cni_cdi_dir": names.CDI,
        "slim_service_manager": "keeper",
        "slim_router_keeper_command": f"{venv_python()} {KEEPER}",
        "slim_router_manage_packages": False,
        "slim_router_python": venv_python(),
        "slim_router_slimctl_link": False,
    }


def write(state: State, plan: Plan) -> Path:
    """Write the inventory file and return its path."""
    (state.scratch / "ansible-tmp").mkdir(parents=True, exist_ok=True)
    # Everything is said in the environment; an empty file keeps the user's own away.
    (state.scratch / "ansible.cfg").write_text("[defaults]\n")
    state.inventory.write_text(json.dumps(describe(state, plan), indent=1) + "\n")
    return state.inventory


def environment(state: State, plan: Plan) -> dict[str, str]:
    """The environment of ansible-playbook: nothing of the user's own configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    collections = os.environ.get(
        "ANSIBLE_COLLECTIONS_PATH", str(names.CHECKOUT / ".cache" / "collections")
    )
    return {
        **kept,
        "ANSIBLE_COLLECTIONS_PATH": collections,
        "ANSIBLE_CONFIG": str(state.scratch / "ansible.cfg"),
        "ANSIBLE_FORKS": str(min(10, max(2, plan.hosts))),
        "ANSIBLE_HOME": str(state.scratch / "ansible"),
        "ANSIBLE_INVENTORY": str(state.inventory),
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_NOCOWS": "1",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
        "LC_ALL": "C.UTF-8",
        names.RUN_MARK: plan.run,
    }
