# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the hosts of a play answered, as rows for people and programs.

Private to this collection.
"""

from __future__ import annotations


def state(answer, good="ok"):
    """How a registered result ended, in a word."""
    if not answer:
        return "NOT ASKED"
    if answer.get("unreachable"):
        return "UNREACHABLE"
    if answer.get("failed"):
        return "FAILED"
    # A failure that the play expects: see playbooks/tasks/acl_push.yml.
    return "no router yet" if answer.get("kind") == "no-router" else good


def problem(answer):
    """Why it failed, or an empty string."""
    if not answer:
        return "the play ended before it was asked"
    if answer.get("unreachable") or answer.get("failed"):
        return str(answer.get("msg", "no reason given"))
    return ""


def _name(row):
    """What tells a connection from others, the same at both of its ends.

    The ends of a host connection are named from each side; an overlay connection has the
    virtual names alone.
    """
    ours, theirs = (row.get("hsrc"), row.get("hsport")), (row.get("hdst"), row.get("hdport"))
    virtual = (row.get("src"), row.get("sport"), row.get("dst"), row.get("dport"))
    return (row.get("tenant"), *virtual, frozenset((ours, theirs)))


def connections(answers):
    """Each connection that was revoked, once, with the hosts that did it. Whichever end was
    first names it; the other end may find it gone."""
    found = {}
    for host, answer in answers.items():
        for row in (answer or {}).get("revoked", []):
            kept = {key: row.get(key) for key in ("src", "sport", "dst", "dport", "path", "rule")}
            found.setdefault(_name(row), {"hosts": [], **kept})["hosts"].append(host)
    return list(found.values())


def policy(answers, check):
    """The results of slim_acl, by host: a row for each, and all connections that were revoked."""
    hosts, unnamed = [], 0
    for host, answer in answers.items():
        answer = answer or {}
        changed = answer.get("changed", False)
        good = ("would change" if check else "changed") if changed else "ok"
        hosts.append(
            {
                "host": host,
                "state": state(answer, good),
                "revision": answer.get("revision"),
                "revoked": answer.get("revoked_total", 0),
                "ms": round(1000 * answer.get("seconds", 0), 1),
                "problem": problem(answer),
            }
        )
        unnamed += answer.get("revoked_total", 0) - len(answer.get("revoked", []))
    revoked = connections(answers)
    return {
        "hosts": hosts,
        "revoked": revoked,
        "revoked_total": len(revoked) + unnamed,
        "failed": [row["host"] for row in hosts if row["problem"]],
    }


def status(answers):
    """The results of slim_router_info, by host: a row for each."""
    rows = []
    for host, answer in answers.items():
        row = {"host": host, "state": state(answer, "up"), "problem": problem(answer)}
        if not row["problem"]:
            row.update(_status(answer))
        rows.append(row)
    return rows


def _status(answer):
    held = answer["status"]["policy"]
    counted = answer.get("connections", {})
    endpoints, peers = answer["endpoints"], answer["peers"]
    waiting = [row["endpoint"] for row in held.get("incomplete", [])]
    row = {
        "version": answer["status"]["version"],
        "endpoints": _of(endpoints),
        "peers": _of(peers),
        "slim": counted.get("slim"),
        "overlay": counted.get("overlay"),
        "policy": held["revision"],
        "default": held["default"],
        "rules": held["rules"],
        "incomplete": sorted({*waiting, *counted.get("incomplete", [])}),
    }
    if held["state"] != "in-force":
        row["problem"] = f"policy unreadable, everything new is denied: {held['cause']}"
    return row


def _of(rows):
    """2/3: two of three are up."""
    return f"{sum(row['state'] == 'up' for row in rows)}/{len(rows)}"
