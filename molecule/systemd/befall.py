# SPDX-License-Identifier: Apache-2.0
"""Something befalls this host's router: befall.py restart|kill|hang

A program with the shim serves in the host's first endpoint, another one with the
shim holds a connection to it from the second one through all of it:

    app  shim  --- one connection, before to after --->  web  shim
               --- a new connection, once it is back -->

Ends with status 1 and the reason when the router does not come back by itself,
the old connection breaks, or no new one takes the host path.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHIM = "/opt/slim/shim/current/libslim.so"
PORT = 7000
# Seconds: WatchdogSec is 30, and the machine may be busy.
PATIENCE_S = 60.0
SERVER = """
import socket, sys, threading
s = socket.create_server((sys.argv[1], int(sys.argv[2])))
print('listening', flush=True)
def serve(c):
    while d := c.recv(64):
        c.sendall(d)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
# Echoes each line that it reads through the connection; says its port first.
CLIENT = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
def turn(data):
    c.sendall(data)
    if c.recv(len(data), socket.MSG_WAITALL) != data:
        sys.exit('the connection broke')
turn(b'first')
print(c.getsockname()[1], flush=True)
for line in sys.stdin:
    turn(line.encode())
    print('still', flush=True)
"""


def inside(endpoint: dict[str, Any], code: str, *words: object) -> subprocess.Popen[str]:
    """Python code in an endpoint, with the shim."""
    command = ["nsenter", f"--net={endpoint['netns']}", "env", f"LD_PRELOAD={SHIM}"]
    command += [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> str:
    """The next line that it prints; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], text: str) -> None:
    """A line to it."""
    assert process.stdin is not None
    process.stdin.write(text + "\n")
    process.stdin.flush()


def slimctl(what: str) -> list[dict[str, Any]]:
    """Rows of a table of the router; none while it does not answer."""
    done = subprocess.run(
        ["slimctl", what, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    rows: list[dict[str, Any]] = json.loads(done.stdout)[what] if done.returncode == 0 else []
    return rows


def shown(name: str) -> str:
    """A property of the unit."""
    words = ["systemctl", "show", "--property", name, "--value", "slim-router.service"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def until(what: str, reached: Callable[[], bool]) -> None:
    """Wait for it, or end with status 1."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            sys.exit(f"befall: {sys.argv[1]}: after {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.1)


def on_host_path(port: str) -> bool:
    """Whether the connection from this port is one over Slim."""
    rows = [row for row in slimctl("connections") if str(row["sport"]) == port]
    return any(row["path"] == "slim" for row in rows)


def main() -> None:
    """Do it."""
    host = json.loads(Path("/etc/slim/router.json").read_text())["host"]
    fleet = json.loads(Path("/etc/slim/map.json").read_text())["endpoints"]
    server_at, client_at = [endpoint for endpoint in fleet if endpoint["host"] == host][:2]
    processes = [inside(server_at, SERVER, server_at["vip"], PORT)]
    try:
        if line(processes[0]) != "listening":
            sys.exit("befall: the server does not listen")

        def fresh() -> bool:
            processes.append(inside(client_at, CLIENT, server_at["vip"], PORT))
            return on_host_path(line(processes[-1]))

        until("no connection takes the host path before anything befalls", fresh)
        old = processes[-1]
        before = shown("MainPID")
        if sys.argv[1] == "restart":
            subprocess.run(["systemctl", "restart", "slim-router.service"], check=True)
        else:
            number = signal.SIGKILL if sys.argv[1] == "kill" else signal.SIGSTOP
            subprocess.run(["kill", f"-{number.value}", before], check=True)
        until(
            "the router was not started again",
            lambda: shown("MainPID") not in ("0", before) and shown("ActiveState") == "active",
        )
        tell(old, "are you there?")
        if line(old) != "still":
            sys.exit(f"befall: {sys.argv[1]}: the connection from before broke")
        until("no connection takes the host path since", fresh)
    finally:
        for process in processes:
            process.kill()
            process.wait()


main()
