# SPDX-License-Identifier: Apache-2.0
"""`python -m gate`: see tools/test."""

from __future__ import annotations

import argparse
import sys

from gate import runner
from gate.parts import parts


def main(arguments: list[str]) -> int:
    """The command line."""
    known = {part.name: part for part in parts()}
    parser = argparse.ArgumentParser(
        prog="tools/test", description="Check everything; parts: " + ", ".join(known)
    )
    parser.add_argument("--long", action="store_true", help="add what does not fit 45 minutes")
    parser.add_argument("parts", nargs="*", metavar="PART", help="only these parts")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.parts if name not in known]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are: {', '.join(known)}")
    chosen = [
        part
        for part in known.values()
        if part.name in options.parts or (not options.parts and (options.long or not part.long))
    ]
    return runner.main(chosen, options.long)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
