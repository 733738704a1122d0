# SPDX-License-Identifier: Apache-2.0
"""slimctl: what the router on this host does, as tables or as JSON.

It asks the admin socket and prints; it changes nothing but by `reload`, `acl-set`
and `revoke`.
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

from . import __version__, cli, config, paths

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
    if reply.get("late"):
        raise Unreachable(str(reply.get("error")))
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
    containers = result.get("attached") or {}
    if containers.get("count") or containers.get("refused") or containers.get("unreadable"):
        lines.append(f"attached   {containers['count']} containers")
        lines += [
            f"           REFUSED: {row['container'][:12]}: {row['cause']}"
            for row in containers["refused"]
        ]
        lines += [f"           UNREADABLE: {cause}" for cause in containers["unreadable"]]
    held = result["policy"]
    lines.append(
        f"policy     revision {held['revision']}: {held['rules']} rules, default {held['default']}"
        if held["state"] == "in-force"
        else f"policy     UNREADABLE, everything new is denied: {held['cause']}; push a list"
    )
    flows = result.get("flow_log") or {}
    if flows.get("path"):
        lines.append(
            f"flow log   {flows['path']}, {flows['lines']} lines, {flows['dropped']} dropped"
            + (f"; NOT WRITTEN: {flows['cause']}" if flows["cause"] else "")
        )
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
            row.get("endpoint"), row.get("tenant"), row.get("direction"),
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
        "ENDPOINT", "TENANT", "DIR", "SRC", "DST", "HOST_SRC", "HOST_DST", "PATH", "WHY", "STATE",
        "AGE", "SENT", "RECEIVED",
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


def show_acl(result: dict[str, Any]) -> str:
    """The table of `acl`."""
    rows = [
        (
            number, rule["id"], rule["action"], _words(rule, "sources"),
            _words(rule, "destinations"), _words(rule, "ports"), rule.get("tenant", "any"),
            rule.get("comment", ""),
        )
        for number, rule in enumerate(result["rules"], 1)
    ]  # fmt: skip
    lines = [f"revision {result['revision']}, default {result['default']}"]
    if result["state"] != "in-force":
        lines.append(f"UNREADABLE, everything new is denied: {result['cause']}; push a list")
    if rows:
        head = ("", "ID", "ACTION", "FROM", "TO", "PORTS", "TENANT", "COMMENT")
        lines.append(table(head, rows))
    return "\n".join(lines)


def _words(rule: dict[str, Any], name: str) -> str:
    return ", ".join(map(str, rule.get(name, []))) or "any"


def show_acl_set(result: dict[str, Any]) -> str:
    """What `acl-set` did, or would do."""
    would = result["dry_run"]
    if not result["changed"]:
        return f"revision {result['revision']} in force already: nothing changed"
    lines = [*result["lines"], *(f"warning: {text}" for text in result["warnings"])]
    lines.append(f"revision {result['revision']} {'would be' if would else 'is'} in force")
    return "\n".join([*lines, show_revoke(result)])


def show_revoke(result: dict[str, Any]) -> str:
    """The connections that were, or would be, revoked."""
    lines = []
    if result["revoked"]:
        rows = [
            (
                row["endpoint"], row.get("tenant"), row["direction"],
                _name(row["src"], row["sport"]),
                _name(row["dst"], row["dport"]), row["path"], row.get("rule"),
                duration(float(row.get("age_s") or 0)),
            )
            for row in result["revoked"]
        ]  # fmt: skip
        head = ("ENDPOINT", "TENANT", "DIR", "SRC", "DST", "PATH", "RULE", "AGE")
        lines.append(table(head, rows))
    count = result["revoked_total"]
    word = "would be revoked" if result["dry_run"] else "revoked"
    lines.append(f"{count} connection{'s' * (count != 1)} {word}")
    for row in result["incomplete"]:
        lines.append(f"INCOMPLETE: endpoint {row['endpoint']}: {row['cause']}")
    return "\n".join(lines)


SHOW = {
    "acl": show_acl,
    "acl-set": show_acl_set,
    "revoke": show_revoke,
    "status": show_status,
    "endpoints": show_endpoints,
    "connections": show_connections,
    "reload": show_reload,
}


ARGUMENTS = {
    "connections": ("endpoint", "tenant", "path", "limit"),
    "acl-set": ("expect", "wait", "dry_run", "max_revoked"),
    "revoke": (
        "endpoint", "tenant", "src", "dst", "dport", "path", "cookie", "dry_run", "max_revoked",
    ),
}  # fmt: skip


def read_policy(name: str) -> dict[str, Any]:
    """`default` and `rules` of a file, as `acl --json` and policy.json have them, or of standard
    input for "-". Raises OSError, ValueError."""
    text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    value = config.decode(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: not an object with default and rules; see slimctl acl --json")
    known = {"version", "revision", "state", "cause", "default", "rules"}
    if unknown := sorted(set(value) - known):
        raise ValueError(f"{name}: unknown key {unknown[0]!r}; remove it")
    return {key: value[key] for key in ("default", "rules") if key in value}


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
    commands.add_parser("acl", parents=[common], help="the policy in force")
    put = commands.add_parser("acl-set", parents=[common], help="put the policy of a file in force")
    put.add_argument("file", metavar="FILE", help='JSON with "default" and "rules"; - is stdin')
    put.add_argument("--expect", type=int, metavar="REVISION", help="only in place of this one")
    put.add_argument("--wait", type=int, metavar="SECONDS", help="for the workers, 5 unless told")
    end = commands.add_parser("revoke", parents=[common], help="end live connections")
    for name in ("endpoint", "tenant", "src", "dst"):
        end.add_argument(f"--{name}", metavar="NAME" if name[0] in "et" else "ADDRESS")
    end.add_argument("--dport", type=int, metavar="PORT")
    end.add_argument("--path", choices=("slim", "overlay"))
    end.add_argument("--cookie", type=int, metavar="N", help="as in connections --json")
    for command in (put, end):
        command.add_argument("--dry-run", action="store_true", help="only say what would happen")
        command.add_argument(
            "--max-revoked", type=int, metavar="N", help="do nothing if there are more"
        )
    validate = commands.add_parser("validate", help="check the files, without the router")
    validate.add_argument("--config", type=Path, default=paths.CONFIG, metavar="PATH")
    validate.add_argument("--map", type=Path, default=paths.MAP, metavar="PATH")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns an :class:`Exit`, or what `slim-router validate` does."""
    options = parser().parse_args(argv)
    if options.command == "validate":
        files = ["--config", str(options.config), "--map", str(options.map)]
        return cli.main(["validate", *files])
    names = ARGUMENTS.get(options.command, ())
    arguments = {n: v for n in names if (v := getattr(options, n)) is not None and v is not False}
    try:
        if options.command == "acl-set":
            arguments |= read_policy(options.file)
        result = ask(options.socket, options.command, **arguments)
    except Unreachable as error:
        print(f"slimctl: {error}", file=sys.stderr)
        return Exit.UNREACHABLE
    except (Refused, ValueError, OSError) as error:
        print(f"slimctl: {error}", file=sys.stderr)
        return Exit.FAILURE
    try:
        print(json.dumps(result, indent=2) if options.json else SHOW[options.command](result))
    except BrokenPipeError:
        sys.stderr.close()
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
