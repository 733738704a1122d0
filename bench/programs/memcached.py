# SPDX-License-Identifier: Apache-2.0
"""memcached, loaded by memcaslap (libmemcached), which verifies a share of the values."""

from __future__ import annotations

import re

from bench.case import Case, Sample
from bench.lab import BenchError
from bench.model import Metric, Mode


def parse(text: str) -> tuple[float, int]:
    """Operations per second and failed verifications from memcaslap's summary.

    Raises:
        BenchError: there is no summary.
    """
    rate = re.search(r"Run time: ([\d.]+)s Ops: (\d+) TPS: (\d+)", text)
    if rate is None:
        raise BenchError(f"memcaslap: no summary in {text[-300:]!r}")
    failed = re.search(r"verify_failed: (\d+)", text)
    return float(rate.group(3)), int(failed.group(1)) if failed else 0


class Memcached(Case):
    """Nine gets to one set, 100-byte values."""

    name = "memcached"
    title = "memcached"
    needs = ("memcached", "memcaslap")
    metrics = (Metric("rate", "gets and sets", "1/s", "higher", 0),)

    def conditions(self) -> str:
        """What is sent."""
        return "memcaslap, 32 connections, 90 % get, 10 % set, values of 100 bytes, 10 % verified"

    def start(self, mode: Mode) -> None:
        """Start memcached with two threads."""
        port = self.port(mode)
        self.serve(
            mode,
            [
                *("memcached", "-u", "root", "-l", self.address(mode), "-p", str(port)),
                *("-U", "0", "-t", "2", "-m", "64"),
            ],
        )
        self.wait_ready(mode, port)

    def measure(self, mode: Mode) -> Sample:
        """One run of memcaslap."""
        (port,) = self.ports[mode.name]
        seconds = max(1, round(self.site.seconds))
        text = self.load(
            mode,
            [
                *("memcaslap", "-s", f"{self.address(mode)}:{port}", "-T", "1", "-c", "32"),
                *("-t", f"{seconds}s", "-X", "100", "-w", "1k", "-v", "0.1"),
            ],
            seconds + 30,
        )
        rate, failed = parse(text)
        return Sample({"rate": rate}, [f"{failed} values were not what was set"] if failed else [])


CASES = (Memcached,)
