# SPDX-License-Identifier: Apache-2.0
"""python3 -m slim_fallback apply|check|remove [--config FILE] [--json]

apply   bring the host to what the configuration says
check   tell what apply would do, change nothing
remove  take away what apply made

Exit status: 0 done, 1 it cannot be done, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from slim_fallback.config import Config, ConfigError, load, parse
from slim_fallback.record import Record
from slim_fallback.vxlan import FallbackError, Outcome, Vxlan

CONFIG = Path("/etc/slim/fallback.json")
RECORD = Path("/var/lib/slim/fallback.json")
# What remove needs of a configuration that may be gone: nothing.
NOTHING = '{"version": 1, "provider": "vxlan", "address": "127.0.0.1", "overlay": []}'


def run(command: str, config: Config, record: Record) -> Outcome:
    """Do the command.

    :raises FallbackError: it cannot be done.
    """
    worker = Vxlan(config, record, dry=command == "check")
    if command == "remove":
        return worker.remove()
    if config.provider == "existing":
        # Somebody else's overlay: nothing of it is ours to change.
        return Outcome()
    return worker.apply()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="slim_fallback", description=__doc__.split("\n\n")[1])
    parser.add_argument("command", choices=["apply", "check", "remove"])
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="configuration, - for standard input"
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="what was made here")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    options = parser.parse_args(arguments)
    record = Record.load(options.record)
    status = 0
    outcome = Outcome()
    problem = ""
    try:
        if options.command == "remove":
            config = parse(NOTHING)
        elif str(options.config) == "-":
            config = parse(sys.stdin.read())
        else:
            config = load(options.config)
        outcome = run(options.command, config, record)
    except ConfigError as error:
        status, problem = 2, f"slim_fallback: {error}"
    except FallbackError as error:
        status, problem = 1, f"slim_fallback: {error}"
    except (NetlinkError, OSError) as error:
        status = 1
        problem = (
            f"slim_fallback: {options.command}: the kernel refused: {error}; "
            "run as root and check that the kernel has bridge, veth and vxlan"
        )
    if options.json:
        answer = outcome.as_dict()
        if problem:
            answer["problem"] = problem
        print(json.dumps(answer))
    else:
        for change in outcome.changes:
            print(change)
        for entry in outcome.skipped:
            print(f"skipped endpoint {entry['endpoint']}: {entry['reason']}")
    if problem:
        print(problem, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
