# SPDX-License-Identifier: Apache-2.0
"""The lab for tests: run programs in endpoints, ask routers, wait for things.

    lab.run("c1", ["redis-cli", "-h", lab.ip("c2"), "ping"]).stdout
    server = lab.popen("c2", ["python3", "-m", "http.server"], mode="overlay")
    wait_for(lambda: lab.listens("c2", 8000), what="the server listens")

Programs are started by `tools/slimlab exec`, the same way as a user would.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lab import names
from lab.errors import LabError
from lab.room import Room
from lab.state import Plan, State

SLIMLAB = names.CHECKOUT / "tools" / "slimlab"
KEEPER = Path(__file__).with_name("keeper.py")
SLIMCTL = "/opt/slim/router/current/slimctl"

T = TypeVar("T")


def wait_for(
    predicate: Callable[[], T], timeout: float = 10.0, what: str = "", interval: float = 0.02
) -> T:
    """Call `predicate` until it returns something true, and return that.

    AssertionError after `timeout` seconds, naming `what` and the last outcome.
    Exceptions of the predicate count as "not yet".
    """
    deadline = time.monotonic() + timeout
    while True:
        last: object
        try:
            value = predicate()
            if value:
                return value
            last = value
        except (OSError, ValueError, KeyError, LabError, subprocess.SubprocessError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or predicate}; last: {last!r}")
        time.sleep(interval)


class Lab:
    """One lab that is up."""

    def __init__(self, name: str | None = None) -> None:
        self.state = State(name)
        self.plan: Plan = self.state.load()
        #: Was it deployed by playbooks/site.yml (else: an overlay without Slim)?
        self.deployed = self.plan.deploy
        self._running: list[subprocess.Popen[Any]] = []

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes: node1, node2."""
        return [node.name for node in self.plan.nodes]

    @property
    def endpoints(self) -> list[str]:
        """Names of the endpoints: c1 on node1, c2 on node2, then c3 on node1, c4 on node2."""
        return [endpoint.name for endpoint in self.plan.endpoints]

    def ip(self, endpoint: str) -> str:
        """Virtual address of an endpoint."""
        return self.plan.endpoint(endpoint).vip

    def node_of(self, endpoint: str) -> str:
        """Name of an endpoint's node."""
        return self.plan.endpoint(endpoint).node

    def hostip(self, place: str) -> str:
        """Host address of an endpoint's node, or of a node."""
        node = place if place in self.nodes else self.node_of(place)
        return self.plan.node(node).address

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment for commands of `slimlab` on this lab."""
        return {**os.environ, "SLIMLAB_NAME": self.state.name, **(extra or {})}

    def command(
        self,
        place: str,
        words: Sequence[str | os.PathLike[str]] | str,
        mode: str = "slim",
        libc: str = "glibc",
    ) -> list[str]:
        """Words of a command line that run `words` (a string: by sh) in an endpoint or node."""
        if isinstance(words, str):
            words = ["/bin/sh", "-c", words]
        tail = ["--", *(os.fspath(word) for word in words)]
        if place in self.nodes:
            return [str(SLIMLAB), "node", place, *tail]
        return [str(SLIMLAB), "exec", place, "--mode", mode, "--libc", libc, *tail]

    def run(
        self,
        place: str,
        words: Sequence[str | os.PathLike[str]] | str,
        mode: str = "slim",
        *,
        check: bool = True,
        timeout: float = 60.0,
        stdin: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        libc: str = "glibc",
        text: bool = True,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command to its end in an endpoint (or node) and return what it said.

        mode: slim, overlay or host. AssertionError with the command's words if it
        fails and `check` is set; subprocess.TimeoutExpired after `timeout` seconds.
        """
        done = subprocess.run(
            self.command(place, words, mode, libc),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=text,
            timeout=timeout,
            env=self.environment(env),
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{place} ({mode}): {words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def popen(
        self,
        place: str,
        words: Sequence[str | os.PathLike[str]] | str,
        mode: str = "slim",
        *,
        env: Mapping[str, str] | None = None,
        libc: str = "glibc",
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """Start a command in an endpoint (or node); it is ended after the test.

        `options` go to subprocess.Popen; unless said otherwise stdin is /dev/null,
        stdout and stderr are inherited (pytest shows them when a test fails). The
        command leads a process group of its own; its pid is the command's own.
        """
        options.setdefault("stdin", subprocess.DEVNULL)
        process: subprocess.Popen[Any] = subprocess.Popen(
            self.command(place, words, mode, libc),
            env=self.environment(env),
            start_new_session=True,
            **options,
        )
        self._running.append(process)
        return process

    def end_processes(self) -> None:
        """End every group that popen() started and that is still there."""
        for process in self._running:
            # The leader is not reaped before this, so the group's number is still its own.
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        self._running.clear()

    def listens(self, place: str, port: int, mode: str = "overlay") -> bool:
        """Does something listen on TCP `port` in the endpoint's (or host's) namespace?"""
        room = place if mode != "host" else self.node_of(place)
        return bool(self._text(room, "ss", "-Hltn", f"sport = :{port}").strip())

    def _text(self, room: str, *words: str) -> str:
        """Output of a command in an endpoint without the shim, or on a node; LabError."""
        if self.plan.kind == "netns":
            return Room(self.state, room).run(*words)
        done = self.run(room, list(words), "overlay", check=False)
        if done.returncode != 0:
            raise LabError(f"{room}: {' '.join(words)}: {done.stderr.strip()}")
        return str(done.stdout)

    def slimctl(self, place: str, *words: str) -> Any:
        """What `slimctl WORDS --json` on a node (or an endpoint's node) says, parsed."""
        node = place if place in self.nodes else self.node_of(place)
        return json.loads(self.run(node, [SLIMCTL, *words, "--json"]).stdout)

    def keeper(self, place: str, *words: str) -> Any:
        """Ask the keeper of a node's router: status, hold, resume, stop, reload, restart.

        Returns the status as a dict, or None for the other verbs. Virtual machines
        have systemd in its place.
        """
        node = place if place in self.nodes else self.node_of(place)
        words_ = [sys.executable, str(KEEPER), "--pidfile", names.ROUTER_PIDFILE, *words]
        done = self.run(node, words_, check=words[0] != "status")
        return json.loads(done.stdout) if words[0] == "status" else None

    def router_pid(self, place: str) -> int:
        """Pid of the router's main process on a node; LabError or ValueError if there is none."""
        node = place if place in self.nodes else self.node_of(place)
        if self.plan.kind == "vm":
            words = ["systemctl", "show", "--property=MainPID", "--value", "slim-router.service"]
            return int(self._text(node, *words))
        return int(Room(self.state, node).run("cat", names.ROUTER_PIDFILE))

    def kill_router(self, place: str) -> int:
        """Kill a node's router with SIGKILL and return the pid that it had."""
        pid = self.router_pid(place)
        if self.plan.kind == "vm":
            node = place if place in self.nodes else self.node_of(place)
            self._text(node, "kill", "-KILL", str(pid))
        else:
            os.kill(pid, signal.SIGKILL)
        return pid

    def router_ready(self, place: str) -> bool:
        """Does the router of a node answer on its admin socket?"""
        try:
            self.slimctl(place, "status")
        except (AssertionError, ValueError, subprocess.SubprocessError):
            return False
        return True

    def wait_router(self, place: str, timeout: float = 60.0) -> None:
        """Wait until the router of a node serves."""
        wait_for(lambda: self.router_ready(place), timeout, f"the router of {place} serves")
