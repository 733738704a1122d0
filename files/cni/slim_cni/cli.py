# SPDX-License-Identifier: Apache-2.0
"""slim-cni: a CNI plugin, called by container runtimes only.

Standard input has the configuration, the environment the rest; standard output gets the
result, or the error as JSON with exit status 1.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from .commands import COMMANDS
from .errors import DECODE, CniError
from .settings import INPUT_MAX, VERSIONS, decode, read


def main() -> int:
    """One call."""
    version = VERSIONS[-1]
    try:
        text = sys.stdin.buffer.read(INPUT_MAX + 1)
        if len(text) > INPUT_MAX:
            raise CniError(DECODE, f"configuration: longer than {INPUT_MAX} bytes")
        config: dict[str, Any] = decode(text)
        given = config.get("cniVersion")
        if given in VERSIONS:
            version = given
        call = read(os.environ, config)
        answer = COMMANDS[call.command](call)
    except CniError as error:
        print(
            json.dumps(
                {
                    "cniVersion": version,
                    "code": error.code,
                    "msg": f"slim: {error}",
                    **({"details": error.details} if error.details else {}),
                }
            )
        )
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0
