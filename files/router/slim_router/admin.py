# SPDX-License-Identifier: Apache-2.0
"""The admin socket: one JSON request line, one JSON reply line, root only.

Requests are ``{"op": NAME, ...}``; replies ``{"ok": true, "result": ...}`` or
``{"ok": false, "error": TEXT}``, with ``"late": true`` where the work goes on. Commands
are registered with the arguments that they take; anything else is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import log
from .shimdoor import bind_unix

REQUEST_MAX = 64 * 1024 * 1024
"""Bytes: a policy of 50,000 rules, written generously. Only root may ask."""
REQUEST_S = 5.0
REPLY_S = 30.0
CLIENTS_MAX = 32
SOCKET_MODE = 0o600

Handler = Callable[[dict[str, Any]], Awaitable[object]]


class AdminError(ValueError):
    """A request that cannot be served; the text goes to whoever asked."""


@dataclass(frozen=True, slots=True)
class Command:
    """One op: its arguments with their types, and what serves it."""

    handler: Handler
    arguments: dict[str, type]
    help: str


class Admin:
    """Serves the admin socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commands: dict[str, Command] = {}
        self._server: asyncio.Server | None = None
        self._clients = 0

    def register(self, op: str, handler: Handler, help: str, **arguments: type) -> None:
        """Make *op* known."""
        self.commands[op] = Command(handler, arguments, help)

    async def start(self) -> None:
        """Listen. Raises OSError, ConfigError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sock = bind_unix(self.path, socket.SOCK_STREAM, SOCKET_MODE, 64)
        self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=REQUEST_MAX)

    async def stop(self) -> None:
        """Close and take the name away."""
        if self._server is not None:
            self._server.close()
            self.path.unlink(missing_ok=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > CLIENTS_MAX:
                reply: dict[str, Any] = {"ok": False, "error": "too many clients; ask again later"}
            else:
                reply = await self._one(reader)
            writer.write(json.dumps(reply, separators=(",", ":")).encode() + b"\n")
            async with asyncio.timeout(REPLY_S):
                await writer.drain()
        except (OSError, TimeoutError):
            pass
        finally:
            self._clients -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            async with asyncio.timeout(REQUEST_S):
                line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            return _refusal(f"request longer than {REQUEST_MAX} bytes")
        except (asyncio.IncompleteReadError, TimeoutError):
            return _refusal("no complete request line in time")
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refusal("request is not JSON")
        if not isinstance(request, dict):
            return _refusal("request is not an object")
        op = request.pop("op", None)
        command = self.commands.get(op) if isinstance(op, str) else None
        if command is None:
            return _refusal(f"unknown op {op!r}; the ops are {', '.join(sorted(self.commands))}")
        for name, value in request.items():
            if name not in command.arguments:
                return _refusal(f"op {op}: unknown argument {name!r}")
            wanted = command.arguments[name]
            if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
                kind = command.arguments[name].__name__
                return _refusal(f"op {op}: argument {name} is not of type {kind}")
        try:
            async with asyncio.timeout(REPLY_S):
                return {"ok": True, "result": await command.handler(request)}
        except AdminError as error:
            return _refusal(str(error))
        except TimeoutError:
            return _refusal(
                f"op {op}: not done within {REPLY_S:g} s, and it goes on; see what is in force"
                " (slimctl acl, slimctl status) before you ask again"
            ) | {"late": True}
        except Exception as error:
            log.error("admin-op", op=op, cause=repr(error))
            return _refusal(f"op {op}: {error!r}; this is a defect, the router goes on")


def _refusal(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}
