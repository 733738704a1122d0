# SPDX-License-Identifier: Apache-2.0
"""`python3 -m guest --kernel 6.1 --init SCRIPT [FILE...]` (PYTHONPATH=tools)."""

import argparse
import sys
from pathlib import Path

from . import initramfs, kernels, machine
from .errors import GuestError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m guest",
        description="Boot a Debian cloud kernel in QEMU and run SCRIPT in it; its exit status is ours "
        f"({machine.NO_END}: it did not end in time, {machine.KERNEL_TROUBLE}: the kernel complained).",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--kernel", choices=sorted(kernels.META))
    what.add_argument(
        "--checkpatch", action="store_true", help="only fetch checkpatch.pl, print where, and end"
    )
    parser.add_argument("--init", type=Path, metavar="SCRIPT", help="run as init's child, in /test")
    parser.add_argument(
        "--argument", action="append", default=[], help="word for the script; repeatable"
    )
    parser.add_argument("--smp", type=int, default=1, metavar="N", help="CPUs (default 1)")
    parser.add_argument("--mem", type=int, default=512, metavar="MB")
    parser.add_argument(
        "--icount", action="store_true", help="let the guest's clock count instructions"
    )
    parser.add_argument("--append", default="", help="more of the kernel's command line")
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="MODULE",
        help="the kernel's own module, loaded",
    )
    parser.add_argument("--deadline", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--quiet", action="store_true", help="do not print the console")
    parser.add_argument(
        "--headers", action="store_true", help="only fetch the kernel, print KDIR, and end"
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="put below /test (directories whole)"
    )
    return parser


def main() -> int:
    options = _parser().parse_args()
    try:
        if options.checkpatch:
            print(kernels.checkpatch())
            return 0
        kernel = kernels.prepare(options.kernel)
        if options.headers:
            print(kernel.headers)
            return 0
        if options.init is None:
            raise GuestError("--init: missing; name the script to run")
        archive = initramfs.build(
            kernel, options.init, options.argument, options.files, options.load
        )
        return machine.run(
            kernel,
            archive,
            machine.Options(
                smp=options.smp,
                mem=options.mem,
                icount=options.icount,
                append=options.append,
                deadline=options.deadline,
                quiet=options.quiet,
            ),
        )
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
