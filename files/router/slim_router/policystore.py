# SPDX-License-Identifier: Apache-2.0
"""The policy on disk: what the router was told last is what it enforces after a restart.

A list is on disk, whole, before anybody hears that it is in force. A file that cannot
be read is never taken for "everything is allowed": the router then denies every new
connection until a list is pushed, and keeps the file beside the good one.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from . import config, policy
from .policy import Policy
from .ports import replace_file
from .reader import ConfigError

FILE_MAX = 128 << 20
"""Bytes: above what policy.PARTS_MAX and RULES_MAX let a list be."""

CLOSED = Policy(0, "deny")
"""What is in force while the file cannot be used."""


class PolicyStore:
    """One file. ``cause`` says why it cannot be used; "" when it can, or is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cause = ""

    @property
    def aside(self) -> Path:
        """Where a file that could not be used is kept."""
        return self.path.with_name(f"{self.path.name}.bad")

    def load(self) -> Policy:
        """The policy to enforce: that of the file; one that allows everything if there is
        no file; CLOSED, with ``cause``, if there is one that cannot be used."""
        self.cause = ""
        try:
            if self.path.stat().st_size > FILE_MAX:
                raise ConfigError(f"{self.path}: larger than {FILE_MAX} bytes, not one of ours")
            text = self.path.read_bytes().decode()
            return policy.parse(config.decode(text, str(self.path)), str(self.path))
        except FileNotFoundError:
            return Policy()
        except OSError as error:
            self.cause = f"{self.path}: cannot be read ({error.strerror})"
        except UnicodeDecodeError as error:
            self.cause = f"{self.path}: not UTF-8 at byte {error.start}"
        except ConfigError as error:
            self.cause = str(error)
        return CLOSED

    def save(self, new: Policy) -> None:
        """Put *new* on disk; the old file stays where that fails. Raises OSError."""
        data = json.dumps(policy.dump(new), separators=(",", ":")).encode() + b"\n"
        if self.cause:
            self._keep_bad()
        replace_file(self.path, data)
        self.cause = ""

    def _keep_bad(self) -> None:
        """A second name for the bad file, so that there is no moment without a file: a
        router that dies in it must not start with everything allowed."""
        temporary = self.aside.with_name(f".{self.aside.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # gone meanwhile, or no links here
            temporary.unlink(missing_ok=True)
            os.link(self.path, temporary)
            temporary.replace(self.aside)
