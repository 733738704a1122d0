# SPDX-License-Identifier: Apache-2.0
"""In a guest that counts instructions: warm connects over a real router, by mode.

c1 10.44.0.1 --- br0 (veth) --- c2 10.44.0.2      one host, node1 192.0.2.1
setup connect                   setup serve        both with the shim

warm.py none kmod           prints one line of JSON for each mode, round by round
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COUNT = 200
ROUNDS = 2
RUN = Path("/run/slim")
NET_ADMIN = "-net_admin,-net_raw,-sys_admin"
CONFIG: dict[str, Any] = {
    "version": 1, "host": "node1", "address": "192.0.2.1", "trunk_port": 6790,
    "data_ports": [20000, 20999], "overlay": ["10.44.0.0/16"], "secure_fallback": "overlay",
    "metrics": None,
    "tls": {"ca": "/test/ca.pem", "cert": "/test/host.pem", "key": "/etc/slim/host.key"},
    "bounds": {"swap_us": 5000, "blocking_swap_us": 20000, "reply_us": 20000, "lease_s": 30},
}  # fmt: skip
MAP = {
    "version": 1, "revision": 1,
    "hosts": {"node1": {"address": "192.0.2.1", "trunk_port": 6790}},
    "endpoints": [
        {"name": f"c{number}", "tenant": "default", "vip": f"10.44.0.{number}", "host": "node1",
         "netns": f"/run/netns/c{number}"}
        for number in (1, 2)
    ],
}  # fmt: skip
# No shell: the guest's takes its own ip for that of the PATH.
LINKS = """
address add 192.0.2.1/32 dev lo
link add br0 type bridge
link set br0 up
"""
ENDPOINT = """
netns add c{n}
link add v{n} type veth peer name eth0 netns c{n}
link set v{n} master br0 up
-n c{n} link set lo up
-n c{n} address add 10.44.0.{n}/24 dev eth0
-n c{n} link set eth0 up
"""


def status() -> dict[str, Any]:
    """What the router says of itself; {} while it does not."""
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(RUN / "admin.sock"))
        sock.sendall(b'{"op": "status"}\n')
        with sock.makefile("rb") as stream:
            found: dict[str, Any] = json.loads(stream.readline()).get("result") or {}
            return found
    return {}


@contextlib.contextmanager
def router(mode: str) -> Iterator[None]:
    """SlimRouter with both endpoints up."""
    Path("/etc/slim/router.json").write_text(json.dumps({**CONFIG, "secure": mode}))
    environment = {**os.environ, "PYTHONPATH": "/router"}
    words = [sys.executable, "-m", "slim_router", "run", "--runtime-dir", str(RUN)]
    with subprocess.Popen(words, env=environment) as process:
        try:
            end = time.monotonic() + 300
            while status().get("endpoints") != {"up": 2}:
                if time.monotonic() > end or process.poll() is not None:
                    raise SystemExit(f"{mode}: no router: {status()}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()


def inside(endpoint: str, *words: str) -> list[str]:
    """A program with the shim in an endpoint, without what secure mode refuses."""
    return [
        *("ip", "netns", "exec", endpoint, "setpriv", f"--bounding-set={NET_ADMIN}"),
        *("--inh-caps=-all", "--", "env", "LD_PRELOAD=/test/libslim.so", "/test/setup", *words),
    ]


def measure(mode: str) -> dict[str, Any]:
    """What `setup connect` prints, in the guest's time, which counts instructions."""
    with (
        router(mode),
        subprocess.Popen(
            inside("c2", "serve", "10.44.0.2", "1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as server,
    ):
        assert server.stdout is not None and server.stdin is not None
        port = server.stdout.readline().decode().split()[1]
        words = inside("c1", "connect", "10.44.0.2", port, str(COUNT))
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE)
        server.stdin.close()
        found: dict[str, Any] = json.loads(done.stdout)
        if found["host_path"] != found["count"] or found["errors"]:
            raise SystemExit(f"{mode}: not all over the host path: {found}")
        return found


def main(modes: list[str]) -> None:
    Path("/etc/slim").mkdir(parents=True, exist_ok=True)
    Path("/etc/slim/map.json").write_text(json.dumps(MAP))
    key = Path("/etc/slim/host.key")
    key.write_bytes(Path("/test/host.key").read_bytes())
    key.chmod(0o600)
    if not Path("/run/netns/c1").exists():
        for line in (LINKS + ENDPOINT.format(n=1) + ENDPOINT.format(n=2)).splitlines():
            if line:
                subprocess.run(["ip", *line.split()], check=True)
    for number in range(ROUNDS):
        for mode in modes:
            print("warm", json.dumps({"round": number, "mode": mode, **measure(mode)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
