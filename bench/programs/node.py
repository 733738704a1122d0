# SPDX-License-Identifier: Apache-2.0
"""node (libuv): an HTTP server under wrk."""

from __future__ import annotations

from bench.case import Sample
from bench.model import Metric, Mode
from bench.programs.web import PAGE, WebCase

SERVER = """\
// SPDX-License-Identifier: Apache-2.0
const page = Buffer.from(process.argv[4]);
require('http').createServer((request, response) => {
  response.writeHead(200, {'Content-Type': 'text/html', 'Content-Length': page.length});
  response.end(page);
}).listen(Number(process.argv[3]), process.argv[2]);
process.on('SIGTERM', () => process.exit(0));
"""


class Node(WebCase):
    """Keepalive, then a connection per request."""

    name = "node"
    title = "node http"
    needs = ("node", "wrk")
    metrics = (
        Metric("rate", "requests, keepalive", "1/s", "higher", 0),
        Metric("close_rate", "requests, connection each", "1/s", "higher", 0),
    )

    def conditions(self) -> str:
        """What is sent."""
        return f"wrk, {self.connections} connections, {len(PAGE)} bytes a page"

    def start(self, mode: Mode) -> None:
        """Start the server."""
        port = self.port(mode)
        path = self.write(self.site.scratch / "server.js", SERVER)
        self.serve(mode, ["node", path, self.address(mode), str(port), PAGE])
        self.wait_ready(mode, port, http=True)

    def measure(self, mode: Mode) -> Sample:
        """Two runs of wrk."""
        (port,) = self.ports[mode.name]
        keep = self.wrk(mode, port, close=False)
        close = self.wrk(mode, port, close=True)
        return Sample(
            {"rate": keep.rate, "close_rate": close.rate}, keep.problems() + close.problems()
        )


CASES = (Node,)
