# SPDX-License-Identifier: Apache-2.0
"""slimctl: what the router on this host does, as tables or as JSON.

It asks the admin socket and prints; it changes nothing but by `reload`.
"""

from __future__ import annotations

import argparse
import enum
import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__, cli, paths

TIMEOUT_S = 35.0
REPLY_MAX = 256 * 1024 * 1024


class Exit(enum.IntEnum):
    """Exit statuses."""

    OK = 0
    FAILURE = 1  # the router refused
    USAGE = 2  # argparse's own
    UNREACHABLE = 3  # no router answers


class Unreachable(RuntimeError):
    """No router answers; the text is for the operator."""


class Refused(RuntimeError):
    """The router said no."""


def ask(path: Path, op: str, /, **arguments: object) -> Any:
    """One request to the router's admin socket. Raises Unreachable, Refused."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(path))
            sock.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
            with sock.makefile("rb") as file:
                line = file.readline(REPLY_MAX)
    except OSError as error:
        cause = error.strerror or str(error)
        raise Unreachable(
            f"socket {path}: {cause}; is slim-router running, and are you root?"
        ) from error
    try:
        reply = json.loads(line)
    except ValueError as error:
        raise Unreachable(f"socket {path}: the answer was cut off; ask again") from error
    if not reply.get("ok"):
        raise Refused(str(reply.get("error")))
    return reply["result"]


def table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> str:
    """Columns as wide as they need to be; numbers to the right."""
    text = [tuple("-" if v is None or v == "" else str(v) for v in row) for row in rows]
    widths = [max(len(row[i]) for row in [head, *text]) for i in range(len(head))]
    right = [
        all(isinstance(row[i], (int, float)) for row in rows) and bool(rows)
        for i in range(len(head))
    ]
    lines = []
    for row in [head, *text]:
        cells = (
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """12.3s, 4m05s, 3h20m, 2d04h."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def amount(count: float) -> str:
    """Bytes with a decimal unit."""
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit or count >= 100 else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}T"


def secure_line(state: dict[str, Any]) -> str:
    """none; kmod, in force; or kmod and why it is not."""
    if state["mode"] == "none":
        return "none"
    if state["in_force"]:
        return f"{state['mode']}, in force ({state['backend']})"
    return f"{state['mode']}, NOT IN FORCE, no endpoint is served: {state['cause']}"


def show_status(result: dict[str, Any]) -> str:
    """The table of `status`."""
    states = ", ".join(f"{n} {s}" for s, n in sorted(result["endpoints"].items())) or "none"
    lines = [
        f"host       {result['host']} ({result['address']})",
        f"router     {result['version']}, pid {result['pid']}, up {duration(result['uptime_s'])}",
        f"map        revision {result['revision']}: {result['hosts']} hosts,"
        f" {result['fleet_endpoints']} endpoints",
        f"endpoints  {states}",
        f"secure     {secure_line(result['secure_state'])}",
    ]
    if result["last_reload_error"]:
        lines.append(f"reload     REFUSED: {result['last_reload_error']}")
    if result["trunks"]:
        rows = [
            (
                row["host"], row["address"], row["state"],
                duration(row["since_s"]) if "since_s" in row else None,
                row.get("rtt_us"), row.get("endpoints"),
                "" if row["state"] == "up" else row["detail"],
            )
            for row in result["trunks"]
        ]  # fmt: skip
        lines += [
            "",
            table(("TRUNK", "ADDRESS", "STATE", "SINCE", "RTT_US", "ENDPOINTS", "DETAIL"), rows),
        ]
    return "\n".join(lines)


def show_endpoints(result: dict[str, Any]) -> str:
    """The table of `endpoints`."""
    rows = [
        (
            row["name"], row["tenant"], row["vip"], row["state"], duration(row["since_s"]),
            row["data_port"], row["pid"], row["restarts"], len(row["listeners"]),
            row["detail"] + ("; cut off from the overlay" if row["cut_off"] else ""),
        )
        for row in result["endpoints"]
    ]  # fmt: skip
    head = (
        "NAME", "TENANT", "VIP", "STATE", "SINCE", "DATA_PORT", "PID", "RESTARTS", "LISTENERS",
        "DETAIL",
    )  # fmt: skip
    return table(head, rows)


def _name(address: object, port: object) -> str:
    if not address:
        return ""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def show_connections(result: dict[str, Any]) -> str:
    """The table of `connections`: virtual names, then host names."""
    rows = [
        (
            row.get("endpoint"), row.get("direction"),
            _name(row.get("src"), row.get("sport")), _name(row.get("dst"), row.get("dport")),
            _name(row.get("hsrc"), row.get("hsport")), _name(row.get("hdst"), row.get("hdport")),
            row.get("path"), row.get("why"), row.get("state"),
            duration(float(row.get("age_s") or 0)),
            amount(float(row.get("bytes_sent") or 0)),
            amount(float(row.get("bytes_received") or 0)),
        )
        for row in result["connections"]
    ]  # fmt: skip
    head = (
        "ENDPOINT", "DIR", "SRC", "DST", "HOST_SRC", "HOST_DST", "PATH", "WHY", "STATE", "AGE",
        "SENT", "RECEIVED",
    )  # fmt: skip
    lines = [table(head, rows)]
    if result["incomplete"]:
        lines.append(
            f"incomplete: no full answer from {', '.join(result['incomplete'])}; ask again"
        )
    if result["truncated"]:
        lines.append("truncated: there are more; filter by --endpoint or --path")
    return "\n".join(lines)


def show_reload(result: dict[str, Any]) -> str:
    """What `reload` did."""
    return (
        f"map revision {result['revision']} in use; here {len(result['added'])} endpoints added,"
        f" {len(result['removed'])} removed"
    )


SHOW = {
    "status": show_status,
    "endpoints": show_endpoints,
    "connections": show_connections,
    "reload": show_reload,
}


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="slimctl", description="Look at the router of this host.")
    made.add_argument("--version", action="version", version=__version__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the router's own answer")
    common.add_argument("--socket", type=Path, default=paths.ADMIN_SOCKET, metavar="PATH")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("status", parents=[common], help="router, map and trunks")
    commands.add_parser("endpoints", parents=[common], help="endpoints of this host")
    connections = commands.add_parser(
        "connections", parents=[common], help="live connections, and which path each takes"
    )
    connections.add_argument("--endpoint", metavar="NAME", help="of this endpoint only")
    connections.add_argument("--tenant", metavar="NAME", help="of this tenant only")
    connections.add_argument("--path", choices=("slim", "overlay"), help="on this path only")
    connections.add_argument("--limit", type=int, metavar="N", help="at most N")
    commands.add_parser("reload", parents=[common], help="read router.json and map.json again")
    validate = commands.add_parser("validate", help="check the files, without the router")
    validate.add_argument("--config", type=Path, default=paths.CONFIG, metavar="PATH")
    validate.add_argument("--map", type=Path, default=paths.MAP, metavar="PATH")
    validate.add_argument("--flat", action="store_true", help="one vip, one endpoint")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns an :class:`Exit`, or what `slim-router validate` does."""
    options = parser().parse_args(argv)
    if options.command == "validate":
        files = ["--config", str(options.config), "--map", str(options.map)]
        return cli.main(["validate", *files, *(["--flat"] if options.flat else [])])
    arguments = {}
    if options.command == "connections":
        names = ("endpoint", "tenant", "path", "limit")
        arguments = {n: v for n in names if (v := getattr(options, n)) is not None}
    try:
        result = ask(options.socket, options.command, **arguments)
    except Unreachable as error:
        print(f"slimctl: {error}", file=sys.stderr)
        return Exit.UNREACHABLE
    except Refused as error:
        print(f"slimctl: {error}", file=sys.stderr)
        return Exit.FAILURE
    try:
        print(json.dumps(result, indent=2) if options.json else SHOW[options.command](result))
    except BrokenPipeError:
        sys.stderr.close()
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
