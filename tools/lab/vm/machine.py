# SPDX-License-Identifier: Apache-2.0
"""One running QEMU: its command line, its process, its monitor."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import names
from lab.errors import LabError
from lab.vm import layout

PROGRAM = "qemu-system-x86_64"

#: No console of pixels, no page table isolation: emulated address spaces are slow to
#: change, and no attacker sits on the emulated processor's side channels.
_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 loglevel=4 systemd.show_status=0 mitigations=off audit=0"
)


@dataclass(frozen=True)
class Hardware:
    """What a snapshot of one machine and the machine that it is loaded into must share."""

    kernel: str = layout.DEFAULT_KERNEL
    cpus: int = layout.CPUS
    memory_mb: int = layout.MEMORY_MB
    #: More words for the kernel's command line, such as slub_debug=FZPU.
    append: str = ""

    def words(
        self, image: Path, disk: Path, netdevs: list[str], macs: tuple[str, str]
    ) -> list[str]:
        """QEMU's command line as far as the guest can tell."""
        management, cable = netdevs
        return [
            *(PROGRAM, "-nodefaults", "-no-user-config", "-machine", "pc"),
            *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"),
            *("-smp", str(self.cpus), "-m", str(self.memory_mb)),
            *("-kernel", str(image / f"vmlinuz-{self.kernel}")),
            *("-initrd", str(image / f"initrd-{self.kernel}")),
            *("-append", f"{_COMMAND_LINE} {self.append}".strip()),
            # A lab's disk lasts no longer than the lab: nothing waits for the machine's.
            *("-drive", f"file={disk},format=qcow2,if=none,id=root,cache=unsafe"),
            *("-device", f"virtio-blk-pci,drive=root,addr={layout.SLOT_DISK:#x}"),
            *("-netdev", management),
            *("-device", _nic("management", layout.SLOT_MANAGEMENT, macs[0])),
            *("-netdev", cable),
            *("-device", _nic("cable", layout.SLOT_CABLE, macs[1])),
            *("-device", "virtio-rng-pci,addr=0x7"),
            *("-rtc", "base=utc,clock=host", "-display", "none"),
        ]


def _nic(netdev: str, slot: int, mac: str) -> str:
    return f"virtio-net-pci,netdev={netdev},mac={mac},addr={slot:#x},romfile="


def management(port: int) -> str:
    """A network with nobody but the guest: the way in is 127.0.0.1:`port`, there is none out."""
    return f"user,id=management,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22"


def cable(own: Path, other: Path) -> str:
    """A cable of Unix datagrams: frames go to `other`, and come to `own`."""
    return f"dgram,id=cable,local.type=unix,local.path={own},remote.type=unix,remote.path={other}"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _started(pid: int) -> str:
    """Start time of a process in ticks since boot, which no later one of its pid shares."""
    try:
        # Fields count from the name's closing parenthesis: proc(5), state and starttime.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


class Machine:
    """A QEMU process, known by files in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pidfile = directory / "pid"
        self.monitor = directory / "qmp.sock"
        self.console = directory / "console.log"
        self.said = directory / "qemu.log"

    def start(self, words: list[str], mark: str, snapshot: str = "") -> None:
        """Start it; with `snapshot`, from there. await_monitor() tells how that went."""
        # A socket's path has to fit into sockaddr_un: 108 bytes with the final zero (unix(7)).
        if len(str(self.monitor).encode()) > 107:
            raise LabError(f"{self.monitor} is too long for a socket; choose a shorter lab name")
        self.directory.mkdir(parents=True, exist_ok=True)
        self.monitor.unlink(missing_ok=True)
        command = [
            *words,
            *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *("-serial", f"file:{self.console}"),
            *(("-loadvm", snapshot) if snapshot else ()),
        ]
        with self.said.open("ab") as said:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, names.RUN_MARK: mark},
                start_new_session=True,
            )
        self.pidfile.write_text(f"{process.pid} {_started(process.pid)}\n")

    def await_monitor(self, wait: float = 120.0) -> None:
        """Wait until QEMU has loaded what it has to; LabError with its words if it ends."""
        deadline = time.monotonic() + wait
        while True:
            if self.pid() is None:
                said = self.said.read_text(errors="replace").strip()
                raise LabError(f"{PROGRAM} for {self.directory.name} ended: {said}")
            try:
                self.ask("query-status")
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise LabError(f"{PROGRAM} does not answer at {self.monitor}") from None
                time.sleep(0.02)

    def pid(self) -> int | None:
        """Its pid; None if it does not run (any more)."""
        try:
            pid, started = self.pidfile.read_text().split()
        except (OSError, ValueError):
            return None
        return int(pid) if started and _started(int(pid)) == started else None

    def end(self, wait: float = 10.0) -> None:
        """End it, whatever it does; LabError if it would not go."""
        deadline = time.monotonic() + wait
        number = signal.SIGTERM
        while (pid := self.pid()) is not None:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                break
            try:
                # Looked at again: the handle is of the process that the file names.
                if self.pid() == pid:
                    signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                pass
            finally:
                os.close(handle)
            left = deadline - time.monotonic()
            if left < 0:
                raise LabError(f"process {pid} (a virtual machine) does not end; look at it")
            if left < wait / 2:
                number = signal.SIGKILL
            time.sleep(0.05)
        self.pidfile.unlink(missing_ok=True)

    def ask(self, command: str, **arguments: Any) -> Any:
        """One command of the QEMU Machine Protocol; LabError if QEMU refuses it."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(300)
            sock.connect(str(self.monitor))
            stream = sock.makefile("rw", encoding="utf-8")
            stream.readline()
            for execute, given in (("qmp_capabilities", {}), (command, arguments)):
                stream.write(json.dumps({"execute": execute, "arguments": given}) + "\n")
                stream.flush()
                answer = self._answer(stream)
            if "error" in answer:
                raise LabError(f"QEMU: {command}: {answer['error'].get('desc')}")
            return answer["return"]

    @staticmethod
    def _answer(stream: Any) -> dict[str, Any]:
        for line in iter(stream.readline, ""):
            message: dict[str, Any] = json.loads(line)
            if "event" not in message:
                return message
        raise ConnectionResetError("QEMU closed its monitor")

    def say(self, line: str) -> None:
        """A line to the human monitor, which tells only its complaints; LabError with them."""
        complaint = self.ask("human-monitor-command", **{"command-line": line})
        if complaint.strip():
            raise LabError(f"QEMU: {line}: {complaint.strip()}")
