# SPDX-License-Identifier: Apache-2.0
"""haproxy in front of nginx: chrooted, without root, reloaded under load.

    wrk (client endpoint) -> haproxy (server endpoint) -> nginx (client endpoint)

Both connections cross the overlay. On a reload the new process gets the listeners
of the old one over a Unix socket (expose-fd listeners) and takes over.
"""

from __future__ import annotations

import threading
from pathlib import Path

from bench.case import Sample, Site
from bench.lab import Process
from bench.model import Metric, Mode
from bench.programs.nginx import configuration
from bench.programs.web import PAGE, WebCase

CONFIGURATION = """\
global
    chroot {directory}/empty
    user www-data
    group www-data
    stats socket {directory}/admin.sock mode 600 level admin expose-fd listeners
    maxconn 2000
    nbthread 2
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    timeout http-keep-alive 10s
frontend web
    bind {address}:{port}
    default_backend nginx
backend nginx
    http-reuse safe
    server one {backend}:{backend_port}
"""


class Haproxy(WebCase):
    """A proxy that gives up its root directory and its root rights."""

    name = "haproxy"
    title = "haproxy in front of nginx"
    needs = ("haproxy", "nginx", "wrk")
    metrics = (
        Metric("rate", "requests", "1/s", "higher", 0),
        Metric("p99_ms", "latency p99", "ms", "lower", 3),
        Metric("reload_rate", "requests while it reloads", "1/s", "higher", 0),
        Metric("reload_errors", "failed requests while it reloads", "", "lower", 0),
    )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.proxies: dict[str, tuple[Process, int]] = {}

    def conditions(self) -> str:
        """What is sent."""
        return (
            f"wrk, {self.connections} connections, {len(PAGE)} bytes a page, keepalive; "
            "while it reloads (SIGUSR2 in mid-load): a connection per request"
        )

    def start(self, mode: Mode) -> None:
        """Start nginx beside the client, then haproxy in the server endpoint."""
        directory = self.node_directory(mode)
        here = self.node_directory(mode, self.site.pair.client)
        backend, port = self.port(mode), self.port(mode)
        address = self.address(mode, self.site.pair.client)
        conf = self.site.scratch / f"nginx-{mode.name}.conf"
        path = self.write(conf, configuration(here, address, backend, 1))
        command = ["nginx", "-p", str(here), "-e", "stderr", "-c", path]
        self.serve(mode, command, self.site.pair.client, "nginx behind haproxy")
        text = CONFIGURATION.format(
            directory=directory,
            address=self.address(mode),
            port=port,
            backend=address,
            backend_port=backend,
        )
        path = self.write(Path(self.site.scratch / f"haproxy-{mode.name}.cfg"), text)
        self.lab.run(self.site.pair.server, "host", ["mkdir", "-p", f"{directory}/empty"])
        self.proxies[mode.name] = (self.serve(mode, ["haproxy", "-W", "-f", path]), port)
        self.wait_ready(mode, port, http=True)

    def measure(self, mode: Mode) -> Sample:
        """One run with keepalive, one with a reload in its middle."""
        process, port = self.proxies[mode.name]
        steady = self.wrk(mode, port, close=False)
        timer = threading.Timer(max(1.0, self.site.seconds) / 2, process.reload)
        timer.start()
        try:
            reload = self.wrk(mode, port, close=True)
        finally:
            timer.cancel()
            timer.join()
        problems = steady.problems() + [f"during the reload {p}" for p in reload.problems()]
        if not process.running():
            problems.append(f"haproxy ended at the reload: {process.error_tail()}")
        return Sample(
            {
                "rate": steady.rate,
                "p99_ms": steady.p99_ms,
                "reload_rate": reload.rate,
                "reload_errors": float(reload.errors),
            },
            problems,
        )


CASES = (Haproxy,)
