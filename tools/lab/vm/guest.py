# SPDX-License-Identifier: Apache-2.0
"""A node as a virtual machine: starting it, making it a host of its own, entering it."""

from __future__ import annotations

import concurrent.futures
import os
import shlex
import shutil
import subprocess
import time
import uuid
from pathlib import Path

from lab import names
from lab.errors import LabError
from lab.state import Node, Plan, State
from lab.vm import deployed, layout, machine, template
from lab.vm.ssh import Host, answers

#: Seconds until a machine out of a snapshot greets, on a busy machine.
START_WAIT = 60.0

#: Makes a fresh copy of the snapshot a host of its own. Arguments: name, address with
#: prefix length, MAC, endpoints.
_OWN = """
set -eu
name=$1 address=$2 mac=$3
hostname "$name"
echo "$name" >/etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$name" >/etc/hosts
cat >/etc/systemd/network/10-lan0.network <<NETWORK
[Match]
Name=lan0

[Network]
Address=$address
LinkLocalAddressing=no
IPv6AcceptRA=no
NETWORK
ip link set lan0 address "$mac"
networkctl reload
# The journal goes on below the machine-id that was written.
systemctl restart systemd-journald.service
shift 3
for endpoint; do
    echo "lab-endpoint@$endpoint.service"
done | xargs -r systemctl -q enable --now
tries=0
until ip -br address show dev lan0 | grep -q "$address"; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "lan0 does not take $address" >&2; exit 1; }
    sleep 0.1
done
"""


def directory(state: State) -> Path:
    """Where a lab keeps what belongs to its machines; short, for sockets' sake."""
    return state.directory / "vm"


def host(state: State, node: str) -> Host:
    """The way into a node."""
    return Host(directory(state) / "ssh_config", node)


def process(state: State, node: str) -> machine.Machine:
    """The QEMU process of a node."""
    return machine.Machine(directory(state) / node)


def run(
    state: State, node: str, *command: str, stdin: str | None = None, timeout: float = 120.0
) -> str:
    """Run a command on a node and return its output; LabError with its words if it fails."""
    try:
        done = host(state, node).run(
            shlex.join(command), None if stdin is None else stdin.encode(), timeout
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{node}: {' '.join(command[:8])}: not done in {timeout:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{node}: {' '.join(command[:8])}: status {done.returncode}: {words}")
    return done.stdout.decode(errors="replace")


def script(state: State, node: str, text: str, *arguments: str, timeout: float = 120.0) -> str:
    """Run a shell script on a node."""
    return run(state, node, "sh", "-s", "--", *arguments, stdin=text, timeout=timeout)


def _hardware(plan: Plan, kernel: str | None = None) -> machine.Hardware:
    return machine.Hardware(kernel=kernel or plan.kernel, append=plan.append)


def _words(
    state: State, plan: Plan, node: Node, hardware: machine.Hardware, image: Path
) -> list[str]:
    number = plan.nodes.index(node) + 1
    place = directory(state)
    port = int((place / node.name / "port").read_text())
    own = place / f"{node.name}.cable"
    if switched(plan):
        other = place / f"{node.name}.port"
    else:
        other = place / (f"{plan.nodes[2 - number].name}.cable" if plan.hosts == 2 else "nobody")
    return hardware.words(
        image,
        state.scratch / f"{node.name}.qcow2",
        [machine.management(port), machine.cable(own, other)],
        (layout.management_mac(), layout.cable_mac(number)),
    )


def switched(plan: Plan) -> bool:
    """Is there a switch? Two nodes without a delay have a cable from one to the other."""
    return plan.hosts > 2 or plan.rtt_us > 0


def start_all(state: State, plan: Plan) -> bool:
    """Start the nodes out of a snapshot; LabError if one does not come.

    Says whether they are deployed already: that is so where the same plan was
    deployed from the same sources before.
    """
    image, disk = template.provide(_hardware(plan))
    kept = deployed.find(plan, disk) if plan.deploy and not plan.fresh else None
    place = directory(state)
    place.mkdir(mode=0o700)
    (place / "secure").write_text(plan.secure + "\n")
    (place / "known_hosts").write_text(template.known_host(image))
    (place / "image").write_text(f"{image}\n")
    (place / "disk").write_text(f"{disk}\n")
    if kept and (kept / deployed.AUTHORITY).is_dir():
        shutil.copytree(kept / deployed.AUTHORITY, state.directory / deployed.AUTHORITY)
    sections = []
    if switched(plan):
        _start_switch(state, plan)
    for node in plan.nodes:
        (place / node.name).mkdir()
        port = machine.free_port()
        (place / node.name / "port").write_text(f"{port}\n")
        (place / node.name / "kernel").write_text(f"{plan.kernel}\n")
        sections.append(
            host(state, node.name).section(
                port, image / "key", place / "known_hosts", layout.HOST_KEY_ALIAS
            )
        )
        source = kept / f"{node.name}.qcow2" if kept else disk
        shutil.copy2(source, state.scratch / f"{node.name}.qcow2")
        process(state, node.name).start(
            _words(state, plan, node, _hardware(plan), image),
            plan.run,
            deployed.SNAPSHOT if kept else layout.SNAPSHOT,
        )
    (place / "ssh_config").write_text("\n".join(sections))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for _done in pool.map(lambda node: _settle(state, plan, node, kept), plan.nodes):
            pass
    return kept is not None


def _settle(state: State, plan: Plan, node: Node, kept: Path | None) -> None:
    process(state, node.name).await_monitor()
    _await(state, node.name, START_WAIT)
    # Randomness before anything else: every copy of a snapshot would draw the same.
    done = host(state, node.name).run(f"{layout.AGENT} reseed", os.urandom(256))
    if done.returncode != 0:
        raise LabError(f"{node.name}: {done.stderr.decode().strip()}")
    if kept:
        set_clock(state, node.name)
    else:
        _make_own(state, plan, node)


def keep(state: State, plan: Plan) -> None:
    """Keep the nodes as they are for the next `up` of this plan; LabError if that fails."""
    disk = Path((directory(state) / "disk").read_text().strip())
    for node in plan.nodes:
        # No connection may lie in a snapshot.
        host(state, node.name).hang_up()
    time.sleep(0.5)
    deployed.keep(state, plan, disk, {node.name: process(state, node.name) for node in plan.nodes})
    for node in plan.nodes:
        set_clock(state, node.name)


def _start_switch(state: State, plan: Plan) -> None:
    place = directory(state)
    with (place / "switch.log").open("w") as log:
        subprocess.Popen(
            [
                *("/usr/bin/python3", "-P", "-m", "lab.vm.switch", str(place)),
                *(str(plan.rtt_us // 2), *(node.name for node in plan.nodes)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "PYTHONPATH": str(names.CHECKOUT / "tools"),
                names.RUN_MARK: plan.run,
            },
            start_new_session=True,
        )


def _await(state: State, node: str, wait: float) -> None:
    """Wait until a node greets; LabError if it does not."""
    guest = process(state, node)
    port = int((guest.directory / "port").read_text())
    if not answers(port, wait):
        raise LabError(
            f"{node} does not answer at 127.0.0.1:{port} within {wait:.0f} s; "
            f"its console is {guest.console}"
        )


def _make_own(state: State, plan: Plan, node: Node) -> None:
    """What sets a node apart from the snapshot."""
    number = plan.nodes.index(node) + 1
    identity = uuid.uuid4().hex
    set_clock(state, node.name, f"echo {identity} >/etc/machine-id; ")
    script(
        state,
        node.name,
        _OWN,
        node.name,
        f"{node.address}/{names.UNDERLAY_LENGTH}",
        layout.cable_mac(number),
        *(endpoint.name for endpoint in plan.endpoints if endpoint.node == node.name),
    )


def set_clock(state: State, node: str, before: str = "") -> None:
    """Give a node this machine's time: in a snapshot it stood still."""
    run(state, node, "sh", "-c", f"{before}date -s @{time.time():.3f} >/dev/null")


def boot_id(state: State, node: str) -> str:
    """What differs from one boot to the next (random(4))."""
    return run(state, node, "cat", "/proc/sys/kernel/random/boot_id", timeout=30).strip()


def reboot(state: State, plan: Plan, name: str, kernel: str | None = None) -> None:
    """Reboot a node, into another kernel if one is named; returns when it greets again.

    Raises LabError when it does not come back.
    """
    guest = process(state, name)
    before = boot_id(state, name)
    if kernel is None:
        host(state, name).run("systemctl reboot")
    else:
        host(state, name).run("systemctl poweroff")
        _wait_gone(guest)
        image = Path((directory(state) / "image").read_text().strip())
        hardware = _hardware(plan, kernel)
        guest.start(_words(state, plan, plan.node(name), hardware, image), plan.run)
        guest.await_monitor()
        (guest.directory / "kernel").write_text(f"{kernel}\n")
    host(state, name).hang_up()
    deadline = time.monotonic() + template.BOOT_WAIT
    while True:
        # The old system may answer until it is down.
        _await(state, name, max(1.0, deadline - time.monotonic()))
        try:
            if boot_id(state, name) != before:
                return
        except LabError:
            if time.monotonic() > deadline:
                raise
        host(state, name).hang_up()
        time.sleep(0.3)


def _wait_gone(guest: machine.Machine, wait: float = 120.0) -> None:
    deadline = time.monotonic() + wait
    while guest.pid() is not None:
        if time.monotonic() > deadline:
            raise LabError(
                f"{guest.directory.name} does not power off; its console: {guest.console}"
            )
        time.sleep(0.1)


def end_all(state: State) -> None:
    """End the machines whose pid files are there; LabError if one would not go."""
    place = directory(state)
    if not place.exists():
        return
    for pidfile in sorted(place.glob("*/pid")):
        machine.Machine(pidfile.parent).end()
