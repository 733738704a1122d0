# SPDX-License-Identifier: Apache-2.0
"""Every conformance program, on the plain overlay first and then with the shim.

            switch
           /      \\
       node1      node2
       c1 c3      c2 c4      program in c1; peer in c2 (other host) or c3 (same host)

The run without any shim is the oracle: it proves the program, not Slim.
"""

from __future__ import annotations

import pytest

from lab.client import Lab
from tests.integration.helpers import (
    PEER_PORT,
    PYTHON,
    SOURCES,
    Words,
    build,
    run_program,
    start_peer,
)

C_PROGRAMS = sorted(path.stem for path in SOURCES.glob("test_*.c"))
PY_PROGRAMS = sorted(path.name for path in SOURCES.glob("py_*.py"))
FORTIFIED = [
    "test_connect_nonblock_poll_fortify",
    "test_connect_nonblock_select_fortify",
    "test_accept_poll_fortify",
    "test_select_high_fd_fortify",
]
MUSL = [
    "test_connect_blocking_musl",
    "test_connect_nonblock_epoll_musl",
    "test_connect_nonblock_poll_musl",
    "test_accept_calls_musl",
    "test_exec_connected_musl",
    "test_accept_prefork_musl",
]
PROGRAMS = C_PROGRAMS + FORTIFIED + PY_PROGRAMS

# program's mode, peer's mode, peer's endpoint, address family
ORACLE = ("overlay", "overlay", "c2", 4)
SLIM = [
    pytest.param("slim", "slim", "c2", 4, id="slim-slim"),
    pytest.param("slim", "slim", "c2", 6, id="slim-slim-mapped"),
    pytest.param("slim", "slim", "c3", 4, id="slim-slim-one-host"),
    pytest.param("slim", "overlay", "c2", 4, id="slim-overlay"),
    pytest.param("overlay", "slim", "c2", 4, id="overlay-slim"),
]
#: Programs with no connection of their own, or a single one right after a refusal (that
#: nobody listens may be remembered for a moment).
NO_PATH = {"test_connect_silent", "test_accept_shutdown"}


def judge(
    lab: Lab, program: str, mode: str, peer_mode: str, peer: str, family: int, libc: str = "glibc"
) -> None:
    start_peer(lab, peer, peer_mode, libc=libc)
    words: Words = [build() / program]
    if program.endswith(".py"):
        words = [PYTHON, SOURCES / program]
    words += [lab.ip(peer), str(PEER_PORT)]
    outcome = run_program(lab, "c1", mode, words, family=family, libc=libc)
    assert outcome.status == 0, f"\n{outcome.said}"
    if mode != "slim" or peer_mode != "slim":
        assert outcome.slim == 0, f"a host connection without two shims\n{outcome.said}"
    elif outcome.overlay and not outcome.slim and program not in NO_PATH:
        # One cold connect alone may miss its bound on a busy machine; not twice.
        outcome = run_program(lab, "c1", mode, words, family=family, libc=libc)
        assert outcome.status == 0, f"\n{outcome.said}"
        assert outcome.slim, f"every connection stayed on the overlay\n{outcome.said}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_oracle(lab: Lab, program: str) -> None:
    mode, peer_mode, peer, family = ORACLE
    judge(lab, program, mode, peer_mode, peer, family)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(("mode", "peer_mode", "peer", "family"), SLIM)
def test_slim(
    slim_lab: Lab, program: str, mode: str, peer_mode: str, peer: str, family: int
) -> None:
    if program.endswith(".py") and family == 6:
        pytest.skip("the Python programs choose their family themselves")
    judge(slim_lab, program, mode, peer_mode, peer, family)


@pytest.mark.parametrize("program", MUSL)
@pytest.mark.parametrize("mode", ["overlay", "slim"])
def test_musl(lab: Lab, program: str, mode: str) -> None:
    if not (build() / program).exists():
        pytest.skip("no musl-gcc (package musl-tools)")
    if mode == "slim" and not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    judge(lab, program, mode, mode, "c2", 4, libc="musl")


def test_glibc_program_and_musl_peer(slim_lab: Lab) -> None:
    if not (build() / "peer_musl").exists():
        pytest.skip("no musl-gcc (package musl-tools)")
    start_peer(slim_lab, "c2", "slim", libc="musl")
    words: Words = [
        build() / "test_speaks_first",
        slim_lab.ip("c2"),
        str(PEER_PORT),
    ]
    outcome = run_program(slim_lab, "c1", "slim", words)
    assert outcome.status == 0, f"\n{outcome.said}"
    assert outcome.slim, f"every connection stayed on the overlay\n{outcome.said}"


@pytest.mark.parametrize(("mode", "peer"), [("overlay", "c2"), ("slim", "c2"), ("slim", "c3")])
def test_a_peer_that_drops_syns_is_waited_for_by_nobody(lab: Lab, mode: str, peer: str) -> None:
    """A vip of the map, whose router answers, and behind it a port that does not."""
    if mode == "slim" and not lab.deployed:
        pytest.skip("this lab was made with --no-deploy")
    start_peer(lab, peer, mode)
    port = PEER_PORT + 60
    rules = f"table inet mute {{ chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}; }}"
    lab.run(peer, ["nft", "-f", "-"], "overlay", stdin=rules)
    try:
        words: Words = [build() / "test_connect_silent", lab.ip(peer), str(PEER_PORT)]
        outcome = run_program(lab, "c1", mode, words, env={"CONF_DROPS": str(port)})
    finally:
        lab.run(peer, ["nft", "delete", "table", "inet", "mute"], "overlay")
    assert outcome.status == 0, f"\n{outcome.said}"


def test_static_program_stays_on_the_overlay(slim_lab: Lab) -> None:
    """LD_PRELOAD does not reach a static binary: it works all the same."""
    start_peer(slim_lab, "c2", "slim")
    words: Words = [
        build() / "static_connect",
        slim_lab.ip("c2"),
        str(PEER_PORT),
    ]
    outcome = run_program(slim_lab, "c1", "slim", words)
    assert outcome.status == 0, f"\n{outcome.said}"
    assert outcome.slim == 0
    assert outcome.overlay > 0
