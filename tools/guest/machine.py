# SPDX-License-Identifier: Apache-2.0
"""One guest, from power-on to its script's exit status.

TCG only: the machines that this runs on have no hardware virtualisation. With
icount the guest's clock counts instructions, so that times inside the guest
repeat whatever the host does; that needs one thread and one CPU.
"""

import re
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .errors import GuestError
from .initramfs import MARKER
from .kernels import Kernel

# A kernel that says one of these has failed the test, whatever the script says.
TROUBLE = re.compile(
    r"WARNING: CPU|\bBUG: |\bBUG \S+ \(|Oops: |general protection fault|Kernel panic|rcu: INFO|"
    r"INFO: task .* blocked|KASAN|UBSAN|corruption|refcount_t: |scheduling while atomic"
)

# Exit statuses of our own, beside those of scripts.
NO_END = 97
KERNEL_TROUBLE = 98


@dataclass(frozen=True)
class Options:
    """How to run the guest."""

    smp: int = 1
    mem: int = 512
    """MiB"""
    icount: bool = False
    append: str = ""
    """more of the kernel's command line"""
    deadline: float = 300
    """seconds"""
    quiet: bool = False
    """do not print the console"""


def _command(kernel: Kernel, initramfs: Path, options: Options) -> list[str]:
    accel = (
        ["-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off"]
        if options.icount
        else ["-accel", "tcg"]
    )
    append = f"console=ttyS0 panic=-1 oops=panic loglevel=5 {options.append}".strip()
    return [
        "qemu-system-x86_64", "-M", "pc", "-cpu", "Nehalem", *accel,
        "-smp", str(options.smp), "-m", str(options.mem),
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", append,
    ]  # fmt: skip


class _Console:
    """Lines of the serial port, with the deadline kept."""

    def __init__(self, quiet: bool) -> None:
        self.status: int | None = None
        self.trouble: list[str] = []
        self._quiet = quiet
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for raw in lines:
            line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|\r", "", raw.decode("utf-8", "replace"))
            if not self._quiet:
                print(line, flush=True)
            if MARKER in line:
                found = re.match(r"\d+", line.split(MARKER, 1)[1])
                self.status = int(found.group()) if found else None
            if TROUBLE.search(line):
                self.trouble.append(line)


def run(kernel: Kernel, initramfs: bytes, options: Options) -> int:
    """Run a guest; the script's status, or NO_END, or KERNEL_TROUBLE."""
    if options.icount and options.smp != 1:
        raise GuestError("icount: counts one CPU's instructions; leave out --smp")
    console = _Console(options.quiet)
    with tempfile.NamedTemporaryFile(prefix="guest-", suffix=".cpio") as file:
        file.write(initramfs)
        file.flush()
        try:
            process = subprocess.Popen(
                _command(kernel, Path(file.name), options),
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            raise GuestError(f"qemu: {error}; apt-get install qemu-system-x86") from error
        try:
            _follow(process, console, time.monotonic() + options.deadline)
        finally:
            process.kill()
            process.wait()
    if console.status is None:
        print(
            f"guest: {kernel.name}: no exit status within {options.deadline:.0f} s", file=sys.stderr
        )
        return NO_END
    if console.trouble:
        print(
            f"guest: {kernel.name}: the kernel complains: {console.trouble[0].strip()}",
            file=sys.stderr,
        )
        return console.status or KERNEL_TROUBLE
    return console.status


def _follow(process: subprocess.Popen[bytes], console: _Console, deadline: float) -> None:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(min(left, 1.0)):
                continue
            data = process.stdout.read1(65536)  # type: ignore[attr-defined]
            if not data:
                return
            console.feed(data)
