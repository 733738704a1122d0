# SPDX-License-Identifier: Apache-2.0
"""What a hostile process can do with a host socket: everything, or nothing.

node1                                            node2
host's namespace: canary
c1: the escape suite, one process an identity -- c2: its peer
c1: a bystander's connection ------------------- c2: an echo
c3: another container, which is passed sockets

Without secure mode many attempts must succeed: that proves the suite, which then has to
find nothing in a lab with `--secure bpf` or `--secure kmod`.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.client import Lab
from tests.escape import guests, runner, table
from tests.escape.runner import IDENTITIES, PROVER, Report
from tests.integration.helpers import PEER_PORT, PYTHON, Words, read_until, start_peer

#: Echoes over one host connection until its standard input ends.
BYSTANDER = """
import select, socket, sys, time
COOKIE = 71  # SO_NETNS_COOKIE
fresh = socket.socket()
own = fresh.getsockopt(socket.SOL_SOCKET, COOKIE, 8)
for _ in range(50):
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    if s.getsockopt(socket.SOL_SOCKET, COOKIE, 8) != own:
        break
    s.close()
    time.sleep(0.02)
else:
    sys.exit("no host connection")
s.settimeout(20)
print("there", flush=True)
rounds = 0
while not select.select([0], [], [], 0.02)[0]:
    sent = b"%08d" % rounds
    s.sendall(sent)
    got = b""
    while len(got) < 8:
        got += s.recv(8 - len(got))
    assert got == sent, (got, sent)
    rounds += 1
print("echoed", rounds, flush=True)
"""

#: Distinct attempts that got something, at least, on every kernel from 6.1 on that was
#: tried: some below what was measured, for kernels built otherwise.
FLOOR = {"reach": 20, "learn": 32, "treat": 45, "keep": 6}

#: What each container can do without secure mode, in every variant, whatever the kernel.
CERTAIN = {
    "connect-dissolved",
    "connect-loopback",
    "listen-any",
    "getsockname",
    "getpeername",
    "so-peername",
    "packet-options",
    "ioctl-conf",
    "ioctl-name",
    "tos",
    "priority",
    "pacing-rate",
    "ttl",
    "keep-reconnect",
    "keep-names",
    "keep-queued",
    "sweep-getsockopt",
    "sweep-setsockopt",
}

#: Only root with NET_ADMIN in the initial user namespace; secure mode refuses it.
PROVED_BY_ADMIN = {"mark", "repair", "transparent", "namespace-handle", "control-mark"}


def worker_pids(lab: Lab) -> dict[str, int]:
    """Worker processes of the hosts that take part."""
    return {
        row["name"]: row["pid"]
        for node in ("c1", "c2")
        for row in lab.slimctl(node, "endpoints")["endpoints"]
    }


@pytest.fixture(scope="module")
def outcome(session_lab: Lab) -> Iterator[tuple[Report, dict[str, Any]]]:
    """One run of everything, with a bystander beside it."""
    lab = session_lab
    if not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    try:
        start_peer(lab, "c2", "slim")
        words: Words = [PYTHON, "-c", BYSTANDER, lab.ip("c2"), str(PEER_PORT)]
        bystander = lab.popen("c1", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        read_until(bystander, "there\n", 20)
        pids = worker_pids(lab)
        # Secure mode refuses a container of the prover's kind, so there it proves nothing.
        provers = (PROVER,) if lab.plan.secure == "none" else ()
        report = runner.run(lab, identities=(*IDENTITIES, *provers))
        assert bystander.stdin is not None
        bystander.stdin.close()
        said = read_until(bystander, "\n", 20)
        facts = {"bystander": said, "before": pids, "after": worker_pids(lab)}
        print(report.table())
        yield report, facts
    finally:
        lab.end_processes()


def test_everything_ran(outcome: tuple[Report, dict[str, Any]]) -> None:
    """Every attempt by every variant and identity has an outcome, and none broke."""
    report, _unused = outcome
    attempts, variants = runner.listing()
    assert len(attempts) >= 50
    assert not report.absent, report.absent
    assert not report.of("broken"), "\n".join(map(str, report.of("broken")))
    seen = {(result.attempt, result.variant, result.identity) for result in report.results}
    wanted = {
        (row["attempt"], variant["variant"], identity)
        for row in attempts
        for variant in variants
        for identity in IDENTITIES
    }
    assert wanted - seen == set()
    # What does not apply proves nothing; it has to stay the exception.
    absent = [r for r in report.of("not-applicable") if r.identity in IDENTITIES]
    assert len(absent) < len(wanted) / 5, "\n".join(map(str, absent))


def test_nobody_else_is_hurt(outcome: tuple[Report, dict[str, Any]]) -> None:
    """A live connection of the same container went on; no worker died."""
    _unused, facts = outcome
    assert facts["bystander"].startswith("echoed "), facts["bystander"]
    assert int(facts["bystander"].split()[1]) > 20, facts["bystander"]
    assert facts["before"] == facts["after"]


def test_without_secure_mode_the_known_escapes_succeed(
    session_lab: Lab, outcome: tuple[Report, dict[str, Any]]
) -> None:
    if session_lab.plan.secure != "none":
        pytest.skip(f"this lab runs with --secure {session_lab.plan.secure}")
    report, _unused = outcome
    escapes = [result for result in report.escapes() if result.identity in IDENTITIES]
    for group, floor in FLOOR.items():
        found = {result.attempt for result in escapes if result.group == group}
        assert len(found) >= floor, f"{group}: only {sorted(found)}"
    _unused, variants = runner.listing()
    got = {(result.attempt, result.variant, result.identity) for result in escapes}
    missed = [
        (attempt, variant["variant"], identity)
        for attempt in sorted(CERTAIN)
        for variant in variants
        for identity in IDENTITIES
        if (attempt, variant["variant"], identity) not in got
    ]
    details = [
        str(result)
        for result in report.results
        if (result.attempt, result.variant, result.identity) in missed
    ]
    assert not missed, "\n".join(details)
    proved = {result.attempt for result in report.escapes() if result.identity == PROVER}
    assert proved >= PROVED_BY_ADMIN


def test_secure_mode_lets_nothing_out(
    session_lab: Lab, outcome: tuple[Report, dict[str, Any]]
) -> None:
    if session_lab.plan.secure == "none":
        pytest.skip("this lab runs without secure mode")
    report, _unused = outcome
    assert not report.escapes(), "\n".join(map(str, report.escapes()))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kernel", guests.KERNELS)
@pytest.mark.parametrize("keeper", ["open", "kmod", "bpf"])
def test_in_a_guest(kernel: str, keeper: str, tmp_path: Path) -> None:
    """Debian's kernels, without router and shim: the suite, or the guard, stands alone."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no QEMU (package qemu-system-x86)")
    status, printed = guests.run(kernel, keeper, out=tmp_path)
    lines = printed.read_text(errors="replace").splitlines()
    bad = [line for line in lines if line.startswith("R ") and " | " in line]
    if keeper == "open":
        assert status == 0, "\n".join(lines[-40:])
        attempts = {line.split()[1] for line in bad}
        assert len(attempts) >= sum(FLOOR.values())
        return
    assert status == 0, "\n".join(bad or lines[-40:])


def test_the_page_says_what_the_suite_has() -> None:
    """docs/security.md has every attempt, and what measured.json says of it."""
    assert table.page_with(table.render()) == table.PAGE.read_text(), (
        "docs/security.md is out of date: run python3 tests/escape/table.py write"
    )
    attempts, _unused = table.listing()
    names = {row["attempt"] for row in attempts}
    for run, seen in table.measured().items():
        assert names == set(seen.attempts), (
            f"measured.json has another run of {run!r} than of these attempts: run "
            "tests/escape/runner.py --json FILE, then tests/escape/table.py measure FILE NAME"
        )
