# SPDX-License-Identifier: Apache-2.0
"""TCP cubic on every IPv4 route of the lab.

BBR, the default of many machines, paces a stream and so hides what an overlay
costs. The sysctl cannot name cubic in a child namespace unless the machine allows
it to everybody, but a route's congctl attribute can (ip-route(8)).
"""

from __future__ import annotations

from lab.room import Room

ALGORITHM = "cubic"

#: Words of `ip route show` that `ip route replace` does not take.
_FLAGS = {"linkdown", "dead", "offload", "trap", "rt_trap", "rt_offload"}


def replacements(routes: str) -> list[str]:
    """Turn the output of `ip route show table all` into `ip -batch` lines."""
    lines = []
    for line in routes.splitlines():
        words = [word for word in line.split() if word not in _FLAGS]
        if not words or "congctl" in words or words[0] in ("broadcast", "unreachable"):
            continue
        lines.append(" ".join(["route", "replace", *words, "congctl", ALGORITHM]))
    return lines


def set_on(room: Room) -> None:
    """Put the algorithm on all routes of a room, those of its own addresses included."""
    lines = replacements(room.run("ip", "-4", "route", "show", "table", "all"))
    if lines:
        room.run("ip", "-4", "-batch", "-", stdin="\n".join(lines) + "\n")


def seen_on(room: Room) -> str:
    """Return the algorithm of the room's unicast routes, "mixed" if they differ."""
    found = set()
    for line in room.run("ip", "-4", "route", "show", "table", "all").splitlines():
        words = line.split()
        if words and words[0] != "broadcast":
            found.add(words[words.index("congctl") + 1] if "congctl" in words else "default")
    return found.pop() if len(found) == 1 else "mixed" if found else "none"
