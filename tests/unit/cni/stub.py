# SPDX-License-Identifier: Apache-2.0
"""The router's admin socket, played: what it was asked, and what it answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

from slim_cni.router import Router

FILES = Path(__file__).resolve().parents[3] / "files" / "cni"


class Stub:
    """Answers with what the test put into `answers`, by op; `refused` is a text."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "admin.sock"
        self.directory = directory / "attached"
        self.asked: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {}
        self.refused = ""
        self.raw: bytes | None = None
        self._sock: socket.socket | None = None

    def start(self) -> Stub:
        """Listen, until the test ends."""
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(self.path))
        self._sock.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def stop(self) -> None:
        """Be no router any more."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            self._sock = None
            self.path.unlink()

    def _serve(self) -> None:
        assert self._sock is not None
        listener = self._sock
        while True:
            try:
                client, _unused = listener.accept()
            except OSError:
                return
            with client, client.makefile("rb") as file:
                request = json.loads(file.readline())
                self.asked.append(request)
                if self.raw is not None:
                    client.sendall(self.raw)
                elif self.refused:
                    client.sendall(
                        json.dumps({"ok": False, "error": self.refused}).encode() + b"\n"
                    )
                else:
                    result = self.answers.get(request["op"], {})
                    client.sendall(json.dumps({"ok": True, "result": result}).encode() + b"\n")

    def ops(self) -> list[str]:
        """What it was asked, in order."""
        return [request["op"] for request in self.asked]

    def left(self, network: str = "dbnet") -> list[dict[str, Any]]:
        """What was left in files for it."""
        return Router(str(self.path), str(self.directory)).left(network)


def call(
    stub: Stub, command: str, config: object, **env: str | None
) -> tuple[int, Any, subprocess.CompletedProcess[bytes]]:
    """(status, decoded standard output, the rest) of one call as a runtime makes it."""
    if isinstance(config, dict):
        config = {"socket": str(stub.path), "directory": str(stub.directory), **config}
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    environment = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": "c0ffee", "CNI_NETNS": "/proc/self/ns/net",
        "CNI_IFNAME": "ct0", "CNI_PATH": "/opt/cni/bin", "PATH": os.environ["PATH"], **env,
    }  # fmt: skip
    done = subprocess.run(
        [FILES / "slim-cni"], input=text, capture_output=True, timeout=60, check=False,
        env={key: value for key, value in environment.items() if value is not None},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done
