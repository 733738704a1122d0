# SPDX-License-Identifier: Apache-2.0
"""nginx, loaded by wrk: keepalive and a connection per request, one and four workers."""

from __future__ import annotations

from pathlib import Path

from bench.case import Sample
from bench.model import Metric, Mode
from bench.programs.web import PAGE, WebCase

CONFIGURATION = """\
daemon off;
user www-data;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {address}:{port} backlog=1024;
        location / {{ default_type text/html; return 200 "{page}"; }}
    }}
}}
"""


def configuration(directory: Path, address: str, port: int, workers: int) -> str:
    """nginx.conf of a server that answers every request with the page."""
    return CONFIGURATION.format(
        directory=directory, address=address, port=port, workers=workers, page=PAGE.strip()
    )


class Nginx(WebCase):
    """nginx under wrk."""

    needs = ("nginx", "wrk")
    workers = 1
    close = False
    metrics = (
        Metric("rate", "requests", "1/s", "higher", 0),
        Metric("p50_ms", "latency p50", "ms", "lower", 3),
        Metric("p99_ms", "latency p99", "ms", "lower", 3),
    )

    def conditions(self) -> str:
        """What is sent."""
        way = "a connection per request" if self.close else "keepalive"
        return f"wrk, {self.connections} connections, {way}, {len(PAGE)} bytes a page"

    def start(self, mode: Mode) -> None:
        """Start nginx in the foreground with its own configuration."""
        directory, port = self.node_directory(mode), self.port(mode)
        text = configuration(directory, self.address(mode), port, self.workers)
        path = self.write(self.site.scratch / f"nginx-{mode.name}.conf", text)
        self.serve(mode, ["nginx", "-p", str(directory), "-e", "stderr", "-c", path])
        self.wait_ready(mode, port, http=True)

    def measure(self, mode: Mode) -> Sample:
        """One run of wrk."""
        (port,) = self.ports[mode.name]
        result = self.wrk(mode, port, self.close)
        return Sample(
            {"rate": result.rate, "p50_ms": result.p50_ms, "p99_ms": result.p99_ms},
            result.problems(),
        )


class NginxKeep(Nginx):
    """One worker, keepalive."""

    name = "nginx-keep"
    title = "nginx, keepalive"


class NginxClose(Nginx):
    """One worker, a connection per request."""

    name = "nginx-close"
    title = "nginx, connection per request"
    close = True


class NginxKeep4(Nginx):
    """Four workers, keepalive."""

    name = "nginx4-keep"
    title = "nginx, 4 workers, keepalive"
    workers = 4


class NginxClose4(Nginx):
    """Four workers, a connection per request."""

    name = "nginx4-close"
    title = "nginx, 4 workers, connection per request"
    workers = 4
    close = True


CASES = (NginxKeep, NginxClose, NginxKeep4, NginxClose4)
