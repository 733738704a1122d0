# SPDX-License-Identifier: Apache-2.0
"""The network between the hosts: one switch, one cable per node."""

from __future__ import annotations

from lab import delay, names
from lab.room import Room, run
from lab.state import Plan, State

SWITCH = "switch"
BRIDGE = "br0"


def port(number: int) -> str:
    """Name of the switch's end of node `number`'s cable."""
    return f"port{number}"


def create(state: State, plan: Plan) -> None:
    """Make the switch and plug every node in; with plan.rtt_us, through the delay relay."""
    switch = Room(state, SWITCH)
    switch.create(("net",), "ip link set lo up")
    lines = []
    if not plan.rtt_us:
        lines += [
            f"link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0",
            f"link set {BRIDGE} up",
        ]
    for number, node in enumerate(plan.nodes, start=1):
        peer = Room(state, node.name).pin("net")
        lines.append(f"link add {port(number)} type veth peer name eth0 netns {peer}")
        if not plan.rtt_us:
            lines.append(f"link set {port(number)} master {BRIDGE}")
        lines.append(f"link set {port(number)} up")
    run(*switch.enter(), "ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    for number, node in enumerate(plan.nodes, start=1):
        room = Room(state, node.name)
        if plan.rtt_us:
            # The relay carries ordinary frames only: no segments joined, no sums left open.
            run(*switch.enter(), *delay.offload_off(port(number)))
            room.run(*delay.offload_off("eth0"))
        room.script(
            f"ip address add {node.address}/{names.UNDERLAY_LENGTH} dev eth0\nip link set eth0 up"
        )
    if plan.rtt_us:
        ports = [port(number) for number in range(1, plan.hosts + 1)]
        delay.start(state, switch, ports, plan.rtt_us, plan.run)
