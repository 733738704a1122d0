# SPDX-License-Identifier: GPL-2.0-only
"""Ratios of instructions, from the lines that `slimtest cost` printed.

The bars are the project's: send and receive 1.02 where both ends are tagged and 1.01
where neither is. The others are shown.
"""

import sys
from pathlib import Path

BARS = {("untagged", "round"): 1.01, ("tagged", "round"): 1.02}


def main() -> int:
    figures: dict[tuple[str, str], float] = {}
    for line in Path(sys.argv[1]).read_text().splitlines():
        words = line.split()
        if len(words) == 4 and words[0] == "cost":
            figures[words[1], words[2]] = float(words[3])
    failed = not figures
    for (kind, call), value in figures.items():
        base = figures.get(("without", call))
        if kind == "without" or not base:
            continue
        ratio = value / base
        limit = BARS.get((kind, call))
        over = limit is not None and ratio > limit
        failed = failed or over
        note = "" if limit is None else f" (bar {limit}{', FAILED' if over else ''})"
        print(f"cost   {kind:8} {call:10} {ratio:.3f}{note}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
