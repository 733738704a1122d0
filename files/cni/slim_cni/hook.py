# SPDX-License-Identifier: Apache-2.0
"""slim-hook: what an OCI runtime, or a unit of systemd, calls for a container.

    slim-hook attach    createRuntime: the namespace has its address; the router serves it
    slim-hook preload   createContainer: the shim into ld.so.preload, if the libc takes it
    slim-hook detach    poststop

The container's state comes on standard input (OCI runtime specification, "State"); with
--netns and --name, for a unit, nothing is read. Nothing here keeps a container from
starting: what goes wrong is said on standard error and in the system's log, and the
container has the plain overlay.
"""

from __future__ import annotations

import json
import os
import sys
import syslog
from typing import Any

from . import arp
from .router import DIRECTORY, SOCKET, Absent, Refused, Router

NETWORK, IFNAME = "oci", "all"  # what hooks attach is no network's of CNI
TENANT = "slim.overlay/tenant"
"""Annotation of a container: whose it is."""
STATE_MAX = 1 << 20
SHIM = "/opt/slim/shim/current/libslim.so"
PRELOAD = "/opt/slim/preload/ld.so.preload"
TARGET = "etc/ld.so.preload"
USAGE = "usage: slim-hook attach|preload|detach [--netns PATH --name NAME [--tenant NAME]]"


class HookError(Exception):
    """Cannot be done: thing, cause, next step."""


class Container:
    """The one that the hook is called for."""

    def __init__(self, name: str, netns: str, tenant: str, root: str = "") -> None:
        self.name = name
        self.netns = netns  # "" where the container has the host's network
        self.tenant = tenant
        self.root = root


def of_state(text: bytes, ended: bool = False) -> Container:
    """The container of an OCI state; of one that has *ended* only the name, since its bundle may
    be gone. Raises HookError."""
    try:
        state = json.loads(text)
        name, pid, bundle = str(state["id"]), int(state.get("pid") or 0), str(state["bundle"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HookError(
            f"standard input: not the state of a container ({error!r}); an OCI runtime calls this"
        ) from None
    if ended:
        return Container(name, "", "")
    spec = _spec(bundle)
    try:
        namespaces = {entry["type"]: entry.get("path") for entry in spec["linux"]["namespaces"]}
        root = str((spec.get("root") or {}).get("path") or "")
        annotations = {**(spec.get("annotations") or {}), **(state.get("annotations") or {})}
    except (KeyError, TypeError, AttributeError) as error:
        raise HookError(
            f"{bundle}/config.json: not a container's configuration ({error!r})"
        ) from None
    netns = ""
    if "network" in namespaces:
        netns = namespaces["network"] or (f"/proc/{pid}/ns/net" if pid else "")
    return Container(
        name, netns, str(annotations.get(TENANT, "default")), os.path.join(bundle, root)
    )


def _spec(bundle: str) -> dict[str, Any]:
    path = os.path.join(bundle, "config.json")
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise HookError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise HookError(f"{path}: not a container's configuration")
    return value


def attach(container: Container, router: Router) -> None:
    """Have the router serve it. Raises HookError, OSError."""
    if not container.netns:
        return  # the host's network: nothing of ours
    request = {
        **_name(container), "name": container.name[:12], "tenant": container.tenant,
        "netns": container.netns, "once": True,
    }  # fmt: skip
    try:
        row = router.ask("attach", **request)
    except Refused as error:
        raise HookError(str(error)) from None
    except Absent as error:
        router.leave(request)
        raise HookError(f"{error}; plain overlay until a router is back") from None
    if row.get("changed"):
        arp.announce(container.netns, row["vip"])


def detach(container: Container, router: Router) -> None:
    """Have the router serve it no more. Raises HookError, OSError."""
    try:
        router.ask("detach", **_name(container))
    except Refused as error:
        raise HookError(str(error)) from None
    except Absent:
        router.take(_name(container))


def _name(container: Container) -> dict[str, Any]:
    return {"network": NETWORK, "container": container.name, "ifname": IFNAME}


def preload(container: Container, shim: str = SHIM, source: str = PRELOAD) -> None:
    """The shim into every program of the container. Raises HookError, OSError."""
    # Late: attach and detach have no need of ctypes.
    from .libc import why_not
    from .rootfs import Root

    root = Root(container.root)
    try:
        if cause := why_not(root, shim):
            raise HookError(cause)
        if (root.read(TARGET) or b"").strip():
            raise HookError(
                f"the image has a /{TARGET} of its own, which stays; name the shim there, or in"
                " LD_PRELOAD"
            )
        root.mount(source, TARGET)
    finally:
        root.close()


def main() -> int:
    """One call; the status is 0 but for a call that nobody makes."""
    words = sys.argv[1:]
    given = dict(zip(words[1::2], words[2::2], strict=False))
    if (
        not words
        or words[0] not in ("attach", "preload", "detach")
        or len(words) % 2 == 0
        or not set(given) <= {"--netns", "--name", "--tenant", "--socket", "--directory"}
        or ("--netns" in given and "--name" not in given)
    ):
        print(USAGE, file=sys.stderr)
        return 2
    router = Router(given.get("--socket", SOCKET), given.get("--directory", DIRECTORY))
    name = given.get("--name", "")
    try:
        if name:
            tenant = given.get("--tenant", "default")
            container = Container(name, given.get("--netns", ""), tenant)
        else:
            container = of_state(sys.stdin.buffer.read(STATE_MAX), words[0] == "detach")
            name = container.name
        if words[0] == "attach":
            attach(container, router)
        elif words[0] == "detach":
            detach(container, router)
        else:
            preload(container)
    except (HookError, OSError) as error:
        text = f"slim-hook: {words[0]}: container {name[:12] or '?'}: {error}"
        print(text, file=sys.stderr)
        syslog.openlog("slim-hook")
        syslog.syslog(syslog.LOG_WARNING, text)
    return 0
