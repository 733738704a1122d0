# SPDX-License-Identifier: Apache-2.0
"""Numbers and names of the virtual machines: the one table."""

from __future__ import annotations

from pathlib import Path

from lab import names

CACHE = names.CHECKOUT / ".cache" / "vm"
SOURCES = Path(__file__).resolve().parent
#: Lists of Debian packages that a node has: the lab's own, and what the bench runs.
PACKAGES = (SOURCES / "packages.txt", names.CHECKOUT / "bench" / "packages.txt")

#: What `--kernel` takes, with the Debian packages of each.
KERNELS = {
    "6.1": ("linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
    "6.12": ("linux-image-6.12-cloud-amd64", "linux-headers-6.12-cloud-amd64"),
}
DEFAULT_KERNEL = "6.1"

CPUS = 2
MEMORY_MB = 1024
#: Free space on a node's disk beside the image, in MiB; sparse on the machine.
SPARE_MB = 3072

#: Slots on the PCI bus: by them the guest knows what a device is for (rootfs/).
SLOT_DISK = 4
SLOT_MANAGEMENT = 5
SLOT_CABLE = 6

SNAPSHOT = "ready"
AGENT = "/usr/local/lib/lab/agent"
#: The name under which every node's host key is known.
HOST_KEY_ALIAS = "lab-vm"


def cable_mac(number: int) -> str:
    """MAC of node `number` on the network between the hosts; locally administered."""
    return f"02:56:4d:00:01:{number:02x}"


def management_mac() -> str:
    """MAC of every node on its own management network."""
    return "02:56:4d:00:00:01"
