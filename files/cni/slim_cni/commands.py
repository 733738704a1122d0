# SPDX-License-Identifier: Apache-2.0
"""The commands of CNI: what each asks the router, and what it answers the runtime."""

from __future__ import annotations

import sys
from typing import Any

from . import arp
from .errors import (
    AGAIN,
    CONFIG,
    IO,
    REFUSED,
    UNAVAILABLE,
    UNKNOWN_CONTAINER,
    CniError,
)
from .router import Absent, Refused, Router, is_namespace
from .settings import VERSIONS, Call, addresses

Answer = dict[str, Any] | None
"""What is printed; nothing where the specification has nothing."""


def add(call: Call) -> Answer:
    """Attach the container. Saying it twice does no harm."""
    found = addresses(call.config.get("prevResult"))
    if not found:
        raise CniError(
            CONFIG,
            "prevResult: no address for the container; chain slim after the plugin that gives it one",
        )
    _there(call)
    router = Router(call.socket, call.directory)
    request = {
        **call.attachment, "name": call.name, "tenant": call.tenant, "netns": call.netns,
        "addresses": found,
    }  # fmt: skip
    try:
        vip = router.ask("attach", **request)["vip"]
    except Refused as error:
        raise CniError(REFUSED, str(error)) from None
    except Absent as error:
        if call.config.get("requireRouter"):
            raise CniError(
                AGAIN, f"{error}; start slim-router, or leave requireRouter out"
            ) from None
        _leave(router, request)
        print(
            f"slim: {error}; {call.container} has the plain overlay until a router is back",
            file=sys.stderr,
        )
        vip = ""
    _announce(call, vip or found[0])
    return {**call.config["prevResult"], "cniVersion": call.version}


def _there(call: Call) -> None:
    try:
        there = is_namespace(call.netns)
    except OSError as error:
        raise CniError(IO, f"CNI_NETNS: {call.netns}: {error.strerror}") from None
    if not there:
        raise CniError(
            UNKNOWN_CONTAINER,
            f"CNI_NETNS: {call.netns}: no network namespace there; the container has gone",
        )


def _leave(router: Router, request: dict[str, Any]) -> None:
    try:
        router.leave(request)
    except OSError as error:
        raise CniError(
            IO, f"{router.directory}: {error.strerror}; start slim-router, or correct the directory"
        ) from None


def _announce(call: Call, vip: str) -> None:
    try:
        arp.announce(call.netns, vip)
    except OSError as error:  # a network without ARP has no need of it
        print(f"slim: {call.container}: not announced: {error.strerror}", file=sys.stderr)


def check(call: Call) -> Answer:
    """Is it attached as ADD left it, and served?"""
    found = addresses(call.config.get("prevResult"))
    _there(call)
    router = Router(call.socket, call.directory)
    try:
        rows = router.ask("attached", network=call.network, container=call.container)["attached"]
    except Absent as error:
        raise CniError(AGAIN, f"{error}; start slim-router") from None
    except Refused as error:
        raise CniError(REFUSED, str(error)) from None
    row = next((row for row in rows if row["ifname"] == call.ifname), None)
    if row is None:
        raise CniError(
            UNKNOWN_CONTAINER, f"{call.container}: not attached; call ADD, or start it again"
        )
    if row["vip"] not in found:
        raise CniError(
            CONFIG,
            f"{call.container}: attached with vip {row['vip']}, which prevResult does not have;"
            " start the container again",
        )
    if row["state"] in ("refused", "absent"):
        raise CniError(REFUSED, f"{call.container}: {row['state']}: {row['detail']}")
    return None


def delete(call: Call) -> Answer:
    """Detach the container, whether or not it is, or was ever, there."""
    _detach(Router(call.socket, call.directory), call.attachment)
    return None


def _detach(router: Router, attachment: dict[str, Any]) -> None:
    try:
        router.ask("detach", **attachment)
    except Refused as error:
        raise CniError(AGAIN, str(error)) from None
    except Absent:
        try:
            router.take(attachment)
        except OSError as error:
            raise CniError(IO, f"{router.directory}: {error.strerror}") from None


def collect(call: Call) -> Answer:
    """Detach what the runtime does not know: the specification's GC."""
    listed = call.config.get("cni.dev/valid-attachments")
    if not isinstance(listed, list):
        # Without a list everything would go.
        raise CniError(CONFIG, "cni.dev/valid-attachments: not a list; the runtime has to give one")
    try:
        valid = {(entry["containerID"], entry["ifname"]) for entry in listed}
    except (KeyError, TypeError):
        raise CniError(
            CONFIG, "cni.dev/valid-attachments: an entry without containerID and ifname"
        ) from None
    router = Router(call.socket, call.directory)
    try:
        rows = router.ask("attached", network=call.network)["attached"]
    except Absent:
        try:
            rows = router.left(call.network)
        except OSError as error:
            raise CniError(IO, f"{router.directory}: {error.strerror}") from None
    except Refused as error:
        raise CniError(AGAIN, str(error)) from None
    failed: list[CniError] = []
    for row in rows:
        if (row["container"], row["ifname"]) not in valid:
            try:
                _detach(router, {key: row[key] for key in ("network", "container", "ifname")})
            except CniError as error:  # the others go all the same
                failed.append(error)
    if failed:
        raise failed[0]
    return None


def status(call: Call) -> Answer:
    """Can an ADD be served?"""
    try:
        Router(call.socket, call.directory).ask("ping")
    except (Absent, Refused) as error:
        if call.config.get("requireRouter"):
            raise CniError(UNAVAILABLE, f"{error}; start slim-router") from None
        print(f"slim: {error}; new containers have the plain overlay meanwhile", file=sys.stderr)
    return None


def version(call: Call) -> Answer:
    """Which versions of the specification are spoken."""
    return {"cniVersion": call.version, "supportedVersions": list(VERSIONS)}


COMMANDS = {
    "ADD": add, "CHECK": check, "DEL": delete, "GC": collect, "STATUS": status,
    "VERSION": version,
}  # fmt: skip
