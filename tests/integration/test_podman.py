# SPDX-License-Identifier: Apache-2.0
"""podman on a node, as a site would use it: a network of CNI with slim in it, devices of CDI.

    node1                               node2
    podman: web (bridge, slim, CDI)     c2
              \\___ br-slim ___ VXLAN ___/

The image is a directory with the machine's own /usr.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lab.client import Lab, wait_for
from tests.integration import helpers
from tests.integration.helpers import need, read_until
from tests.integration.runtime import BIN, CONF, attached
from tests.integration.test_containers import CLIENT, SERVER, end_of, paths

pytestmark = pytest.mark.long

PORT = 7341
HOME = "/run/ct"
ROOT = f"{HOME}/root"
PLUGINS = "/usr/lib/cni"  # of the package containernetworking-plugins
FILES = {
    "containers.conf": f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{BIN}", "{PLUGINS}"]
network_config_dir = "{CONF}"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
""",
    "storage.conf": f"""
[storage]
driver = "vfs"
runroot = "{HOME}/runroot"
graphroot = "{HOME}/graph"
""",
}


class Podman:
    """podman on node1, with storage and configuration of its own."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.environment = [
            "env", f"CONTAINERS_CONF={HOME}/containers.conf",
            f"CONTAINERS_STORAGE_CONF={HOME}/storage.conf", "podman",
        ]  # fmt: skip

    def __call__(self, *words: str, check: bool = True) -> Any:
        return self.lab.run("node1", [*self.environment, *words], check=check, timeout=120)

    def run(
        self, device: str, *words: str, network: str = "podnet", more: tuple[str, ...] = ()
    ) -> Any:
        """A container to its end."""
        return self(
            "run", "--rm", "--network", network, "--device", f"slim.overlay/shim={device}",
            "-v", "/usr:/usr:ro", *more, "--rootfs", ROOT, *words,
        )  # fmt: skip

    def vip(self, name: str) -> str:
        """Of a container that runs."""
        (found,) = json.loads(self("inspect", name).stdout)
        return str(found["NetworkSettings"]["Networks"]["podnet"]["IPAddress"])


@pytest.fixture
def podman(cni: Lab) -> Iterator[Podman]:
    need("podman", "crun")
    # (crun refuses what the nodes' machine may have: versions 1 and 2 of cgroups side by side)
    cni.run("node1", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
    try:
        places = " ".join(
            f"{ROOT}/{name}" for name in ["etc", "usr", "proc", "sys", "dev", "tmp", "run", "opt"]
        )
        links = "".join(f"ln -sfn usr/{n} {ROOT}/{n};" for n in ("bin", "sbin", "lib", "lib64"))
        cni.run("node1", f"set -e; mkdir -p {places}; {links}")
        for name, text in FILES.items():
            cni.run("node1", f"cat > {HOME}/{name}", stdin=text)
        made = Podman(cni)
        yield made
        cni.end_processes()
        made("rm", "--all", "--force", "--time", "0")
        wait_for(lambda: not attached(cni, "node1"), 20, "nothing is attached")
    finally:
        cni.run("node1", f"umount /sys/fs/cgroup; rm -rf {HOME}")


def serve(podman: Podman, name: str) -> str:
    """A server in a container; its vip."""
    podman(
        "run", "--detach", "--network", "podnet", "--name", name,
        "--device", "slim.overlay/shim=glibc", "-v", "/usr:/usr:ro", "--rootfs", ROOT,
        "/usr/bin/python3", "-c", SERVER, "0.0.0.0", str(PORT), name,
    )  # fmt: skip
    return podman.vip(name)


@pytest.mark.parametrize("end", ["stop", "kill", "crash"])
def test_a_container_is_an_endpoint_from_start_to_end(cni: Lab, podman: Podman, end: str) -> None:
    vip = serve(podman, "web")
    row = attached(cni, "node1")["web"]
    assert (row["vip"], row["state"]) == (vip, "up")
    words = [sys.executable, "-c", CLIENT, vip, str(PORT)]
    client = cni.popen("c2", words, stdout=subprocess.PIPE, text=True)
    read_until(client, "met web")
    wait_for(lambda: paths(cni, "node1", "web") == ["slim"], 15, "it is on the host path")
    if end == "crash":
        (found,) = json.loads(podman("inspect", "web").stdout)
        cni.run("node1", ["kill", "-KILL", str(found["State"]["Pid"])])
    else:
        podman(*(("stop", "--time", "1") if end == "stop" else ("kill",)), "web")
    assert end_of(client) in ("reset", "end")
    wait_for(lambda: not attached(cni, "node1"), 20, "the endpoint is gone")


def test_every_program_has_the_shim_and_none_may_change_it(podman: Podman) -> None:
    serve(podman, "web")
    look = "grep -c libslim.so /proc/self/maps; cat /etc/ld.so.preload"
    said = podman("exec", "--env", "LD_PRELOAD=", "web", "env", "-i", "/bin/sh", "-c", look).stdout
    assert int(said.split()[0]) > 0
    assert said.split()[1] == "/opt/slim/shim/current/libslim.so"
    for path in ("/etc/ld.so.preload", "/run/slim/shim/x", "/opt/slim/shim/x"):
        done = podman("exec", "web", "/bin/sh", "-c", f": > {path}", check=False)
        assert "Read-only file system" in done.stderr, path
    done = podman("exec", "web", "rm", "-f", "/run/slim/shim/router.sock", check=False)
    assert "Read-only file system" in done.stderr


def test_without_cni_the_hook_attaches(cni: Lab, podman: Podman) -> None:
    """As with netavark: the namespace has its address, and nobody has told the router."""
    cni.run(
        "node1",
        "set -e; ip netns add hooked; ip -n hooked link set lo up\n"
        "ip -n hooked address add 10.44.128.77/32 dev lo",
    )
    try:
        podman(
            "run", "--detach", "--network", "ns:/run/netns/hooked", "--name", "hooked",
            "--device", "slim.overlay/shim=glibc", "-v", "/usr:/usr:ro", "--rootfs", ROOT,
            "sleep", "100",
        )  # fmt: skip
        (row,) = attached(cni, "node1").values()
        assert row["vip"] == "10.44.128.77"
        podman("rm", "--force", "--time", "0", "hooked")
        assert attached(cni, "node1") == {}
    finally:
        cni.run("node1", ["ip", "netns", "del", "hooked"])


def test_musl_has_a_device_of_its_own(podman: Podman) -> None:
    program = helpers.build() / "peer_musl"
    podman(
        "run", "--detach", "--network", "podnet", "--name", "alpine",
        "--device", "slim.overlay/shim=musl", "-v", "/usr:/usr:ro", "-v", f"{program}:/tmp/peer:ro",
        "--rootfs", ROOT, "/tmp/peer", "0.0.0.0", str(PORT),
    )  # fmt: skip
    (found,) = json.loads(podman("inspect", "alpine").stdout)
    maps = podman.lab.run("node1", ["cat", f"/proc/{found['State']['Pid']}/maps"]).stdout
    assert "libslim-musl.so" in maps


def test_the_hosts_network_and_none_are_left_alone(cni: Lab, podman: Podman) -> None:
    for network in ("host", "none"):
        assert podman.run("glibc", "true", network=network).returncode == 0
    assert attached(cni, "node1") == {}
