# SPDX-License-Identifier: Apache-2.0
"""The verbs of `slimlab` that the shell wrapper does not answer by itself."""

from __future__ import annotations

import argparse
import json
import signal
import sys

from lab import builder, push, status
from lab.errors import LabError, Refused
from lab.state import Plan, State
from lab.vm import fleet, guest, layout


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise Refused(f"{message}; see tools/slimlab --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="slimlab", add_help=False)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)
    up = verbs.add_parser("up")
    up.add_argument("--kind", default="netns", choices=("netns", "vm"))
    up.add_argument("--hosts", type=int, default=2)
    up.add_argument("--endpoints-per-host", type=int, default=1)
    up.add_argument("--tenants", type=int, default=1)
    up.add_argument("--rtt-us", type=int, default=0)
    up.add_argument("--secure", default="none", choices=("none", "bpf", "kmod"))
    up.add_argument("--kernel", choices=tuple(layout.KERNELS))
    # More words for the kernels' command line, such as slub_debug=FZPU.
    up.add_argument("--append", default="")
    up.add_argument("--fresh", action="store_true")
    # For tests of the lab itself: an overlay without the product.
    up.add_argument("--no-deploy", action="store_true")
    # For molecule, which runs the playbooks itself: not even that overlay.
    up.add_argument("--bare", action="store_true")
    verbs.add_parser("down")
    pushing = verbs.add_parser("push")
    pushing.add_argument("paths", nargs="+", metavar="PATH")
    rebooting = verbs.add_parser("reboot")
    rebooting.add_argument("node", metavar="NODE")
    rebooting.add_argument("--kernel", choices=tuple(layout.KERNELS))
    showing = verbs.add_parser("status")
    showing.add_argument("--json", action="store_true")
    return parser


def _check_secure(options: argparse.Namespace) -> None:
    """Refuse what cannot work."""
    if options.secure != "none" and options.kind != "vm":
        raise Refused(f"--secure {options.secure} needs a kernel of the lab's own; add --kind vm")


def _plan(options: argparse.Namespace) -> Plan:
    _check_secure(options)
    if options.kind == "vm":
        fleet.check(options.hosts)
        if options.no_deploy:
            raise Refused("--no-deploy is for --kind netns; use --bare")
    elif options.kernel or options.append:
        raise Refused("--kernel and --append are for --kind vm: namespaces share this kernel")
    if options.tenants != 1 and (options.kind == "vm" or options.no_deploy):
        raise Refused("--tenants is for --kind netns, and with the product: it makes the networks")
    # One second keeps every frame of a full link inside the relay's queue.
    if not 0 <= options.rtt_us <= 1_000_000:
        raise Refused(f"--rtt-us {options.rtt_us}: choose 0 to 1000000 microseconds")
    plan = Plan(
        kind=options.kind,
        kernel=(options.kernel or layout.DEFAULT_KERNEL) if options.kind == "vm" else "",
        append=options.append,
        fresh=options.fresh,
        hosts=options.hosts,
        endpoints_per_host=options.endpoints_per_host,
        tenants=options.tenants,
        rtt_us=options.rtt_us,
        secure=options.secure,
        deploy=not (options.no_deploy or options.bare),
        bare=options.bare,
    )
    plan.lay_out()
    return plan


def run(arguments: list[str]) -> None:
    """Do what the command line says; raises LabError."""
    options = _parser().parse_args(arguments)
    try:
        state = State()
    except ValueError as error:
        raise Refused(str(error)) from None
    if options.verb == "up":
        plan = _plan(options)
        with state.lock():
            builder.build(state, plan)
    elif options.verb == "down":
        with state.lock():
            builder.remove(state)
    elif options.verb == "push":
        for path in options.paths:
            push.check(path)
        push.push(state, state.load(), options.paths)
    elif options.verb == "reboot":
        plan = state.load()
        plan.node(options.node)
        if plan.kind != "vm":
            raise Refused("reboot: only virtual machines can be rebooted; use up --kind vm")
        guest.reboot(state, plan, options.node, options.kernel)
    else:
        plan = state.load()
        if plan.phase != "up":
            raise LabError(
                "the lab is not complete: an `up` is at work, failed or was killed; "
                "tools/slimlab up builds it anew"
            )
        facts = (fleet if plan.kind == "vm" else status).collect(state, plan)
        print(json.dumps(facts) if options.json else status.render(facts))


def main() -> int:
    """Entry point; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(sys.argv[1:])
    except LabError as error:
        print(f"slimlab: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("slimlab: interrupted; tools/slimlab down removes what there is", file=sys.stderr)
        return 130
    return 0
