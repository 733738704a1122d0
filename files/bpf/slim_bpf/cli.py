# SPDX-License-Identifier: Apache-2.0
"""slim-bpf: the command of Ansible's role and of an operator. Root, the host's namespaces.

Exit status: 0 done or all well, 1 not (one line on stderr says what), 2 wrong
arguments. `--json` prints one object for a program.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from . import check, destroy, host, load
from .errors import BpfError
from .layout import OBJECT, PINS
from .libbpf import Library
from .tags import Tags


def _status(_unused: argparse.Namespace) -> dict[str, Any]:
    found = load.state()
    answer = asdict(found) | {"same_object": found.loaded and found.sha256 == load.digest()}
    if found.loaded:
        with Tags() as tags:
            answer["counters"] = tags.counters()
            answer["tags"] = sum(1 for _unused in tags.list())
    return answer


def _preflight(_unused: argparse.Namespace) -> dict[str, Any]:
    host.require()
    return {"usable": True, "absent": load.lacking_hooks(Library())}


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    changed, found = load.load(arguments.object)
    return {"changed": changed} | asdict(found)


def _unload(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"changed": load.unload(force=arguments.force)}


def _check(_unused: argparse.Namespace) -> dict[str, Any]:
    absent = check.attached()
    check.behaves()
    found = load.state()
    return {"secure": True, "programs": found.programs, "absent": absent}


def _tags(_unused: argparse.Namespace) -> dict[str, Any]:
    with Tags() as tags:
        return {
            "tags": [
                asdict(tag) | {"address": tag.address.hex(), "peer_address": tag.peer_address.hex()}
                for tag in tags.list()
            ]
        }


def _holders(_unused: argparse.Namespace) -> dict[str, Any]:
    with Tags() as tags:
        return {"holders": [asdict(holder) for holder in tags.holders()]}


def _revoke(arguments: argparse.Namespace) -> dict[str, Any]:
    with Tags() as tags:
        found = tags.mark(arguments.cookie)
        failed = destroy.destroy(found.values())
    return {
        "revoked": sorted(found),
        "unknown": sorted(set(arguments.cookie) - set(found)),
        "not_aborted": failed,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slim-bpf", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    add("preflight", _preflight, "can this host run secure mode by BPF?")
    one = add("load", _load, f"attach, try out and pin below {PINS}; does nothing if it is done")
    one.add_argument("--object", default=OBJECT, type=type(OBJECT), help="object file")
    add("check", _check, "prove that every program is attached and that calls are refused")
    add("status", _status, "what is loaded, and the counters")
    add("tags", _tags, "every tagged socket")
    add("holders", _holders, "every descriptor of a tagged socket, by process")
    one = add("revoke", _revoke, "revoke tags by cookie and abort their connections")
    one.add_argument("cookie", type=int, nargs="+")
    one = add("unload", _unload, "detach everything; refused while tagged sockets live")
    one.add_argument("--force", action="store_true", help="even then")
    return parser


def _text(answer: dict[str, Any]) -> None:
    for name, value in answer.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            for row in value:
                print(" ".join(str(item) for item in row.values()))
        elif isinstance(value, dict):
            for key, item in value.items():
                print(f"{name}: {key}: {item}")
        elif isinstance(value, list | tuple):
            print(f"{name}: {' '.join(map(str, value)) or '-'}")
        else:
            print(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parsed = _parser().parse_args(arguments)
    try:
        answer = parsed.function(parsed)
    except BpfError as error:
        if parsed.json:
            print(json.dumps({"error": str(error)}))
        print(f"slim-bpf: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"slim-bpf: {error}; run it as root of the host", file=sys.stderr)
        return 1
    if parsed.json:
        print(json.dumps(answer))
    else:
        _text(answer)
    return 0
