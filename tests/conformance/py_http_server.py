# SPDX-License-Identifier: Apache-2.0
"""http.server with threads as the server; http.client and urllib as clients of it,
from this side's own children and from the peer; keep-alive and one per request."""

from __future__ import annotations

import http.client
import http.server
import threading
import urllib.request

import pyconf

BODY = pyconf.pattern(200_000, 5)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Raw(Handler):
    """Counts the path of each connection, and echoes eight bytes: for the peer's dial."""

    def handle(self) -> None:
        pyconf.note_path(self.connection)
        pyconf.check(self.client_address[0] == peer.address, "client_address")
        self.wfile.write(self.rfile.read(8))
        self.wfile.flush()


peer = pyconf.start(40)
with http.server.ThreadingHTTPServer((peer.own, 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    host, port = server.server_address[:2]
    address = str(host), int(port)
    keep = http.client.HTTPConnection(*address, timeout=8)
    for _ in range(20):
        keep.request("GET", "/")
        pyconf.check(keep.getresponse().read() == BODY, "keep-alive: body differs")
    keep.close()
    for _ in range(20):
        url = f"http://{address[0]}:{address[1]}/"
        with urllib.request.urlopen(url, timeout=8) as reply:
            pyconf.check(reply.read() == BODY, "body differs")
    server.shutdown()
pyconf.ok("own address, keep-alive and one per request")
with http.server.ThreadingHTTPServer((peer.own, 0), Raw) as server:
    server.socket.listen(256)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    order = peer.dial_me(100, "id", server.server_address[1])
    peer.all_ok(order, 100)
    server.shutdown()
pyconf.ok("a hundred connections from the peer")
with http.server.ThreadingHTTPServer(("0.0.0.0", 0), Raw) as server:
    server.socket.listen(256)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    order = peer.dial_me(50, "id", server.server_address[1])
    peer.all_ok(order, 50)
    server.shutdown()
pyconf.ok("on the any-address")
pyconf.done()
