# SPDX-License-Identifier: Apache-2.0
"""Python asyncio streams on both ends."""

from __future__ import annotations

import json

from bench.case import PYTHON, Case, Sample
from bench.model import Metric, Mode


class PythonAsyncio(Case):
    """Echo on open connections, and a connection per message."""

    name = "python-asyncio"
    title = "Python asyncio streams"
    metrics = (
        Metric("messages", "messages, 16 connections", "1/s", "higher", 0),
        Metric("connects", "connection per message", "1/s", "higher", 0),
    )

    def conditions(self) -> str:
        """What is sent."""
        return "64 bytes echoed, 16 tasks in one event loop"

    def start(self, mode: Mode) -> None:
        """Start the echo server."""
        port = self.port(mode)
        script = self.script("asyncio_echo.py")
        self.serve(mode, [PYTHON, script, "serve", self.address(mode), str(port)])
        self.wait_ready(mode, port)

    def measure(self, mode: Mode) -> Sample:
        """One run of the client."""
        (port,) = self.ports[mode.name]
        words = [PYTHON, self.script("asyncio_echo.py"), "ask", self.address(mode), str(port)]
        text = self.load(mode, [*words, str(self.site.seconds / 2)], self.site.seconds + 40)
        answer = json.loads(text.strip().splitlines()[-1])
        wrong = int(answer["wrong"])
        problems = [f"{wrong} messages failed: {answer['first']}"] if wrong else []
        return Sample({"messages": answer["messages"], "connects": answer["connects"]}, problems)


CASES = (PythonAsyncio,)
