# SPDX-License-Identifier: Apache-2.0
"""python3 -m slim_fallback apply|check|remove|status [--config FILE] [--json]

apply   bring the host to what the configuration says
check   tell what apply would do, change nothing
remove  take away what apply made
status  tell how it stands, change nothing

Exit status: 0 done, 1 it cannot be done, 2 wrong usage or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from slim_fallback.config import Config, ConfigError, load, parse
from slim_fallback.existing import Existing
from slim_fallback.provider import FallbackError, Outcome, Provider
from slim_fallback.record import Record
from slim_fallback.routed import Bgp, HostGateway
from slim_fallback.vxlan import Vxlan

CONFIG = Path("/etc/slim/fallback.json")
RECORD = Path("/var/lib/slim/fallback.json")
# How often, and after how many seconds, to look again at namespaces that appear meanwhile.
LATE_TRIES = 5
LATE_S = 0.1
PROVIDERS: dict[str, type[Provider]] = {
    "vxlan": Vxlan,
    "host-gw": HostGateway,
    "bgp": Bgp,
    "existing": Existing,
}
# What remove needs of a configuration that may be gone: nothing.
NOTHING = '{"version": 1, "provider": "vxlan", "address": "127.0.0.1", "overlay": []}'


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One of us at a time: the playbook and the host's own units may meet.

    :raises OSError: the directory cannot be made or opened.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The directory itself is the lock: nothing to leave behind.
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def run(command: str, config: Config, record: Record) -> Outcome:
    """Do the command.

    :raises FallbackError: it cannot be done.
    """
    kind = PROVIDERS[config.provider]
    if command == "remove":
        return kind(config, record).remove()
    if command == "check":
        return kind(config, record).plan()
    outcome = kind(config, record).apply()
    for _unused in range(LATE_TRIES):
        left = {entry["endpoint"] for entry in outcome.skipped}
        late = [endpoint for endpoint in config.endpoints if endpoint.name in left]
        if not any(Path(endpoint.netns).exists() for endpoint in late):
            break
        # It appeared when its turn was over, or is being made: systemd.path(5) does not look
        # while we run.
        time.sleep(LATE_S)
        again = kind(config, record).apply()
        outcome = Outcome(outcome.changes + again.changes, again.skipped)
    return outcome


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="slim_fallback", description=__doc__.split("\n\n")[1])
    parser.add_argument("command", choices=["apply", "check", "remove", "status"])
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="configuration, - for standard input"
    )
    parser.add_argument("--record", type=Path, default=RECORD, help="what was made here")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    options = parser.parse_args(arguments)
    status = 0
    outcome = Outcome()
    standing: dict[str, Any] = {}
    problem = ""
    try:
        # The files are read under the lock, too: who waited must not bring old ones back.
        dry = options.command in ("check", "status")
        with contextlib.nullcontext() if dry else alone(options.record.parent):
            if options.command == "remove":
                config = parse(NOTHING)
            elif str(options.config) == "-":
                config = parse(sys.stdin.read())
            else:
                config = load(options.config)
            record = Record.load(options.record)
            if options.command == "status":
                standing = PROVIDERS[config.provider](config, record).status()
            else:
                outcome = run(options.command, config, record)
    except ConfigError as error:
        status, problem = 2, f"slim_fallback: {error}"
    except FallbackError as error:
        status, problem = 1, f"slim_fallback: {error}"
    except (NetlinkError, OSError) as error:
        status = 1
        problem = (
            f"slim_fallback: {options.command}: the kernel refused: {error}; "
            "run as root and check that the kernel has veth, and bridge and vxlan for provider vxlan"
        )
    if options.json:
        answer = standing or outcome.as_dict()
        if problem:
            answer["problem"] = problem
        print(json.dumps(answer))
    elif standing:
        for key, value in standing.items():
            print(f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    else:
        for change in outcome.changes:
            print(change)
        # Said once a minute by the timer: for the journal it is less than a change. sd-daemon(3)
        level = "<6>" if os.environ.get("JOURNAL_STREAM") else ""
        for entry in outcome.skipped:
            print(f"{level}skipped endpoint {entry['endpoint']}: {entry['reason']}")
    if problem:
        print(problem, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
