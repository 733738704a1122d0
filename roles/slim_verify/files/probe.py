# SPDX-License-Identifier: Apache-2.0
"""Real connections between endpoints, for the role slim_verify.

Read from standard input by the hosts' interpreter, so that nothing is installed:

    python3 - serve REQUEST     wait for the router, listen in one endpoint, go on in the background
    python3 - connect REQUEST   connect from one endpoint, over the fallback and over Slim

    endpoint of this host                     endpoint of the next host
    PORT    without the shim  --- fallback -> PORT    without the shim
    PORT+1  with the shim     --- Slim -----> PORT+1  with the shim

REQUEST is JSON. Answers in JSON; a problem names thing, cause and next step.
Nothing of a host is changed; the background part ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# A cold connect may stay on the overlay now and then; five in a row is no accident.
ATTEMPTS = 5
# Bytes of the token that is sent and comes back.
TOKEN = 16

# Secure mode serves no program that holds one of these.
DROP = ["setpriv", "--bounding-set=-net_admin,-net_raw,-sys_admin", "--inh-caps=-all", "--"]

# Both run inside the endpoint, with or without the shim.
SERVER = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[1], int(sys.argv[2])))
s.listen(16)
print('listening', flush=True)
s.settimeout(float(sys.argv[3]))
done = False
while not done:
    c, _ = s.accept()
    c.settimeout(float(sys.argv[3]))
    while True:
        got = c.recv(16, socket.MSG_WAITALL)
        if len(got) < 16:
            break
        done = done or got == b'-that-was-it----'
        c.sendall(got)
    c.close()
"""
CLIENT = """
import socket, sys
c = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))
def turn(token):
    c.sendall(token)
    got = c.recv(16, socket.MSG_WAITALL)
    if got != token:
        sys.exit('the bytes that came back are not those that were sent')
turn(bytes.fromhex(sys.argv[4]))
print(c.getsockname()[1], flush=True)
word = sys.stdin.readline()
if word == 'attempts\\n':
    print(', '.join(attempts(c.fileno())), flush=True)
    word = sys.stdin.readline()
if word == 'last\\n':
    turn(b'-that-was-it----')
c.close()
"""


def ask(path: str, op: str) -> Any:
    """One request to the router's admin socket; raises OSError or ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(path)
        sock.sendall(json.dumps({"op": op}).encode() + b"\n")
        with sock.makefile("rb") as stream:
            reply = json.loads(stream.readline())
    if not reply.get("ok"):
        raise ValueError(str(reply.get("error")))
    return reply["result"]


def wait_for_router(path: str, deadline: float) -> tuple[Any, str]:
    """(status, problem): endpoints may still be coming up after the router is."""
    problem = ""
    while True:
        try:
            status = ask(path, "status")
            states = dict(status.get("endpoints") or {})
            if not set(states) - {"up", "absent"}:
                return status, ""
            problem = f"its endpoints are {states}"
        except (OSError, ValueError) as error:
            status, problem = {}, f"{path}: {error}"
        if time.monotonic() > deadline:
            return status, problem
        time.sleep(0.05)


def inside(endpoint: dict[str, Any], library: str, code: str, *arguments: object) -> list[str]:
    """Words that run Python code in an endpoint, with the shim where library is not empty."""
    shim = ["/usr/bin/env", f"LD_PRELOAD={library}"] if library else []
    run = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return ["nsenter", f"--net={endpoint['netns']}", "--", *DROP, *shim, *run]


def usable(endpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The endpoints whose namespace is there."""
    return [endpoint for endpoint in endpoints if Path(endpoint["netns"]).exists()]


def read_line(process: subprocess.Popen[str], deadline: float) -> str:
    """One line of a child before the deadline, or an empty string."""
    assert process.stdout is not None
    left = max(0.0, deadline - time.monotonic())
    if not select.select([process.stdout], [], [], left)[0]:
        return ""
    return process.stdout.readline().strip()


def last_words(process: subprocess.Popen[str]) -> str:
    """Why a child ended: the last line that it wrote to standard error."""
    process.kill()
    words = process.communicate()[1]
    lines = words.strip().splitlines()
    return lines[-1] if lines else "no answer in time"


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Listen in the first usable endpoint."""
    timeout = float(request["timeout"])
    deadline = time.monotonic() + timeout
    status, problem = wait_for_router(request["admin"], deadline)
    if problem:
        return {
            "problems": [
                f"the router does not answer: {problem}; see its log (journalctl -u slim-router)"
            ]
        }
    here = usable(request["endpoints"])
    if not here:
        return {"status": status, "serving": None, "problems": []}
    endpoint = here[0]
    children = []
    for number, library in enumerate(("", request["library"])):
        port = request["port"] + number
        words = inside(endpoint, library, SERVER, endpoint["vip"], port, 3 * timeout)
        child = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        children.append(child)
        if read_line(child, deadline) != "listening":
            cause = last_words(child)
            for other in children:
                other.kill()
                other.wait()
            return {
                "problems": [
                    f"endpoint {endpoint['name']}: cannot listen on {endpoint['vip']}:{port} "
                    f"{'with' if library else 'without'} the shim: {cause}; correct the endpoint's "
                    "netns and vip, or set slim_verify_port"
                ]
            }
    # The children go on alone. Their pipes close with us, which they never write to again.
    return {"status": status, "serving": endpoint, "problems": []}


def over_fallback(source: dict[str, Any], request: dict[str, Any]) -> str:
    """Why the fallback does not carry, or an empty string."""
    peer = request["peer"]
    token = secrets.token_hex(TOKEN)
    words = inside(source, "", CLIENT, peer["vip"], request["port"], request["timeout"], token)
    done = subprocess.run(words, input="last\n", capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"status {done.returncode}"


def path_of(admin: str, source: dict[str, Any], sport: int, deadline: float) -> tuple[str, str]:
    """(path, why) of one of our connections in the router's table."""
    wanted = {"endpoint": source["name"], "src": source["vip"], "sport": sport}
    cause = "it is not in the router's table"
    while True:
        try:
            for row in ask(admin, "connections")["connections"]:
                if all(row.get(key) == value for key, value in wanted.items()):
                    return str(row.get("path")), str(row.get("why") or "")
        except (OSError, ValueError) as error:
            cause = str(error)
        if time.monotonic() > deadline:
            return "", cause
        time.sleep(0.05)


def let_through(child: subprocess.Popen[str], deadline: float) -> str:
    """Why the connection's socket is not held by secure mode, or an empty string."""
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("attempts\n")
    child.stdin.flush()
    if not select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
        return "the attempts at an escape did not end in time"
    line = child.stdout.readline()
    if not line:
        return f"the attempts at an escape did not end: {last_words(child)}"
    return f"SECURE MODE DOES NOT HOLD: let through: {line.strip()}" if line.strip() else ""


def over_slim(source: dict[str, Any], request: dict[str, Any]) -> str:
    """Why no connection takes the host path, or an empty string."""
    peer = request["peer"]
    timeout = float(request["timeout"])
    causes = []
    for attempt in range(1, ATTEMPTS + 1):
        words = inside(
            *(source, request["library"], request["attempts"] + CLIENT),
            *(peer["vip"], request["port"] + 1, timeout, secrets.token_hex(TOKEN)),
        )
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = read_line(child, time.monotonic() + timeout + 1)
        if not line:
            return last_words(child)
        # The table is asked while the connection lives.
        path, why = path_of(request["admin"], source, int(line), time.monotonic() + 2)
        enough = path == "slim" or attempt == ATTEMPTS
        through = ""
        if path == "slim" and request["attempts"]:
            through = let_through(child, time.monotonic() + timeout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate("last\n" if enough else "next\n", timeout=timeout)
        child.kill()
        child.wait()
        if path == "slim":
            return through
        causes.append(why or path or "unknown")
    return f"{ATTEMPTS} connections stayed on the overlay ({', '.join(sorted(set(causes)))})"


def trunk_state(request: dict[str, Any]) -> str:
    """What is known of the way to the peer's host, for a message."""
    peer = request["peer"]
    with contextlib.suppress(OSError, ValueError, KeyError):
        for row in ask(request["admin"], "status")["trunks"]:
            if row["host"] == peer["host"] and row["state"] != "up":
                return f"trunk to {peer['host']}: {row['state']} {row.get('detail') or ''}".strip()
    address, port = request["host_address"], int(request["trunk_port"])
    try:
        socket.create_connection((address, port), 3).close()
    except OSError as error:
        return f"{address}:{port} of host {peer['host']} does not answer: {error.strerror or error}"
    return f"trunk to {peer['host']} is up"


def connect(request: dict[str, Any]) -> dict[str, Any]:
    """Connect from an endpoint of this host to the one that the peer serves."""
    peer = request["peer"]
    here = [
        endpoint
        for endpoint in usable(request["endpoints"])
        if endpoint["tenant"] == peer["tenant"] and endpoint["vip"] != peer["vip"]
    ]
    if not here:
        return {"tried": None, "problems": []}
    source = here[-1]
    name = f"{source['name']} ({source['vip']}) to {peer['name']} ({peer['vip']})"
    problems = []
    cause = over_fallback(source, request)
    if cause:
        problems.append(
            f"{name} over the fallback: {cause}; check that the fallback's network is up on both "
            "hosts and that their firewalls admit it"
        )
    else:
        cause = over_slim(source, request)
        if cause:
            problems.append(
                f"{name} over Slim: {cause}; {trunk_state(request)}; "
                "see slimctl connections and the routers' logs on both hosts"
            )
    return {"tried": name, "problems": problems}


def main() -> None:
    """Run one command and print its answer."""
    command, text = sys.argv[1:3]
    answer = {"serve": serve, "connect": connect}[command](json.loads(text))
    print(json.dumps(answer))
    sys.stdout.flush()
    # Children that go on must not be waited for.
    os._exit(0)


main()
