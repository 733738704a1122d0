# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""The client of the router's admin socket, and what the modules that use it share.

Private to this collection. One request is one line of JSON, one reply another: the
router's half is files/router/slim_router/admin.py.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import time

SOCKET = "/run/slim/admin.sock"
# Longer than the router takes to give up a request itself (admin.REPLY_S).
TIMEOUT_S = 35
# A reply names at most 100,000 connections, of some 350 bytes each, and 50,000 rules
# before and after.
REPLY_MAX = 128 * 1024 * 1024
PIECE = 1024 * 1024

ARGUMENTS = {
    "socket": {"type": "path", "default": SOCKET},
    "timeout": {"type": "int", "default": TIMEOUT_S},
}

# Shown as warnings at most; a result has all of them.
WARNINGS_MAX = 20


class RouterError(Exception):
    """A request that was not served; the text is for the operator.

    ``kind`` tells why: ``no-router`` (nobody answers), ``no-access``, ``no-answer``
    (not in time; it may be done all the same), ``old-router`` (it does not know the
    request), ``bad-answer`` (not what a router says), or ``refused`` (the router said no,
    and nothing was changed).
    """

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


class Router:
    """The router of this host."""

    def __init__(self, path=SOCKET, timeout=TIMEOUT_S):
        self.path = path
        self.timeout = timeout

    @classmethod
    def of(cls, module):
        """The one that a module's parameters name."""
        if not 1 <= module.params["timeout"] <= 600:
            module.fail_json(
                msg=f"timeout: {module.params['timeout']} s is not from 1 to 600; correct it"
            )
        return cls(module.params["socket"], module.params["timeout"])

    def ask(self, op, **arguments):
        """The result of one request; arguments that are None are left out.

        :raises RouterError: there is none.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        line = self._exchange(json.dumps(dict(given, op=op)).encode() + b"\n")
        if not line.endswith(b"\n"):
            raise RouterError(
                "bad-answer",
                f"slim-router at {self.path}: {op}: the answer was cut off after {len(line)} bytes; "
                "see whether the router was restarted (journalctl -u slim-router), and ask again",
            )
        try:
            reply = json.loads(line)
            if not isinstance(reply, dict) or not isinstance(reply["ok"], bool):
                raise ValueError
            if not reply["ok"]:
                if reply.get("late"):
                    raise RouterError("no-answer", f"slim-router: {reply['error']}")
                raise self._refusal(op, str(reply["error"]))
            result = reply["result"]
            if not isinstance(result, dict):
                raise ValueError
        except (KeyError, ValueError, RecursionError) as error:
            raise self._strange(op) from error
        return result

    def need(self, op, result, **kinds):
        """The result, if it has these fields of these types.

        :raises RouterError: it has not.
        """
        for name, kind in kinds.items():
            if not isinstance(result.get(name), kind):
                raise self._strange(op)
        return result

    def _strange(self, op):
        return RouterError(
            "bad-answer",
            f"slim-router at {self.path}: {op}: the answer is not what a router of this "
            "collection says; see that slim-router owns this socket, and deploy its version "
            "with the playbook slim.overlay.site",
        )

    def _refusal(self, op, text):
        if text.startswith("unknown op ") or f"op {op}: unknown argument" in text:
            return RouterError(
                "old-router",
                f"slim-router at {self.path} does not know {op} as this collection asks for it "
                f"({text}); it is of another version, deploy this one with the playbook "
                "slim.overlay.site",
            )
        return RouterError("refused", f"slim-router: {text}")

    def _exchange(self, request):
        deadline = time.monotonic() + self.timeout
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.settimeout(self.timeout)
                sock.connect(self.path)
                sock.sendall(request)
                return self._read(sock, deadline)
        except TimeoutError as error:
            raise RouterError(
                "no-answer",
                f"slim-router at {self.path}: no answer within {self.timeout} s; see what it does "
                "(journalctl -u slim-router), or raise timeout",
            ) from error
        except PermissionError as error:
            raise RouterError(
                "no-access",
                f"slim-router at {self.path}: {error.strerror}; only root may ask it, use become: true",
            ) from error
        except OSError as error:
            raise RouterError(
                "no-router",
                f"slim-router at {self.path}: {error.strerror or error}; start it (systemctl start "
                "slim-router), or deploy it with the playbook slim.overlay.site, or correct socket",
            ) from error

    def _read(self, sock, deadline):
        found = bytearray()
        while not found.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            piece = sock.recv(PIECE)
            if not piece:
                break
            found += piece
            if len(found) > REPLY_MAX:
                raise RouterError(
                    "bad-answer",
                    f"slim-router at {self.path}: an answer of more than {REPLY_MAX} bytes; "
                    "ask for less",
                )
        return bytes(found)


def fail(module, error, **more):
    """End the module on a RouterError."""
    module.fail_json(msg=str(error), kind=error.kind, **more)


def address(module, name):
    """A parameter as the router writes addresses: IPv4-mapped ones as IPv4. Ends the module
    where it is none."""
    text = module.params[name]
    if text is None:
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        module.fail_json(
            msg=f"{name}: {text!r} is not an IPv4 or IPv6 address; give the address itself, "
            "without prefix or port"
        )
    return str(getattr(found, "ipv4_mapped", None) or found)


def count(number, thing):
    """1 connection, 2 connections."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def named(rows, shown=5):
    """A few connections, for a message."""
    words = [
        f"{row.get('endpoint')} {row.get('src')}:{row.get('sport')} to "
        f"{row.get('dst')}:{row.get('dport')}" + (f" ({row['rule']})" if row.get("rule") else "")
        for row in rows[:shown]
    ]
    return "; ".join(words) + (" ..." if len(rows) > shown else "")


def missing(incomplete):
    """What was not reached, for a message."""
    return "; ".join(f"endpoint {row.get('endpoint')}: {row.get('cause')}" for row in incomplete)


def guard(module, result, **more):
    """End a dry run as the router would end the run itself.

    The router's refusal names a few connections only; here all of them are returned.
    """
    limit = module.params["max_revoked"]
    total = result["revoked_total"]
    if limit is not None and total > limit:
        module.fail_json(
            msg=f"{count(total, 'connection')} would be revoked, max_revoked is {limit}: "
            f"{named(result['revoked'])}; nothing was done; raise max_revoked, or correct the request",
            kind="refused",
            revoked=result["revoked"],
            revoked_total=total,
            **more,
        )
    if limit is not None and result["incomplete"]:
        module.fail_json(
            msg=f"max_revoked is {limit}, and what would be revoked is not wholly known: "
            f"{missing(result['incomplete'])}; nothing was done; ask again when its worker answers, "
            "or leave max_revoked out",
            kind="refused",
            revoked=result["revoked"],
            revoked_total=total,
            **more,
        )
