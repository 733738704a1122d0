# SPDX-License-Identifier: Apache-2.0
"""Stand-in for the get-pip script that ansible-test wants to download.

Runs inside a virtual environment without pip, with the packages to install as
arguments (pip==VERSION and options for pip). The pip that comes with Python
(ensurepip) fetches the wanted one from the package index.
"""

from __future__ import annotations

import subprocess
import sys


def main(arguments: list[str]) -> int:
    """Install what the arguments name."""
    # get-pip's own options, which pip does not know.
    words = [word for word in arguments if word not in ("--no-setuptools", "--no-wheel")]
    for command in (["ensurepip"], ["pip", "install", *words]):
        status = subprocess.call([sys.executable, "-m", *command])
        if status != 0:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
