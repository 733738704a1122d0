# SPDX-License-Identifier: Apache-2.0
"""The client of the router's admin socket; and what is done where no router is.

The router's half is files/router/slim_router/attachops.py. A container must not wait for
a router that is being restarted: what it would be told is left in a file in its directory,
which it reads when it starts and once a second.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from hashlib import blake2s
from typing import Any

SOCKET = "/run/slim/admin.sock"
DIRECTORY = "/run/slim/attached"
TIMEOUT_S = 15.0
REPLY_MAX = 64 << 20

Request = dict[str, Any]


class Absent(Exception):
    """No router answers."""


class Refused(Exception):
    """The router said no; the text is its own."""


class Router:
    """The router of this host."""

    def __init__(self, path: str = SOCKET, directory: str = DIRECTORY) -> None:
        self.path = path
        self.directory = directory

    def ask(self, op: str, **arguments: object) -> Any:
        """One request. Raises Absent, Refused."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.connect(self.path)
                sock.sendall(json.dumps({"op": op, **arguments}).encode() + b"\n")
                with sock.makefile("rb") as file:
                    line = file.readline(REPLY_MAX)
        except OSError as error:
            raise Absent(f"slim-router at {self.path}: {error.strerror or error}") from error
        try:
            reply = json.loads(line)
            served, answer = reply["ok"], reply["result" if reply["ok"] else "error"]
        except (ValueError, KeyError, TypeError) as error:
            raise Absent(f"slim-router at {self.path}: the answer was cut off") from error
        if not served:
            raise Refused(str(answer))
        return answer

    # --- without a router ---------------------------------------------------------

    def leave(self, request: Request) -> None:
        """Leave the request of an attach for the next router. Raises OSError."""
        os.makedirs(self.directory, 0o700, exist_ok=True)
        path = self._file(request)
        temporary = f"{path}.{os.getpid()}"
        kept = {key: value for key, value in request.items() if key != "once"}
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump({"version": 1, **kept}, file)
        os.replace(temporary, path)

    def take(self, request: Request) -> None:
        """Take the file of an attachment away. Raises OSError."""
        try:
            os.unlink(self._file(request))
        except FileNotFoundError:
            pass

    def left(self, network: str) -> list[Request]:
        """The attachments of *network* that files tell of. Raises OSError."""
        found = []
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        for name in names:
            try:
                with open(os.path.join(self.directory, name), encoding="utf-8") as file:
                    record = json.load(file)
                if record["network"] == network and self._file(record).endswith("/" + name):
                    found.append(record)
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not ours to judge: the router names it
        return found

    def _file(self, request: Request) -> str:
        words = (request["network"], request["container"], request["ifname"])
        name = blake2s("\0".join(words).encode(), digest_size=16).hexdigest()
        return os.path.join(self.directory, name + ".json")


def is_namespace(path: str) -> bool:
    """Does *path* lead to a namespace file? Raises OSError other than ENOENT."""
    try:
        return os.stat(path).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise
