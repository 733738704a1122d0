# SPDX-License-Identifier: Apache-2.0
"""What the programs cost, as ratios of instructions; in a guest with --icount.

Three measurements of the same calls, made from another namespace: before the
programs are loaded, loaded on an untagged connection, on one tagged at both
ends. getsockname of a tagged socket is refused, so that its number means nothing.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import harness  # noqa: E402 - found by the path above
from slim_bpf import check, load  # noqa: E402 - found by the path above
from slim_bpf.tags import Tags  # noqa: E402 - found by the path above


def measure(made: harness.Pair) -> dict[str, int]:
    """Nanoseconds of the guest's clock, by name."""
    fds = [made.client.fileno(), made.server.fileno()]

    def run() -> str:
        words = ["/test/cost", *map(str, fds)]
        return subprocess.run(
            words, pass_fds=fds, capture_output=True, text=True, check=True
        ).stdout

    lines = (line.split() for line in harness.foreign(run).splitlines())
    return {name: int(number) for name, number in lines}


def main() -> None:
    made = harness.pair()
    bare = measure(made)
    again = measure(made)
    load.load()
    untagged = measure(made)
    with Tags() as tags:
        for sock in (made.client, made.server):
            tags.tag(sock.fileno(), check.cookie_of(sock))
        tagged = measure(made)
    made.close()
    print(f"{os.uname().release}: instructions, ratio to none loaded (again, untagged, tagged)")
    for name, number in bare.items():
        ratios = [round(other[name] / number, 4) for other in (again, untagged, tagged)]
        print(f"{name:18} {number:8} {ratios[0]:7.3f} {ratios[1]:7.3f} {ratios[2]:7.3f}")
    print(
        "cost: "
        + json.dumps({"bare": bare, "again": again, "untagged": untagged, "tagged": tagged})
    )


if __name__ == "__main__":
    main()
