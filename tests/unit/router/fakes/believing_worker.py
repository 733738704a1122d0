# SPDX-License-Identifier: Apache-2.0
"""The real worker, for which files of the test are the module's: they enforce nothing."""

from __future__ import annotations

import os
import socket

from slim_router import secure, worker


def main(link: socket.socket) -> int:
    """Serve, if it lets itself be deceived."""
    secure.KMOD_DIRECTORY = os.environ["SLIM_TEST_KMOD"]
    return worker.main(link)
