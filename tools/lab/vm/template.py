# SPDX-License-Identifier: Apache-2.0
"""Snapshots of a node that has booted: made once for each kernel, kept beside the image."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

from lab.errors import LabError
from lab.vm import image, layout, machine
from lab.vm.ssh import Host, answers

#: Seconds until the first greeting of a booting node, on a busy machine.
BOOT_WAIT = 300.0

#: What the playbooks load, so that it lies in the snapshot's memory, not on the disk.
_WARM = (
    "systemctl is-system-running --wait >&2 || { systemctl --failed --no-legend >&2; exit 1; }; "
    "modprobe -a vxlan bridge veth; "
    "python3 -c 'import asyncio, ssl, json, pyroute2, cryptography.x509, prometheus_client'; "
    "for each in ip ss tar setpriv nsenter nft; do $each --help >/dev/null 2>&1; done; "
    "sync"
)


def qcow2(path: Path, backing: Path) -> None:
    """Make a disk that is `backing` until it is written to."""
    words = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(backing), "-F", "raw", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"qemu-img: {done.stderr.strip()}")


def _name(hardware: machine.Hardware) -> str:
    version = subprocess.run(
        [machine.PROGRAM, "--version"], capture_output=True, text=True, check=True
    ).stdout
    # QEMU loads only what a machine of the same make saved.
    words = hardware.words(Path(), Path(), ["", ""], ("", ""))
    digest = hashlib.sha256(f"{version}{words}{_WARM}".encode()).hexdigest()[:8]
    return f"ready-{hardware.kernel}-{digest}.qcow2"


def provide(hardware: machine.Hardware) -> tuple[Path, Path]:
    """The image's directory and the disk with the snapshot for this hardware.

    Makes what is missing; raises LabError. Waits for others that make it.
    """
    with image.lock():
        directory = image.provide()
        disk = directory / _name(hardware)
        if not disk.exists():
            _make(hardware, directory, disk)
        return directory, disk


def _make(hardware: machine.Hardware, directory: Path, disk: Path) -> None:
    print(
        f"slimlab: booting kernel {hardware.kernel} for a snapshot, once",
        file=sys.stderr,
        flush=True,
    )
    started = time.monotonic()
    # Sockets need short paths; a checkout has one directory, so that what a killed run
    # left in it is found.
    work = Path("/run") / f"slimlab-vm-{hashlib.sha256(bytes(layout.CACHE)).hexdigest()[:8]}"
    work.mkdir(mode=0o700, exist_ok=True)
    guest = machine.Machine(work)
    guest.end()
    new = directory / "new.qcow2"
    qcow2(new, directory / "base.ext4")
    port = machine.free_port()
    host = Host(work / "ssh_config", "template")
    (work / "known_hosts").write_text(known_host(directory))
    host.config.write_text(
        host.section(port, directory / "key", work / "known_hosts", layout.HOST_KEY_ALIAS)
    )
    words = hardware.words(
        directory,
        new,
        [
            machine.management(port),
            machine.cable(work / "cable", work / "nobody"),
        ],
        (layout.management_mac(), layout.cable_mac(0)),
    )
    guest.start(words, f"template-{uuid.uuid4().hex}")
    try:
        guest.await_monitor()
        if not answers(port, BOOT_WAIT):
            raise LabError(f"a virtual machine did not boot; its console is {guest.console}")
        booted = time.monotonic() - started
        done = host.run(_WARM, timeout=BOOT_WAIT)
        if done.returncode != 0:
            raise LabError(f"the booted machine is not well: {done.stderr.decode().strip()}")
        # No connection may lie in the snapshot.
        host.hang_up()
        time.sleep(0.5)
        guest.say(f"savevm {layout.SNAPSHOT}")
        with contextlib.suppress(LabError, OSError):
            guest.ask("quit")
    finally:
        guest.end()
    new.rename(disk)
    shutil.rmtree(work)
    print(
        f"slimlab: ssh after {booted:.1f} s, snapshot after {time.monotonic() - started:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def known_host(directory: Path) -> str:
    """The line of known_hosts (sshd(8)) for every node of this image."""
    kind, key = (directory / "host_key.pub").read_text().split()[:2]
    return f"{layout.HOST_KEY_ALIAS} {kind} {key}\n"
