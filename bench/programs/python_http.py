# SPDX-License-Identifier: Apache-2.0
"""Python's http.server: a thread per connection, HTTP/1.0, so a connection per request."""

from __future__ import annotations

from bench.case import PYTHON, Sample
from bench.model import Metric, Mode
from bench.programs.web import PAGE, WebCase


class PythonHttp(WebCase):
    """The server as it comes: python3 -m http.server."""

    name = "python-http"
    title = "Python http.server, threads"
    connections = 4
    metrics = (
        Metric("rate", "requests", "1/s", "higher", 0),
        Metric("p99_ms", "latency p99", "ms", "lower", 3),
    )

    def conditions(self) -> str:
        """What is sent."""
        return f"wrk, {self.connections} connections, HTTP/1.0 (a connection per request)"

    def start(self, mode: Mode) -> None:
        """Start the server on a directory with one page."""
        port = self.port(mode)
        page = self.site.scratch / "html" / "index.html"
        page.parent.mkdir(exist_ok=True)
        self.write(page, PAGE)
        self.serve(
            mode,
            [
                *(PYTHON, "-m", "http.server", "--bind", self.address(mode)),
                *("--directory", str(page.parent), str(port)),
            ],
        )
        self.wait_ready(mode, port, http=True)

    def measure(self, mode: Mode) -> Sample:
        """One run of wrk."""
        (port,) = self.ports[mode.name]
        result = self.wrk(mode, port, close=True)
        return Sample({"rate": result.rate, "p99_ms": result.p99_ms}, result.problems())


CASES = (PythonHttp,)
