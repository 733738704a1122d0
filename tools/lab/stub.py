# SPDX-License-Identifier: Apache-2.0
"""A plain VXLAN overlay without the product, for `slimlab up --no-deploy`.

Same names and numbers as role slim_fallback's provider vxlan; forwarding entries
are static, so a frame for an unknown address is flooded to every other host.
"""

from __future__ import annotations

from lab import names
from lab.room import Room, run
from lab.state import Endpoint, Node, Plan, State


def mac(vip: str) -> str:
    """A locally administered MAC that follows from the vip."""
    octets = [int(part) for part in vip.split(".")]
    return "02:53:" + ":".join(f"{octet:02x}" for octet in octets)


def _host_lines(node: Node, plan: Plan) -> list[str]:
    return [
        f"link add br-slim mtu {names.OVERLAY_MTU} type bridge forward_delay 0 mcast_snooping 0",
        f"link add vx-slim mtu {names.OVERLAY_MTU} type vxlan id {names.VXLAN_VNI} "
        f"dstport {names.VXLAN_PORT} local {node.address} dev eth0 nolearning",
        "link set vx-slim master br-slim",
        "link set vx-slim up",
        "link set br-slim up",
    ]


def _forwarding_lines(node: Node, plan: Plan) -> list[str]:
    lines = [
        f"fdb append 00:00:00:00:00:00 dev vx-slim dst {other.address}"
        for other in plan.nodes
        if other != node
    ]
    for endpoint in plan.endpoints:
        if endpoint.node != node.name:
            there = plan.node(endpoint.node).address
            lines.append(f"fdb add {mac(endpoint.vip)} dev vx-slim dst {there} static")
    return lines


def _plug(state: State, endpoint: Endpoint) -> None:
    host = Room(state, endpoint.node)
    room = Room(state, endpoint.name)
    # The pin's path is the machine's: only the network of the node is entered here.
    run(
        *host.enter(("net",)),
        "ip",
        "-batch",
        "-",
        stdin=(
            f"link add v-{endpoint.name} mtu {names.OVERLAY_MTU} type veth "
            f"peer name eth0 mtu {names.OVERLAY_MTU} address {mac(endpoint.vip)} "
            f"netns {room.pin('net')}\n"
            f"link set v-{endpoint.name} master br-slim\n"
            f"link set v-{endpoint.name} up\n"
        ),
    )
    room.script(
        f"ip address add {endpoint.vip}/{names.OVERLAY_LENGTH} dev eth0\nip link set eth0 up"
    )


def create(state: State, plan: Plan) -> None:
    """Make the overlay on all nodes and plug the endpoints in."""
    for node in plan.nodes:
        room = Room(state, node.name)
        room.run("ip", "-batch", "-", stdin="\n".join(_host_lines(node, plan)) + "\n")
        forwarding = _forwarding_lines(node, plan)
        if forwarding:
            room.run("bridge", "-batch", "-", stdin="\n".join(forwarding) + "\n")
    for endpoint in plan.endpoints:
        _plug(state, endpoint)
