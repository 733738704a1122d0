# SPDX-License-Identifier: Apache-2.0
"""What a lab knows about itself, on disk under /run::

/run/slimlab[.NAME]/lab.json            the description below
/run/slimlab[.NAME]/ns/ROOM.{net,mnt,uts}   pins
/run/slimlab[.NAME]/endpoints/cX/{node,vip,hostip}  for the shell wrapper
/run/slimlab[.NAME]/inventory.json       for ansible-playbook
CHECKOUT/.cache/lab[.NAME]/             what must lie on an executable file system
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import names
from lab.errors import LabError, Refused

#: How long a command waits for another one on the same lab, in seconds.
LOCK_WAIT = 900.0


@dataclass(frozen=True)
class Endpoint:
    """A container stand-in: a network namespace on a node."""

    name: str
    node: str
    vip: str
    #: Path of the namespace as programs of the node see it.
    netns: str
    tenant: str = "default"


@dataclass(frozen=True)
class Node:
    """A host stand-in."""

    name: str
    address: str


@dataclass
class Plan:
    """What the lab is to be, and how far it has come."""

    #: "netns" or "vm".
    kind: str = "netns"
    hosts: int = 2
    endpoints_per_host: int = 1
    #: Tenants that have all endpoints with the same vips, each in a network of its own.
    tenants: int = 1
    #: Round-trip time added between hosts, in microseconds.
    rtt_us: int = 0
    secure: str = "none"
    #: Of virtual machines: which kernel, and what its command line says beside ours.
    kernel: str = ""
    append: str = ""
    #: Run the playbook even where its outcome has been kept.
    fresh: bool = False
    deploy: bool = True
    #: Leave out the overlay too: somebody else will run site.yml.
    bare: bool = False
    #: Value of RUN_MARK in the processes of the `up` that made the lab.
    run: str = ""
    #: "building" until everything stands, then "up".
    phase: str = "building"
    nodes: list[Node] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)

    def lay_out(self) -> None:
        """Fill in nodes and endpoints: the first endpoint of each node, then more in turns;
        then the same of each further tenant.

        Raises Refused when there are too many for the address plan.
        """
        if not 1 <= self.hosts <= names.MAX_HOSTS:
            raise Refused(f"--hosts {self.hosts}: choose 1 to {names.MAX_HOSTS}")
        total = self.hosts * self.endpoints_per_host
        if self.endpoints_per_host < 1 or total > names.MAX_ENDPOINTS:
            raise Refused(
                f"--endpoints-per-host {self.endpoints_per_host}: choose at least 1, "
                f"and at most {names.MAX_ENDPOINTS} endpoints in the lab"
            )
        if not 1 <= self.tenants <= names.MAX_TENANTS:
            raise Refused(f"--tenants {self.tenants}: choose 1 to {names.MAX_TENANTS}")
        self.nodes = [
            Node(names.node_name(number), names.host_address(number))
            for number in range(1, self.hosts + 1)
        ]
        self.endpoints = [
            Endpoint(
                name=names.endpoint_name(number, tenant),
                node=names.node_name((number - 1) % self.hosts + 1),
                vip=names.vip(number),
                netns=f"/run/netns/{names.endpoint_name(number, tenant)}",
                tenant=names.tenant_name(tenant),
            )
            for tenant in range(1, self.tenants + 1)
            for number in range(1, total + 1)
        ]

    def endpoint(self, name: str) -> Endpoint:
        """Return the endpoint called `name`; LabError if there is none."""
        for endpoint in self.endpoints:
            if endpoint.name == name:
                return endpoint
        known = ", ".join(endpoint.name for endpoint in self.endpoints)
        raise LabError(f"no endpoint {name!r} in the lab; there are: {known}")

    def node(self, name: str) -> Node:
        """Return the node called `name`; LabError if there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise LabError(f"no node {name!r} in the lab; there are: {known}")


class State:
    """The state directory of one lab."""

    def __init__(self, name: str | None = None) -> None:
        self.name = names.lab_name() if name is None else name
        suffix = f".{self.name}" if self.name else ""
        self.directory = Path(f"/run/slimlab{suffix}")
        self.pins = self.directory / "ns"
        self.inventory = self.directory / "inventory.json"
        self.lock_file = Path(f"/run/slimlab{suffix}.lock")
        #: For what has to be executable or seen from inside the nodes.
        self.scratch = names.CHECKOUT / ".cache" / f"lab{suffix}"

    def exists(self) -> bool:
        """Is there a lab, or what a killed command left of one?"""
        return self.directory.exists()

    def create(self, plan: Plan) -> None:
        """Make the directory and write the plan before anything else is made."""
        self.directory.mkdir(mode=0o755)
        (self.directory / "endpoints").mkdir()
        self.pins.mkdir()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.save(plan)

    def save(self, plan: Plan) -> None:
        """Write the plan, and the single facts that the shell wrapper reads."""
        temporary = self.directory / "lab.json.new"
        temporary.write_text(json.dumps(dataclasses.asdict(plan), indent=1) + "\n")
        for endpoint in plan.endpoints:
            facts = self.directory / "endpoints" / endpoint.name
            facts.mkdir(exist_ok=True)
            (facts / "node").write_text(endpoint.node + "\n")
            (facts / "vip").write_text(endpoint.vip + "\n")
            (facts / "hostip").write_text(plan.node(endpoint.node).address + "\n")
        temporary.replace(self.directory / "lab.json")

    def load(self) -> Plan:
        """Read the plan; LabError if there is no lab."""
        try:
            raw: dict[str, Any] = json.loads((self.directory / "lab.json").read_text())
        except FileNotFoundError:
            raise LabError("the lab is not up; start it with: tools/slimlab up") from None
        except ValueError as error:
            raise LabError(
                f"{self.directory}/lab.json cannot be read ({error}); run: tools/slimlab down"
            ) from None
        raw["nodes"] = [Node(**node) for node in raw["nodes"]]
        raw["endpoints"] = [Endpoint(**endpoint) for endpoint in raw["endpoints"]]
        return Plan(**raw)

    @contextlib.contextmanager
    def lock(self, wait: float = LOCK_WAIT) -> Iterator[None]:
        """Hold the lab for a change. The kernel drops the lock when we die.

        Raises LabError when another command keeps it longer than `wait` seconds.
        """
        with self.lock_file.open("a+") as file:
            deadline = time.monotonic() + wait
            told = False
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "unknown"
                    if not told:
                        print(f"slimlab: waiting for process {holder}", file=sys.stderr)
                        told = True
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"the lab is being changed by process {holder}, which did not "
                            f"finish in {wait:.0f} s; end it and try again"
                        ) from None
                    time.sleep(0.1)
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield
