# SPDX-License-Identifier: Apache-2.0
"""What a CNI runtime says: the environment, and the configuration on standard input."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import CONFIG, DECODE, ENVIRONMENT, INCOMPATIBLE, UNSUPPORTED, CniError
from .router import DIRECTORY, SOCKET

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
INPUT_MAX = 8 << 20
NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
"""Networks and containers (CNI 1.1.0, sections 1 and 2)."""
NAME_MAX = 128  # the router takes no more
IFNAME_MAX = 15  # netdevice(7): IFNAMSIZ less the closing zero
# Keys of ours; whatever else is there is the specification's, or the runtime's.
OWN = {"tenant": str, "socket": str, "directory": str, "requireRouter": bool}


class Call(NamedTuple):
    """One call, checked."""

    command: str
    version: str
    network: str
    container: str
    netns: str
    ifname: str
    args: dict[str, str]
    config: dict[str, Any]

    @property
    def tenant(self) -> str:
        """Whose network it is."""
        return str(self.config.get("tenant", "default"))

    @property
    def socket(self) -> str:
        """The router's admin socket."""
        return str(self.config.get("socket", SOCKET))

    @property
    def directory(self) -> str:
        """Where the router looks for what came while it was away."""
        return str(self.config.get("directory", DIRECTORY))

    @property
    def attachment(self) -> dict[str, Any]:
        """What the router calls it."""
        return {"network": self.network, "container": self.container, "ifname": self.ifname}

    @property
    def name(self) -> str:
        """Of the endpoint: the pod, where there is one (podman calls its containers pods)."""
        pod, space = self.args.get("K8S_POD_NAME", ""), self.args.get("K8S_POD_NAMESPACE", "")
        words = [pod] if space in ("", pod) else [space, pod]
        name = ".".join(words) if pod else self.container[:12]
        return "".join(c if c.isprintable() and not c.isspace() else "_" for c in name)[:100]


NEEDED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": (),
    "STATUS": (),
    "VERSION": (),
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def decode(text: bytes) -> dict[str, Any]:
    """The configuration as it came. Raises CniError."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CniError(
            DECODE, "configuration: not JSON; correct the network's file", str(error)
        ) from None
    if not isinstance(value, dict):
        raise CniError(DECODE, "configuration: not an object; correct the network's file")
    return value


def read(env: Mapping[str, str], config: dict[str, Any]) -> Call:
    """A checked call. Raises CniError."""
    command = env.get("CNI_COMMAND", "")
    if command not in NEEDED:
        raise CniError(
            ENVIRONMENT, f"CNI_COMMAND: {command!r} is not one of {', '.join(NEEDED)};"
            " this is a CNI plugin, a container runtime calls it",
        )  # fmt: skip
    missing = [name for name in NEEDED[command] if not env.get(name)]
    if missing:
        raise CniError(
            ENVIRONMENT, f"{', '.join(missing)}: missing; the runtime has to set it for {command}"
        )
    version = config.get("cniVersion", "0.1.0")
    if command == "VERSION":
        # Whoever asks need not speak one of ours yet; and libcni fills the rest with "dummy".
        known = version if version in VERSIONS else VERSIONS[-1]
        return Call(command, known, "", "", "", "", {}, config)
    if version not in VERSIONS or VERSIONS.index(version) < VERSIONS.index(
        SINCE.get(command, VERSIONS[0])
    ):
        raise CniError(
            INCOMPATIBLE,
            f"cniVersion: {version!r} is not a version that has {command} here; set one of"
            f" {', '.join(VERSIONS[VERSIONS.index(SINCE.get(command, VERSIONS[0])):])}",
        )  # fmt: skip
    container, ifname = env.get("CNI_CONTAINERID", ""), env.get("CNI_IFNAME", "")
    if container and (not NAME.fullmatch(container) or len(container) > NAME_MAX):
        raise CniError(
            ENVIRONMENT,
            f"CNI_CONTAINERID: {container[:80]!r} is no container's name;"
            f" it has letters, digits, '_', '.', '-', at most {NAME_MAX}",
        )
    if ifname and (
        len(ifname.encode(errors="replace")) > IFNAME_MAX
        or ifname in (".", "..")
        or any(c in "/:" or c.isspace() or not c.isprintable() for c in ifname)
    ):
        raise CniError(ENVIRONMENT, f"CNI_IFNAME: {ifname[:80]!r} is no interface's name")
    netns = env.get("CNI_NETNS", "")
    if netns and (not netns.startswith("/") or len(netns) > 4000 or not netns.isprintable()):
        raise CniError(ENVIRONMENT, f"CNI_NETNS: {netns[:80]!r} is not an absolute path")
    network = _network(config)
    for key, kind in OWN.items():
        if key in config and (not isinstance(config[key], kind) or config[key] == ""):
            raise CniError(CONFIG, f"{key}: not a {kind.__name__}; correct the network's file")
    if config.get("ipam"):
        raise CniError(
            UNSUPPORTED, "ipam: slim gives no addresses; give ipam to the plugin before it"
        )
    return Call(
        command, version, network, container, netns, ifname, _args(env.get("CNI_ARGS", "")), config
    )


def _network(config: dict[str, Any]) -> str:
    name = config.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name) or len(name) > NAME_MAX:
        raise CniError(
            CONFIG, f"name: {str(name)[:80]!r} is no network's name;"
            f" it has letters, digits, '_', '.', '-', at most {NAME_MAX}",
        )  # fmt: skip
    return name


def _args(text: str) -> dict[str, str]:
    found = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise CniError(ENVIRONMENT, f"CNI_ARGS: {pair[:80]!r} is not KEY=VALUE")
        found[key] = value
    return found


def addresses(previous: object) -> list[str]:
    """The container's addresses of a result. Raises CniError."""
    if not isinstance(previous, dict):
        raise CniError(
            CONFIG,
            "prevResult: missing; slim is chained: put it into a list of plugins, after the one"
            " that gives the container its address",
        )
    interfaces, found = previous.get("interfaces") or [], []
    try:
        for entry in previous.get("ips") or []:
            number = entry.get("interface")
            if number is not None and interfaces and not interfaces[number].get("sandbox"):
                continue  # one of the host's
            found.append(str(entry["address"]).partition("/")[0])
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise CniError(
            DECODE, "prevResult: not a result of the specification; see the plugin before slim",
            repr(error),
        ) from None  # fmt: skip
    return found
