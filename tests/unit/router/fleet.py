# SPDX-License-Identifier: Apache-2.0
"""A fleet in a temporary directory: CA, certificates, files, namespaces, routers.

Every router of a test runs in the test's own event loop, on a loopback address of
its own; its zygote and workers are real processes.

    127.X.Y.1  node1  supervisor -- zygote -- worker a1 (namespace sup-...-a1)
    127.X.Y.2  node2  supervisor -- zygote -- worker b1 (namespace sup-...-b1)
"""

from __future__ import annotations

import asyncio
import datetime
import itertools
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from slim_router.config import Tls
from slim_router.paths import Paths
from slim_router.supervisor import Supervisor

FAKES = Path(__file__).resolve().parent / "fakes"
_networks = itertools.count(1)
_spaces = itertools.count(1)


class Ca:
    """A certificate authority that issues host certificates into a directory."""

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.path = directory / "ca.pem"
        self.path.write_bytes(self._issue(self.name, self.key.public_key(), None))

    def _issue(self, name: x509.Name, public: Any, dns: list[str] | None) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(dns is None, None), True)
        )
        if dns:
            names = x509.SubjectAlternativeName([x509.DNSName(n) for n in dns])
            builder = builder.add_extension(names, False)
        made = builder.sign(self.key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)

    def host(self, *dns: str) -> Tls:
        """Files for a certificate with these DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        stem = "-".join(dns) or "nameless"
        cert, secret = self.directory / f"{stem}.pem", self.directory / f"{stem}.key"
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem[:60])])
        cert.write_bytes(self._issue(name, key.public_key(), list(dns)))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Tls(self.path, cert, secret)


class Fleet:
    """Hosts and endpoints; writes the files and makes routers of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = Ca(directory / "tls")
        self.network = f"127.{100 + os.getpid() % 100}.{next(_networks) % 250}"
        self.hosts: dict[str, dict[str, Any]] = {}
        self.endpoints: list[dict[str, Any]] = []
        self.pools: list[dict[str, Any]] = []
        self.tls: dict[str, Tls] = {}
        self.changes: dict[str, dict[str, Any]] = {}
        self.spaces: list[str] = []
        self.revision = 1

    # --- contents -----------------------------------------------------------------

    def host(self, name: str, **changes: Any) -> str:
        """Add a host; *changes* replace keys of its router.json. Returns its address."""
        address = f"{self.network}.{len(self.hosts) + 1}"
        self.hosts[name] = {"address": address, "trunk_port": 6790}
        self.tls[name] = self.ca.host(name)
        self.changes[name] = changes
        return address

    def endpoint(
        self, name: str, vip: str, host: str, netns: str | None = None, tenant: str = "default"
    ) -> None:
        """Add an endpoint."""
        entry = {"name": name, "tenant": tenant, "vip": vip, "host": host, "netns": netns}
        self.endpoints.append(entry)

    def netns(self) -> str:
        """The path of a new network namespace."""
        name = f"sup-{os.getpid()}-{next(_spaces)}"
        subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
        self.spaces.append(name)
        return f"/run/netns/{name}"

    def close(self) -> None:
        """Delete the namespaces."""
        for name in self.spaces:
            if Path(f"/run/netns/{name}").exists():
                subprocess.run(["ip", "netns", "del", name], check=True, timeout=10)

    # --- files ----------------------------------------------------------------------

    def paths(self, host: str) -> Paths:
        """Where *host*'s router keeps its things."""
        base = self.directory / host
        base.mkdir(exist_ok=True)
        return Paths(base / "router.json", base / "map.json", base / "run", base / "state")

    def router_json(self, host: str) -> dict[str, Any]:
        """router.json of *host*."""
        tls = self.tls[host]
        return {
            "version": 1,
            "host": host,
            "address": self.hosts[host]["address"],
            "trunk_port": self.hosts[host]["trunk_port"],
            "data_ports": [20000, 20009],
            "overlay": ["10.44.0.0/16", "fd44::/64"],
            "secure": "none",
            "metrics": None,
            "tls": {"ca": str(tls.ca), "cert": str(tls.cert), "key": str(tls.key)},
            "bounds": {"ping_s": 1},  # a loaded machine is no dead peer
            **self.changes[host],
        }

    def map_json(self) -> dict[str, Any]:
        """map.json, the same everywhere."""
        return {
            "version": 1,
            "revision": self.revision,
            "hosts": self.hosts,
            "endpoints": self.endpoints,
            **({"pools": self.pools} if self.pools else {}),
        }

    def write(self, *hosts: str) -> None:
        """Write the files of these hosts, or of all."""
        for host in hosts or self.hosts:
            paths = self.paths(host)
            paths.config.write_text(json.dumps(self.router_json(host)))
            paths.map.write_text(json.dumps(self.map_json()))

    def router(self, host: str, worker: str = "fake_worker") -> Supervisor:
        """A router that is not started yet."""
        return Supervisor(
            self.paths(host), worker_module=worker, worker_search=(FAKES,), scan_s=0.05
        )


async def until(condition: Any, what: str, timeout: float = 10.0) -> Any:
    """Poll *condition* until it is true; fail naming *what*."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.01)


def run(work: Any, timeout: float = 60.0) -> Any:
    """Run one coroutine, bounded in time."""
    return asyncio.run(asyncio.wait_for(work, timeout))
