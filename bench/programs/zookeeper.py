# SPDX-License-Identifier: Apache-2.0
"""ZooKeeper: a JVM server (non-blocking I/O, AF_INET6 sockets) under a Python client.

ZooKeeper's own command line client, another JVM, must get through as well.
"""

from __future__ import annotations

import json
import time

from bench.case import PYTHON, Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode

CLASSES = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-nop.jar"
CONFIGURATION = """\
tickTime=2000
dataDir={directory}
clientPort={port}
clientPortAddress={address}
maxClientCnxns=0
admin.enableServer=false
"""


class Zookeeper(Case):
    """Reads and writes of 100-byte nodes."""

    name = "zookeeper"
    title = "ZooKeeper (JVM)"
    needs = ("java", "/usr/share/java/zookeeper.jar", "/usr/lib/python3/dist-packages/kazoo")
    metrics = (
        Metric("reads", "reads", "1/s", "higher", 0),
        Metric("writes", "writes", "1/s", "higher", 0),
    )

    def conditions(self) -> str:
        """What is sent."""
        return "kazoo, one session, 16 requests in flight, 100 bytes; the server does not fsync"

    def start(self, mode: Mode) -> None:
        """Start the server; a JVM client creates the node that is read later."""
        directory, port = self.node_directory(mode), self.port(mode)
        text = CONFIGURATION.format(directory=directory, port=port, address=self.address(mode))
        path = self.write(self.site.scratch / f"zoo-{mode.name}.cfg", text)
        java = ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", CLASSES]
        self.serve(
            mode,
            [
                *(*java, "-Dzookeeper.forceSync=no"),
                *("org.apache.zookeeper.server.quorum.QuorumPeerMain", path),
            ],
        )
        self.wait_ready(mode, port, seconds=40)
        target = f"{self.address(mode)}:{port}"
        client = ["org.apache.zookeeper.ZooKeeperMain", "-timeout", "10000", "-server", target]
        # The port answers before the server takes sessions, and drops the early ones.
        deadline = time.monotonic() + 30
        while True:
            text = self.load(mode, [*java, *client, "create", "/jvm", "hello"], 40, check=False)
            text = self.load(mode, [*java, *client, "get", "/jvm"], 40, check=False)
            if "hello" in text.split():
                return
            if time.monotonic() > deadline:
                raise BenchError(f"ZooKeeperMain: does not read what it wrote: {text[-200:]!r}")

    def measure(self, mode: Mode) -> Sample:
        """One run of the client."""
        (port,) = self.ports[mode.name]
        words = [PYTHON, self.script("zookeeper_load.py"), f"{self.address(mode)}:{port}"]
        text = self.load(mode, [*words, str(self.site.seconds / 2)], self.site.seconds + 40)
        answer = json.loads(text.strip().splitlines()[-1])
        problems = [f"{answer['wrong']} reads gave wrong data"] if answer["wrong"] else []
        return Sample({"reads": answer["reads"], "writes": answer["writes"]}, problems)


CASES = (Zookeeper,)
