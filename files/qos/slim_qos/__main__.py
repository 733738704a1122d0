# SPDX-License-Identifier: Apache-2.0
"""python3 -m slim_qos edit|apply|remove|show [--check] [--json]

edit    change qos.json by the JSON object on standard input, then apply
apply   bring the kernel to what qos.json says, tell the router
remove  take away what was made, leave qos.json
show    what qos.json says, and what the classes have counted

Exit status: 0 done, 1 it cannot be done, 2 wrong usage, change or file.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from slim_qos import kernel, plan, probe, router, settings
from slim_qos.record import Record
from slim_qos.settings import Settings, SettingsError
from slim_qos.shaper import Outcome, Shaper, ShaperError

CONFIG = Path("/etc/slim/qos.json")
RECORD = Path("/var/lib/slim/qos-kernel.json")
FAILURES = (ShaperError, kernel.NetlinkError, OSError)
"""What keeps kernel or disk from taking a change."""


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """One of us at a time: plays, the unit, an operator. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A file of our own: slim_fallback locks the directory.
    place = os.open(directory / "qos.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def _shape(wanted: Settings, record: Record, dry: bool) -> Outcome:
    """Bring the kernel there, and see that it does what it says."""
    with kernel.home() as space:
        shaper = Shaper(wanted, record, space, dry)
        outcome = shaper.apply()
        if not dry and wanted.limited and outcome.changes and probe.up(space):
            outcome.uses["probed"] = probe.probe(wanted, space)
        return outcome


def _without(wanted: Settings) -> Settings:
    return replace(
        wanted, link=0,
        endpoints=tuple(replace(e, limits=settings.Limits()) for e in wanted.endpoints),
    )  # fmt: skip


def put(options: argparse.Namespace) -> dict[str, Any]:
    """edit and apply. A change that kernel, disk or router does not take is taken back whole."""
    old = settings.load(options.config)
    new = old
    if options.command == "edit":
        try:
            change = json.loads(sys.stdin.read())
        except (ValueError, RecursionError) as error:
            raise SettingsError(f"standard input: not JSON ({error}); give an object") from error
        new = settings.edit(old, change)
    was_there = options.config.exists()
    answer: dict[str, Any] = {"before": settings.as_json(old), "after": settings.as_json(new)}
    try:
        outcome = _shape(new, Record.load(options.record), options.check)
        changed = answer["before"] != answer["after"]
        if changed:
            outcome.changes.insert(0, f"write {options.config}")
        if not options.check:
            # The file is compared as well: it may be of an older release.
            if changed or not was_there:
                settings.save(new, options.config)
            if options.command == "edit":
                # Also when nothing has changed: it may not have taken it the last time.
                answer["router"] = router.tell(options.admin)
    except (*FAILURES, router.RouterError):
        if not options.check and new != old:
            _take_back(old, options, was_there)
        raise
    return outcome.as_dict() | answer


def _take_back(old: Settings, options: argparse.Namespace, was_there: bool) -> None:
    """Everything as it was; what cannot be is named by the failure that led here."""
    with contextlib.suppress(*FAILURES):
        _shape(old, Record.load(options.record), False)
    with contextlib.suppress(OSError):
        if was_there:
            settings.save(old, options.config)
        else:
            options.config.unlink(missing_ok=True)
    with contextlib.suppress(router.RouterError):
        router.tell(options.admin)


def remove(options: argparse.Namespace) -> dict[str, Any]:
    """Everything of ours out of the kernel."""
    outcome = _shape(
        _without(settings.load(options.config)), Record.load(options.record), options.check
    )
    return outcome.as_dict()


def show(options: argparse.Namespace) -> dict[str, Any]:
    """What is wanted, and the counters of each class by device."""
    wanted = settings.load(options.config)
    counters: dict[str, Any] = {}
    with kernel.home() as space:
        links = space.links()
        queues = {plan.OUT_DEVICE: plan.OUT, plan.IN_DEVICE: plan.IN}
        queues |= dict.fromkeys(Record.load(options.record).roots, plan.LINK)
        for name, handle in queues.items():
            if name in links:
                counters[name] = {
                    f"{minor:x}": {"bytes": found[0], "packets": found[1], "drops": found[2]}
                    for minor, found in space.counters(links[name].index, handle).items()
                }
    return {"changed": False, "settings": settings.as_json(wanted), "counters": counters}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="slim_qos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("command", choices=["edit", "apply", "remove", "show"])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--record", type=Path, default=RECORD, help="what was made here")
    parser.add_argument("--admin", type=Path, default=router.ADMIN, help="the router's socket")
    parser.add_argument("--check", action="store_true", help="tell, change nothing")
    parser.add_argument("--json", action="store_true", help="answer in JSON")
    options = parser.parse_args(arguments)
    status, problem = 0, ""
    answer: dict[str, Any] = {"changed": False, "changes": []}
    dry = options.check or options.command == "show"
    try:
        with contextlib.nullcontext() if dry else alone(options.record.parent):
            answer = {"show": show, "remove": remove}.get(options.command, put)(options)
    except SettingsError as error:
        status, problem = 2, f"slim_qos: {error}"
    except (ShaperError, router.RouterError) as error:
        status, problem = 1, f"slim_qos: {error}"
    except (kernel.NetlinkError, OSError) as error:
        status, problem = 1, f"slim_qos: {options.command}: {error}; run as root"
    if problem:
        answer["problem"] = problem
        print(problem, file=sys.stderr)
    if options.json or options.command == "show":
        print(json.dumps(answer, indent=None if options.json else 1))
    else:
        for change in answer["changes"]:
            print(change)
    return status


if __name__ == "__main__":
    sys.exit(main())
