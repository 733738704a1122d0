# SPDX-License-Identifier: Apache-2.0
"""A worker that ends before it serves."""

from __future__ import annotations

import socket


def main(link: socket.socket) -> int:
    """End."""
    link.close()
    return 3
