# SPDX-License-Identifier: Apache-2.0
"""The lab as the benchmarks see it: processes in endpoints, addresses, SlimRouter's own view.

Everything goes through the command line of `slimlab` (exec, ip, hostip, push), so
that the same benchmarks run on namespace nodes and on virtual machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.model import Mode

SLIMCTL = "/opt/slim/router/current/slimctl"


class BenchError(Exception):
    """A run failed; the text names what, why and what to look at."""


class Process:
    """A running command in the lab. Its group is ended with it, whatever happens."""

    def __init__(self, command: Sequence[str], what: str, stdin_open: bool = True) -> None:
        self.what = what
        # A file, not a pipe: a chatty server must not block, and its end is wanted in errors.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if stdin_open else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        self._buffer = b""

    @property
    def pid(self) -> int:
        """Process id of the lab's exec."""
        return self._popen.pid

    def running(self) -> bool:
        """True while the command has not ended."""
        return self._popen.poll() is None

    def error_tail(self) -> str:
        """Last lines of standard error (and of what was not read of standard output)."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        text = self._log.read().decode(errors="replace")
        lines = (self._buffer.decode(errors="replace") + "\n" + text).split("\n")
        return " | ".join(line.strip() for line in lines if line.strip())[-900:]

    def read_line(self, seconds: float) -> str:
        """Next line of standard output.

        Raises:
            BenchError: none came in time, or the command ended.
        """
        assert self._popen.stdout is not None
        fd = self._popen.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise BenchError(
                    f"{self.what}: no line within {seconds:.0f} s: {self.error_tail()}"
                )
            piece = os.read(fd, 65536)
            if not piece:
                self._popen.wait(5)
                raise BenchError(
                    f"{self.what}: ended with status {self._popen.returncode}: {self.error_tail()}"
                )
            self._buffer += piece
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    def write_line(self, text: str) -> None:
        """One line to its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(text.encode() + b"\n")
        self._popen.stdin.flush()

    def reload(self) -> None:
        """Send SIGUSR2, which some servers take as the wish to read their configuration again."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGUSR2)

    def drain(self) -> None:
        """Throw away what was printed so far, so that a full pipe never stops a server."""
        assert self._popen.stdout is not None
        fd = self._popen.stdout.fileno()
        while select.select([fd], [], [], 0)[0]:
            if not os.read(fd, 65536):
                return

    def stop(self) -> None:
        """Close standard input, then SIGTERM, then SIGKILL the group; returns when it is gone."""
        with contextlib.suppress(OSError):
            if self._popen.stdin is not None:
                self._popen.stdin.close()
        steps: list[tuple[float, signal.Signals | None]] = [
            (0.5, None),
            (5.0, signal.SIGTERM),
            (5.0, signal.SIGKILL),
        ]
        for seconds, number in steps:
            if number is not None and self.running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
                break
        # Workers that outlived their master belong to the same group.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        self._log.close()


class Lab:
    """The command line of a lab that is up."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._addresses: dict[tuple[str, str], str | None] = {}
        self._slimctl_problem = ""

    def _ask(self, *words: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [self.command, *words],
                capture_output=True,
                text=True,
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"{self.command} {' '.join(words)}: no end within {seconds:.0f} s"
            ) from error
        except OSError as error:
            raise BenchError(
                f"{self.command}: {error.strerror}; give the lab's command with --lab"
            ) from error

    def _address(self, verb: str, endpoint: str) -> str | None:
        key = (verb, endpoint)
        if key not in self._addresses:
            answer = self._ask(verb, endpoint)
            words = answer.stdout.split()
            self._addresses[key] = (
                words[0].split("/")[0] if answer.returncode == 0 and words else None
            )
        return self._addresses[key]

    def has(self, endpoint: str) -> bool:
        """True if the lab has this endpoint."""
        return self._address("ip", endpoint) is not None

    def address(self, mode: Mode, endpoint: str) -> str:
        """Address by which a client of this mode reaches the endpoint.

        Raises:
            BenchError: the lab does not know it.
        """
        found = self._address("ip" if mode.address == "virtual" else "hostip", endpoint)
        if found is None:
            raise BenchError(
                f"{endpoint}: the lab has no such endpoint; is it up ({self.command} up)?"
            )
        return found

    def vip(self, endpoint: str) -> str:
        """Virtual address of the endpoint. Raises BenchError."""
        found = self._address("ip", endpoint)
        if found is None:
            raise BenchError(f"{endpoint}: the lab has no such endpoint; see {self.command} status")
        return found

    def command_line(
        self, endpoint: str, mode: Mode | str, command: Sequence[str], cpu: int | None = None
    ) -> list[str]:
        """Words that run `command` in the endpoint, pinned to `cpu` if that is not None."""
        name = mode if isinstance(mode, str) else mode.run
        pinned = [] if cpu is None else ["taskset", "-c", str(cpu)]
        return [self.command, "exec", endpoint, "--mode", name, "--", *pinned, *command]

    def start(
        self,
        endpoint: str,
        mode: Mode | str,
        command: Sequence[str],
        cpu: int | None = None,
        what: str = "",
    ) -> Process:
        """Start a command that goes on running; the caller stops it."""
        return Process(
            self.command_line(endpoint, mode, command, cpu), what or Path(command[0]).name
        )

    def run(
        self,
        endpoint: str,
        mode: Mode | str,
        command: Sequence[str],
        cpu: int | None = None,
        seconds: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
    ) -> str:
        """Run a command to its end; gives its standard output.

        Raises:
            BenchError: it took too long, or (with `check`) it failed.
        """
        words = self.command_line(endpoint, mode, command, cpu)
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        what = f"{Path(command[0]).name} in {endpoint}"
        try:
            out, err = process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{what}: no end within {seconds:.0f} s") from error
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if check and process.returncode != 0:
            tail = " | ".join((out + "\n" + err).split("\n"))[-700:]
            raise BenchError(f"{what}: status {process.returncode}: {tail}")
        return out

    def push(self, *paths: Path) -> None:
        """Bring paths of this machine to every node (nothing to do on namespace nodes).

        Raises:
            BenchError: the lab refused.
        """
        answer = self._ask("push", *[str(path) for path in paths], seconds=120)
        if answer.returncode != 0:
            raise BenchError(f"push: {answer.stderr.strip() or answer.stdout.strip()}")

    def status(self) -> dict[str, Any]:
        """What the lab says of itself (`status --json`); empty if it does not say."""
        try:
            answer = json.loads(self._ask("status", "--json").stdout)
        except (BenchError, ValueError):
            return {}
        return answer if isinstance(answer, dict) else {}

    # ---- the kernel's view ----

    def device_bytes(self, endpoint: str) -> int:
        """Bytes that went through the devices of the endpoint's namespace, loopback apart."""
        text = self.run(endpoint, "overlay", ["cat", "/proc/net/dev"])
        return parse_device_bytes(text)

    # ---- SlimRouter's view ----

    def slimctl(self, endpoint: str, *words: str) -> Any:
        """What `slimctl WORDS --json` says on the endpoint's node; None if it does not answer."""
        try:
            text = self.run(endpoint, "host", [SLIMCTL, *words, "--json"], seconds=10)
            return json.loads(text)
        except (BenchError, ValueError) as error:
            self._slimctl_problem = str(error)
            return None

    def connections(self, endpoint: str) -> list[dict[str, Any]] | None:
        """Rows of the connection table of the endpoint's node."""
        answer = self.slimctl(endpoint, "connections")
        return rows_of(answer, "connections")

    def workers(self, endpoint: str) -> dict[str, int]:
        """Process ids of the node's workers, by endpoint name."""
        rows = rows_of(self.slimctl(endpoint, "endpoints"), "endpoints") or []
        found: dict[str, int] = {}
        for row in rows:
            pid = row.get("pid")
            if isinstance(pid, int) and pid > 0:
                found[str(row.get("name"))] = pid
        return found

    def connects(self, endpoints: Sequence[str]) -> dict[str, int]:
        """Connects by outcome since the workers began: warm, cold, overlay_REASON."""
        found: dict[str, int] = {}
        for endpoint in endpoints:
            for row in rows_of(self.slimctl(endpoint, "endpoints"), "endpoints") or []:
                if row.get("name") != endpoint:
                    continue
                for name, count in (row.get("counters") or {}).items():
                    if name.startswith("connect_") and not name.endswith("_failed"):
                        word = name.removeprefix("connect_")
                        found[word] = found.get(word, 0) + int(count)
        return found

    @contextlib.contextmanager
    def pinned_workers(self, endpoints: Sequence[str], cpu: int) -> Iterator[int]:
        """Keep the workers of these endpoints' nodes on one CPU meanwhile; gives how many."""
        moved: dict[tuple[str, int], str] = {}
        seen: set[int] = set()
        for endpoint in endpoints:
            for pid in self.workers(endpoint).values():
                if pid in seen:
                    continue
                seen.add(pid)
                before = self.run(endpoint, "host", ["taskset", "-p", str(pid)], check=False)
                if ":" not in before:
                    continue
                moved[endpoint, pid] = before.rsplit(":", 1)[1].strip()
                self.run(
                    endpoint, "host", ["taskset", "-a", "-c", "-p", str(cpu), str(pid)], check=False
                )
        try:
            yield len(moved)
        finally:
            for (endpoint, pid), mask in moved.items():
                self.run(endpoint, "host", ["taskset", "-a", "-p", mask, str(pid)], check=False)


def rows_of(answer: Any, name: str) -> list[dict[str, Any]] | None:
    """Rows of a slimctl answer: a list, or an object that holds the list under `name`."""
    if isinstance(answer, dict):
        answer = answer.get(name)
    if not isinstance(answer, list):
        return None
    return [row for row in answer if isinstance(row, dict)]


def parse_device_bytes(text: str) -> int:
    """Received and sent bytes of all devices but lo, from /proc/net/dev (proc(5))."""
    total = 0
    for line in text.splitlines():
        name, colon, numbers = line.partition(":")
        words = numbers.split()
        if colon and name.strip() != "lo" and len(words) >= 16:
            total += int(words[0]) + int(words[8])
    return total
