# SPDX-License-Identifier: Apache-2.0
"""What the web servers share: wrk, its output, a page to serve."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.case import Case
from bench.lab import BenchError
from bench.model import Mode

PAGE = "<html><body>" + "slim " * 120 + "</body></html>\n"
"""About 600 bytes, the size of nginx's own welcome page."""

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Wrk:
    """Result of one wrk run."""

    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    errors: int  # connect, read, write, timeout, status other than 2xx and 3xx

    def problems(self) -> list[str]:
        """Words for the errors, if there are any."""
        return [f"wrk counted {self.errors} failed requests"] if self.errors else []


def parse_wrk(text: str) -> Wrk:
    """Read wrk's report (--latency).

    Raises:
        BenchError: it has no rate.
    """
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise BenchError(f"wrk: no rate in {text[-300:]!r}")
    latency = {
        percent: float(value) * UNITS[unit]
        for percent, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s|m)\b", text, re.M)
    }
    errors = 0
    if found := re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text
    ):
        errors += sum(int(number) for number in found.groups())
    if found := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors += int(found.group(1))
    return Wrk(float(rate.group(1)), latency.get("50", 0.0), latency.get("99", 0.0), errors)


class WebCase(Case):
    """A case that wrk loads."""

    needs: tuple[str, ...] = ("wrk",)
    connections = 16

    def wrk(self, mode: Mode, port: int, close: bool, seconds: float | None = None) -> Wrk:
        """Load http://server:port/ for the time; `close`: a connection per request."""
        length = max(1, round(self.site.seconds if seconds is None else seconds))
        words = ["wrk", "-t", "1", "-c", str(self.connections), "-d", f"{length}s", "--latency"]
        if close:
            words += ["-H", "Connection: close"]
        text = self.load(mode, [*words, f"http://{self.address(mode)}:{port}/"], length + 30)
        return parse_wrk(text)
