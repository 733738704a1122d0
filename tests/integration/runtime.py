# SPDX-License-Identifier: Apache-2.0
"""A container runtime by hand: namespaces on a node, and calls of CNI as the specification has them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import names
from lab.client import Lab
from tests.integration.plays import play

BIN, CONF, STATE = f"{names.CNI}/bin", f"{names.CNI}/net.d", f"{names.CNI}/ipam"
NETWORK = "labnet"
POD_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "podnet",
    "plugins": [
        {
            "type": "bridge", "bridge": "br-slim", "mtu": names.OVERLAY_MTU,
            "ipam": {
                "type": "host-local", "dataDir": STATE,
                "ranges": [[{"subnet": names.OVERLAY_NETWORK, "rangeStart": "10.44.128.100",
                             "rangeEnd": "10.44.128.199"}]],
            },
        },
        {"type": "slim"},
    ],
}  # fmt: skip
SHIM = "/opt/slim/shim/current/libslim.so"


@dataclass
class Container:
    """One container: a namespace on the bridge of the fallback, with an address."""

    lab: Lab
    node: str
    name: str
    vip: str

    @property
    def netns(self) -> str:
        """Path of its namespace, on its node."""
        return f"/run/netns/{self.name}"

    def start(self) -> Container:
        """What the main plugin of a network does."""
        link, net = f"p-{self.name}", self.name
        self.lab.run(
            self.node,
            f"set -e; ip netns add {net}; ip -n {net} link set lo up\n"
            f"ip link add {link} mtu {names.OVERLAY_MTU} type veth"
            f" peer name eth0 mtu {names.OVERLAY_MTU} netns {net}\n"
            f"ip link set {link} master br-slim up\n"
            f"ip -n {net} address add {self.vip}/{names.OVERLAY_LENGTH} dev eth0\n"
            f"ip -n {net} link set eth0 up\n"
            f"ip -n {net} route replace {names.OVERLAY_NETWORK} dev eth0 src {self.vip}",
        )
        return self

    def stop(self) -> None:
        """Take it away without telling anybody."""
        self.lab.run(
            self.node,
            f"ip link del p-{self.name} 2>/dev/null; ip netns del {self.name} 2>/dev/null; true",
        )

    def cni(self, command: str, check: bool = True, **config: Any) -> Any:
        """One call of the plugin; what it printed, decoded."""
        env = (
            f"CNI_COMMAND={command} CNI_CONTAINERID={self.name} CNI_NETNS={self.netns}"
            f" CNI_IFNAME=eth0 CNI_PATH={BIN}"
        )
        done = self.lab.run(
            self.node, f"{env} {BIN}/slim", stdin=json.dumps(self.config(**config)), check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout else None

    def config(self, **more: Any) -> dict[str, Any]:
        """The plugin's part of a list of plugins, as the runtime hands it over."""
        previous = {
            "ips": [{"address": f"{self.vip}/{names.OVERLAY_LENGTH}", "interface": 0}],
            "interfaces": [{"name": "eth0", "sandbox": self.netns}],
        }
        return {
            "cniVersion": "1.1.0", "name": NETWORK, "type": "slim", "prevResult": previous, **more,
        }  # fmt: skip

    def popen(self, *words: str, shim: bool = True) -> subprocess.Popen[str]:
        """Run a program in it."""
        preload = ["env", f"LD_PRELOAD={SHIM}"] if shim else []
        return self.lab.popen(
            self.node, ["nsenter", f"--net={self.netns}", *preload, *words],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


BOOK = """
- hosts: slim_hosts
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: slim.overlay.slim_cni
{more}
"""


def deploy(lab: Lab, directory: Path, uninstall: bool, *words: str) -> dict[str, Any]:
    """Run the role slim_cni; what the play said."""
    book = directory / "cni.yml"
    book.write_text(BOOK.format(more="        tasks_from: uninstall.yml" if uninstall else ""))
    variables = {
        "slim_cni_networks": [{"file": "10-podnet.conflist", "content": POD_NETWORK}],
    }  # fmt: skip
    status, said = play(lab, book, "-e", json.dumps(variables), *words)
    assert status == 0, json.dumps(said["plays"])[-4000:]
    return said


def traces(lab: Lab) -> list[str]:
    """What of the role is on the nodes."""
    places = f"/opt/slim/cni /opt/slim/bin /opt/slim/preload {BIN} {CONF} {names.CDI}"
    return [
        line
        for node in lab.nodes
        for line in lab.run(node, f"find {places} -type f; true", check=False).stdout.splitlines()
    ]


def attached(lab: Lab, node: str) -> dict[str, dict[str, Any]]:
    """The attached endpoints of a node, by name."""
    rows = lab.slimctl(node, "endpoints")["endpoints"]
    return {row["name"]: row for row in rows if row["attached"]}
