# SPDX-License-Identifier: Apache-2.0
"""Names, addresses and paths of the lab: the one table."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The checkout that the lab deploys.
CHECKOUT = Path(__file__).resolve().parents[2]

#: Underlay: host X is 198.18.0.X (RFC 2544's range for tests, never routed).
UNDERLAY_PREFIX = "198.18.0"
UNDERLAY_LENGTH = 24

#: Overlay: endpoint cX is 10.44.0.X.
OVERLAY_PREFIX = "10.44.0"
OVERLAY_NETWORK = "10.44.0.0/16"
OVERLAY_LENGTH = 16
#: Vips of containers that are attached while the lab runs; no endpoint of the plan has one.
POOL = "10.44.128.0/24"

#: VXLAN of the fallback that `--no-deploy` builds; the same as docs/architecture.md.
VXLAN_PORT = 8472
VXLAN_VNI = 4242
OVERLAY_MTU = 1450

#: An underlay or overlay octet has to hold the number of the host or endpoint.
MAX_HOSTS = 50
MAX_ENDPOINTS = 250
MAX_TENANTS = 9

#: Directories that every node has for itself, as empty tmpfs mounts.
PRIVATE_DIRECTORIES = ("/etc/slim", "/var/lib/slim", "/opt/slim")

#: Directories whose content differs between the machine and a node.
NODE_ONLY = ("/run", "/sys", *PRIVATE_DIRECTORIES)

#: Where container runtimes look for plugins and networks of CNI, and for devices of CDI; podman
#: 4.3 knows this directory of devices and the machine's own.
CNI = "/run/cni"
CDI = "/run/cdi"

#: Where the shim is, inside a node.
SHIM_DIRECTORY = "/opt/slim/shim/current"
SHIM_LIBRARIES = {"glibc": "libslim.so", "musl": "libslim-musl.so"}

ADMIN_SOCKET = "/run/slim/admin.sock"
ROUTER_PIDFILE = "/run/slim/router.pid"

#: The environment variable that marks processes of one `up`, so that the next
#: command finds what a killed one left behind.
RUN_MARK = "SLIMLAB_RUN"

NAME_MAX = 16
_LAB_NAME = re.compile(rf"[a-z0-9][a-z0-9-]{{0,{NAME_MAX - 1}}}")


def lab_name() -> str:
    """Return the lab's name: SLIMLAB_NAME, or the empty string for the usual lab.

    Labs of different names live side by side on one machine.

    Raises ValueError if the name could not be a part of a path.
    """
    name = os.environ.get("SLIMLAB_NAME", "")
    if name and not _LAB_NAME.fullmatch(name):
        raise ValueError(
            f"SLIMLAB_NAME={name!r} is not a lab name; use up to {NAME_MAX} of a-z, 0-9 and '-'"
        )
    return name


def node_name(number: int) -> str:
    """Name of host `number`, counted from 1."""
    return f"node{number}"


def host_address(number: int) -> str:
    """Underlay address of host `number`, counted from 1."""
    return f"{UNDERLAY_PREFIX}.{number}"


def tenant_name(number: int) -> str:
    """Name of tenant `number`, counted from 1: the first is the default one."""
    return f"t{number}" if number > 1 else "default"


def tenant_vni(number: int) -> int:
    """VXLAN network identifier of tenant `number`."""
    return VXLAN_VNI + number - 1


def endpoint_name(number: int, tenant: int = 1) -> str:
    """Name of endpoint `number` of a tenant, both counted from 1: c1, t2-c1."""
    return f"c{number}" if tenant == 1 else f"{tenant_name(tenant)}-c{number}"


def vip(number: int) -> str:
    """Virtual address of endpoint `number`, counted from 1."""
    return f"{OVERLAY_PREFIX}.{number}"
