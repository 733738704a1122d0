# SPDX-License-Identifier: Apache-2.0
"""The supervisor's own look at the backend of secure mode: may endpoints be served?

It looks at start, at every reload and every CHECK_S seconds, tags a socket of its own
when it meets a backend, and notices one that took another's place. It hands nothing
over: the workers open backends of their own (secure.py says why), and prove them.
"""

from __future__ import annotations

import time

from . import log, secure

CHECK_S = 1.0


class Guard:
    """One backend at a time, of the mode that router.json asks for."""

    def __init__(self) -> None:
        self.mode = "none"
        self.cause = ""
        self.since = time.time()
        self._backend: secure.Backend | None = None
        self._identity = ""

    def use(self, mode: str) -> str:
        """Look after *mode* from now on; what :meth:`check` says of it."""
        if mode != self.mode:
            self.close()
            self.mode, self.cause, self.since = mode, "", time.time()
        return self.check()

    def check(self) -> str:
        """Why no endpoint may be served, or "". One line in the log when that changes."""
        met = self._backend is None
        try:
            self._look()
            cause = ""
        except secure.SecureError as error:
            self.close()
            cause = str(error)
        if cause != self.cause:
            self.cause, self.since = cause, time.time()
            if cause:
                log.error(
                    "secure-unavailable", mode=self.mode, cause=cause,
                    next="no host socket is handed out until then; programs use the plain overlay",
                )  # fmt: skip
        if not cause and met and self._backend is not None:
            log.info("secure-in-force", mode=self.mode, backend=self._identity)
        return cause

    def _look(self) -> None:
        """Raises SecureError."""
        if self._backend is None:
            backend = secure.make(self.mode)
            if backend is None:
                return
            try:
                backend.open()
                secure.try_out(backend)
                self._identity = backend.identity()
            except BaseException:
                backend.close()
                raise
            self._backend = backend
        elif (found := self._backend.identity()) != self._identity:
            raise secure.SecureError(
                0,
                f"secure mode {self.mode}: {found} took the place of {self._identity};"
                " workers start anew, which needs no hand",
            )

    def report(self) -> dict[str, object]:
        """For the admin socket."""
        return {
            "mode": self.mode,
            "in_force": self.mode != "none" and not self.cause,
            "cause": self.cause,
            "backend": self._identity if self._backend is not None else "",
            "since_s": round(time.time() - self.since, 3),
        }

    def close(self) -> None:
        """Let go of the backend."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None
