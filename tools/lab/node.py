# SPDX-License-Identifier: Apache-2.0
"""Making nodes and endpoints out of rooms."""

from __future__ import annotations

from lab import names
from lab.room import Room, run
from lab.state import Endpoint, Node, State

#: sysfs shows the network devices of the namespace that mounted it, so each room
#: mounts its own; the control groups and BPF below it stay the machine's.
_SYSFS = """
held=$(mktemp -d /tmp/slimlab-sys.XXXXXX)
mount --rbind /sys "$held"
mount -t sysfs sysfs /sys
for part in fs/cgroup fs/bpf; do
    if mountpoint -q "$held/$part" && test -d "/sys/$part"; then
        mount --rbind "$held/$part" "/sys/$part"
    fi
done
umount -l "$held"
rmdir "$held"
"""

_NODE = """
hostname "$0"
ip link set lo up
# Pins of other rooms must not live on in this mount namespace.
for pins in /run/slimlab*/ns; do umount -l "$pins" 2>/dev/null || true; done
mount -t tmpfs -o mode=0755,nosuid,nodev slimlab /run
mkdir -m 0755 /run/netns /run/user
mkdir -m 1777 /run/lock
mount --bind /run/netns /run/netns
mount --make-shared /run/netns
"""

_ENDPOINT_NET = """
ip link set lo up
"""

_BIND_NETNS = """
touch "$1"
mount --bind /proc/self/ns/net "$1"
"""

_ENDPOINT = """
hostname "$0"
"""


def create_node(state: State, node: Node) -> Room:
    """Make a node: its own network, mounts, host name, /run and product directories."""
    room = Room(state, node.name)
    private = "".join(
        f"mount -t tmpfs -o mode=0755 slimlab {directory}\n"
        for directory in names.PRIVATE_DIRECTORIES
    )
    room.create(("net", "mnt", "uts"), _NODE + private + _SYSFS)
    return room


def create_endpoint(state: State, endpoint: Endpoint) -> Room:
    """Make an endpoint's namespaces below its node, and show its network to the node."""
    host = Room(state, endpoint.node)
    room = Room(state, endpoint.name)
    room.create(("net",), _ENDPOINT_NET)
    # The namespace file appears where `ip netns` of the node would have put it.
    run(
        *room.enter(("net",))[:-1],
        f"--mount={host.pin('mnt')}",
        "--",
        "/bin/sh",
        "-euc",
        _BIND_NETNS,
        endpoint.name,
        endpoint.netns,
    )
    # The rest starts from the node's mounts, in the endpoint's network for sysfs.
    inside = _Joined(state, endpoint.name, host)
    room.create(("mnt", "uts"), _ENDPOINT + _SYSFS, inside=inside)
    return room


class _Joined(Room):
    """An endpoint's network with its node's mounts, while the endpoint is being made."""

    def __init__(self, state: State, name: str, host: Room) -> None:
        super().__init__(state, name)
        self.host = host

    def enter(self, kinds: tuple[str, ...] = ("net",)) -> list[str]:
        words = super().enter(("net",))[:-1]
        return [*words, f"--mount={self.host.pin('mnt')}", "--"]
