# SPDX-License-Identifier: Apache-2.0
"""Tells the router of this host that qos.json has changed. One that does not run reads
it when it starts."""

from __future__ import annotations

import json
import socket
from pathlib import Path

ADMIN = Path("/run/slim/admin.sock")
TIMEOUT_S = 15.0
ANSWER_MAX = 1 << 20


class RouterError(RuntimeError):
    """The router does not take it; the text names thing, cause and next step."""


def tell(path: Path) -> str:
    """What came of it: "told N workers", or why nobody was told. Raises RouterError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return "no router runs here; it reads the file when it starts"
        except OSError as error:
            raise RouterError(f"{path}: {error}; run as root") from error
        try:
            sock.sendall(b'{"op":"limits"}\n')
            answer = b""
            while not answer.endswith(b"\n") and len(answer) < ANSWER_MAX:
                more = sock.recv(65536)
                if not more:
                    break
                answer += more
            reply = json.loads(answer)
        except (OSError, ValueError) as error:
            raise RouterError(
                f"{path}: the router did not answer ({error}); see its log"
            ) from error
    if not reply.get("ok"):
        raise RouterError(
            f"{path}: {reply.get('error')}; deploy router and slim_qos of one collection version"
        )
    return f"told {reply['result'].get('told')} workers"
