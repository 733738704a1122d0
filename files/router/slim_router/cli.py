# SPDX-License-Identifier: Apache-2.0
"""The command line of the router: run, validate, version.

Heavy modules are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import enum
import sys
from pathlib import Path

from . import __version__, paths
from .log import LEVELS, set_level


class Exit(enum.IntEnum):
    """Exit statuses; the unit file restarts on all but USAGE and CONFIG."""

    OK = 0
    FAILURE = 1  # a defect: there is a traceback
    USAGE = 2  # argparse's own
    CONFIG = 3  # a configuration, map or certificate that cannot be used
    RUNNING = 4  # another router is there
    HOST = 5  # the host refuses: a port, an address, a permission, a kernel too old


def parser() -> argparse.ArgumentParser:
    """The options; every path can be moved for a test."""
    made = argparse.ArgumentParser(
        prog="slim-router", description="Host connections for the containers of this host."
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="serve until SIGTERM; SIGHUP reads the files again")
    validate = commands.add_parser("validate", help="check both files, change nothing")
    for command in (run, validate):
        command.add_argument("--config", type=Path, default=paths.CONFIG, metavar="PATH")
        command.add_argument("--map", type=Path, default=paths.MAP, metavar="PATH")
        command.add_argument("--runtime-dir", type=Path, default=paths.RUNTIME_DIR, metavar="DIR")
        command.add_argument("--state-dir", type=Path, default=paths.STATE_DIR, metavar="DIR")
    run.add_argument("--log-level", choices=LEVELS, default="info")
    # For tests: another worker, and where to find it.
    run.add_argument("--worker-module", default="slim_router.worker", help=argparse.SUPPRESS)
    run.add_argument(
        "--worker-path", type=Path, action="append", default=[], help=argparse.SUPPRESS
    )
    validate.add_argument(
        "--tls", action="store_true", help="load the certificates and the key, too"
    )
    commands.add_parser("version", help="print the version")
    return made


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns an :class:`Exit`."""
    options = parser().parse_args(argv)
    if options.command == "version":
        print(__version__)
        return Exit.OK
    where = paths.Paths(
        config=options.config,
        map=options.map,
        runtime_dir=options.runtime_dir.absolute(),
        state_dir=options.state_dir.absolute(),
    )
    if options.command == "validate":
        return _validate(where, options.tls)
    set_level(options.log_level)
    return _run(where, options.worker_module, tuple(options.worker_path))


def _complain(text: object) -> None:
    print(f"slim-router: {text}", file=sys.stderr)


def _validate(where: paths.Paths, tls: bool) -> int:
    from . import config

    try:
        router, fleet = config.load(where.config, where.map)
        config.check_socket_path(where.shim_socket)
        config.check_socket_path(where.admin_socket)
        if tls:
            from . import trunk

            trunk.contexts(router.tls)
    except ValueError as error:  # ConfigError, TlsError
        _complain(error)
        return Exit.CONFIG
    print(
        f"valid: host {router.host}, map revision {fleet.revision},"
        f" {len(fleet.hosts)} hosts, {len(fleet.endpoints)} endpoints"
    )
    return Exit.OK


def _run(where: paths.Paths, module: str, search: tuple[Path, ...]) -> int:
    import asyncio

    from .config import check_socket_path
    from .reader import ConfigError
    from .supervisor import AlreadyRunning, StartError, Supervisor
    from .trunk import TlsError

    async def serve() -> None:
        await Supervisor(where, worker_module=module, worker_search=search).run()

    try:
        check_socket_path(where.shim_socket)
        check_socket_path(where.admin_socket)
        asyncio.run(serve())
    except (ConfigError, TlsError) as error:
        _complain(error)
        return Exit.CONFIG
    except AlreadyRunning as error:
        _complain(error)
        return Exit.RUNNING
    except StartError as error:
        _complain(error)
        return Exit.HOST
    return Exit.OK
