# SPDX-License-Identifier: Apache-2.0
"""The shim's own tests: every case of exercise.c under each build of the library.

    network namespace of the run             the machine's own
      exercise (10.44.0.1)  ---- overlay ---- echo (10.44.0.2:7000)
          \\---- Unix socket ---- router.py ---- echo (127.0.0.1): host connections

    run.py BUILD [CASE...]

In secure mode the program runs under keeper, which answers as the kernel module does.

Needs root, for the namespace and for chroot. Ends with status 1 if a case failed.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "router"))
sys.path.insert(0, str(HERE))

from router import PEER, VIP, Echo, Router  # noqa: E402 - found by the path above

from slim_router import wire  # noqa: E402 - likewise

CLONE_NEWNET = 0x40000000
LIMIT_S = 40.0
LATE_PORT = 7100  # exercise.c, LISTEN_PORT
_libc = ctypes.CDLL(None, use_errno=True)

BASIC = ["blocking", "poll", "select", "epoll", "dup", "fork", "fork_pending", "exec", "unspec"]
SERVERS = ["accept", "accept_elsewhere", "listen_when_full", "few_descriptors"]
# With the interception that the kernel would do, seen on its socket: nothing may be refused
# but what the case itself provokes.
PROVOKED = {
    "options": {
        "setsockopt 1 36", "setsockopt 1 60", "getsockopt 1 36", "getsockopt 1 25", "getpeername",
        "listen 1", "accept", "bind",
    },
}  # fmt: skip
ODD = [
    "fork_pending_shared", "close_range", "threads", "many_pending", "epoll_number_again",
    "hidden_number_again", "no_room_to_move", "chroot", "errno", "signals",
]  # fmt: skip
LIES = [
    "truncated", "wrong_type", "wrong_seq", "extra_descriptors", "no_descriptor", "error", "garbage",
    "closes", "welcome_truncated", "welcome_wrong_type", "welcome_count", "welcome_bounds",
    "welcome_garbage", "welcome_closes", "welcome_error", "welcome_extra_descriptors",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One run of the program: library, case, how connects end, what the router lies about."""

    build: str
    name: str
    way: str = "cold"
    lie: str = ""
    secure: bool = False

    def __str__(self) -> str:
        secure = "secure" if self.secure else ""
        return " ".join(
            part for part in (self.build, self.name, self.way, self.lie, secure) if part
        )


def cases() -> list[Case]:
    """All of them: everything under UBSAN and ASAN, the plain and the musl build quickly."""
    found = [
        Case("glibc", name) for name in ("small_stack", "silence", "errno", "epoll_number_again")
    ]
    found += [Case("glibc", "threads", way) for way in ("cold", "warm")]
    found += [
        Case("glibc", "silence", lie="silent"),
        Case("glibc", "silence", lie="welcome_silent"),
        Case("glibc", "greeted_late", "warm", "busy"),
    ]
    found += [
        Case(build, name, lie=lie)
        for build in ("glibc", "ubsan", "musl")
        for name in ("swap_in_loop", "swap_blocking")
        for lie in ("silent_swap", "hangs_at_swap")
    ]
    for build in ("ubsan", "asan"):
        for way in ("cold", "warm", "keep", "plain", "dead"):
            found += [Case(build, name, way) for name in BASIC]
        found += [Case(build, name) for name in SERVERS + ODD]
        found += [
            Case(build, name, "warm")
            for name in ("close_range", "threads", "many_pending", "signals")
        ]
        found += [Case(build, name, lie=lie) for lie in LIES for name in ("epoll", "accept", "dup")]
        found += [
            Case(build, "accept", lie=f"channel_{lie}")
            for lie in ("garbage", "descriptors", "closes")
        ]
        found += [Case(build, "off_overlay", "no_router"), Case(build, "blocking", "no_router")]
    for build in ("ubsan", "musl"):
        for way in ("cold", "warm", "keep", "dead"):
            found += [Case(build, "options", way)]
            found += [Case(build, name, way, secure=True) for name in [*BASIC, "options"]]
        found += [Case(build, name, secure=True) for name in ("accept", "threads", "many_pending")]
        found += [Case(build, "accept_host", "host", secure=secure) for secure in (False, True)]
        found += [Case(build, "cut", "cut", secure=secure) for secure in (False, True)]
    found += [Case("glibc", "refused", "refused")]
    found += [Case(build, "forbidden", "forbidden") for build in ("ubsan", "asan", "musl")]
    for way in ("cold", "warm", "plain"):
        found += [Case("musl", name, way) for name in ("blocking", "epoll", "dup", "fork", "exec")]
    found += [
        Case("musl", name)
        for name in ("accept", "close_range", "threads", "chroot", "small_stack", "errno")
    ]
    return found


def rules() -> str:
    """What files/kmod/allow.h allows, as keeper reads it."""
    text = (HERE.parents[1] / "kmod" / "allow.h").read_text()
    levels = {"SLIM_SOL_SOCKET": 1, "SLIM_SOL_TCP": 6}
    lists: dict[str, list[tuple[int, ...]]] = {}
    for name, body in re.findall(r"#define (SLIM_ALLOW_\w+)\(X\) \\\n((?:.*\\\n)*.*\n)", text):
        entries = re.findall(r"X\(([^)]*)\)", body)
        lists[name] = [
            tuple(
                levels.get(word) or int(word, 0)
                for word in entry.split(", ")
                if word in levels or word[0].isdigit()
            )
            for entry in entries
        ]
    assert lists["SLIM_ALLOW_SETS"] and lists["SLIM_ALLOW_GETS_ONLY"] and lists["SLIM_ALLOW_IOCTLS"]
    lines = [f"set {level} {name}" for level, name in lists["SLIM_ALLOW_SETS"]]
    both = lists["SLIM_ALLOW_SETS"] + lists["SLIM_ALLOW_GETS_ONLY"]
    lines += [f"get {level} {name}" for level, name in both]
    lines += [f"ioctl {number}" for (number,) in lists["SLIM_ALLOW_IOCTLS"]]
    return "\n".join(lines) + "\n"


def unprovoked(case: Case, refusals: Path) -> str:
    """What was refused although the case did not ask for it."""
    expected = PROVOKED.get(case.name, set())
    found = set()
    for line in refusals.read_text().splitlines():
        words = line.split()
        keys = {words[0], " ".join(words[:2]), line}
        if not keys & expected:
            found.add(line)
    return f"refused on a host socket: {', '.join(sorted(found))}" if found else ""


class Stand:
    """The namespace, the echo servers and the builds."""

    def __init__(self, build: Path, scratch: Path) -> None:
        self.build, self.scratch = build, scratch
        # Routers, and all their threads, stay in the namespace that we come from.
        self.home = ThreadPoolExecutor(1)
        self.home.submit(int).result()
        self.host, self.prepared = (
            socket.create_server(("127.0.0.1", 0), backlog=4096),
            socket.create_server(("127.0.0.1", 0), backlog=4096),
        )
        self.rules = scratch / "rules"
        self.rules.write_text(rules())
        self.asan = subprocess.run(
            ["cc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
        ).stdout.strip()

    def router(self, path: Path, way: str, lie: str = "", secure: bool = False) -> Router:
        """A router outside of the programs' namespace."""
        host, prepared = self.host.getsockname(), self.prepared.getsockname()
        return self.home.submit(Router, path, host, prepared, way, lie, secure).result()

    def enter(self) -> None:
        """Make the namespace; from here on this thread, and what it starts, lives in it."""
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: a network namespace needs root")
        commands = ["link set lo up", f"addr add {VIP}/32 dev lo", "addr add 192.0.2.1/32 dev lo"]
        commands += [f"route add local {PEER} dev lo table local src {VIP}"]
        subprocess.run(
            ["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=20
        )
        overlay = socket.socket()
        overlay.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        overlay.bind((PEER, 7000))
        overlay.listen(4096)
        Echo([self.host, overlay], [self.prepared])

    def environment(self, case: Case, path: Path) -> dict[str, str]:
        library = self.build / (
            "libslim.so" if case.build == "glibc" else f"libslim-{case.build}.so"
        )
        preload = f"{self.asan} {library}" if case.build == "asan" else str(library)
        return {
            "PATH": os.environ["PATH"], "SLIM_SOCKET": str(path), "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1",
        }  # fmt: skip

    def run(self, case: Case, number: int) -> str:
        """Run one case; what went wrong, or nothing."""
        path = self.scratch / f"r{number}"
        router = None
        if case.way != "no_router":
            router = self.router(path, case.way, case.lie, case.secure)
        program = self.build / ("exercise-musl" if case.build == "musl" else "exercise")
        words: list[Path | str] = [program, "-h" if case.lie else "-t", case.name]
        environment = self.environment(case, path)
        refusals = self.scratch / f"k{number}"
        if case.secure:
            words = [self.build / "keeper", self.rules, refusals, *words]
            environment["KEEPER_PRELOAD"] = environment.pop("LD_PRELOAD")
            environment["SLIM_TEST_SECURE"] = "1"
        try:
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"not done within {LIMIT_S:g} s"
        finally:
            if router is not None:
                router.close()
        if done.returncode:
            return f"status {done.returncode}\n{done.stdout}{done.stderr}"
        if router is not None and case.name != "off_overlay" and wire.HELLO not in router.asked:
            return "the router was never asked: is the library loaded?"
        if router is not None and case.way == "refused" and router.greetings != 1:
            return f"a refused program greeted {router.greetings} times"
        return unprovoked(case, refusals) if case.secure else ""

    def late(self) -> str:
        """A router that comes when a program is in accept() hears that it took a connection
        over the overlay, and gets the listener."""
        path = self.scratch / "late"
        program = subprocess.Popen(
            [self.build / "exercise", "-t", "late"],
            env=self.environment(Case("glibc", "late"), path),
        )
        router, end = None, time.monotonic() + LIMIT_S / 2
        try:
            while time.monotonic() < end:
                time.sleep(0.05)
                with socket.socket() as client:
                    if client.connect_ex((VIP, LATE_PORT)) or client.recv(1):
                        continue
                if router is None:  # it accepts, and is in accept() again
                    router = self.router(path, "plain")
                elif {wire.CANCEL, wire.LISTEN} <= router.asked:
                    return ""
            return f"the router heard {sorted(router.asked) if router else 'nothing'}"
        finally:
            program.kill()
            program.wait()
            if router is not None:
                router.close()

    def setuid(self) -> str:
        """A setuid program must not let its caller choose the router."""
        home = self.scratch / "setuid"
        home.mkdir(mode=0o755)
        self.scratch.chmod(0o755)
        shutil.copy(self.build / "libslim.so", home / "libslim.so.1")
        program = home / "exercise"
        subprocess.run(
            ["cc", "-O1", "-pthread", "-o", program, HERE / "exercise.c", "-Wl,--no-as-needed",
             home / "libslim.so.1", f"-Wl,-rpath,{home}"],
            check=True, timeout=60,
        )  # fmt: skip
        for mode, want in ((0o755, True), (0o4755, False)):
            program.chmod(mode)
            path = self.scratch / f"s{mode}"
            router = self.router(path, "plain")
            done = subprocess.run(
                [program, "-t", "knock"], env={"SLIM_SOCKET": str(path)}, user=65534, group=65534,
                extra_groups=[], capture_output=True, text=True, timeout=LIMIT_S, check=False,
            )  # fmt: skip
            router.close()
            if done.returncode:
                return f"mode {mode:o}: status {done.returncode}\n{done.stderr}"
            if (wire.CONNECT in router.asked) != want:
                return f"mode {mode:o}: SLIM_SOCKET was {'not ' if want else ''}obeyed"
        return ""


def main(build: Path, wanted: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="slim-shim-") as scratch:
        stand = Stand(build, Path(scratch))
        stand.enter()
        chosen = [
            case for case in cases() if not wanted or case.name in wanted or str(case) in wanted
        ]
        if not (build / "libslim-musl.so").exists():
            chosen = [case for case in chosen if case.build != "musl"]
        failed, start = 0, time.monotonic()
        # Listeners share a port: those cases run one by one, the others two at a time.
        alone = [
            case
            for case in chosen
            if case.name
            in (
                *SERVERS,
                "accept_host",
                "errno",
                "unspec",
                "silence",
                "small_stack",
                "swap_in_loop",
                "swap_blocking",
                "greeted_late",
            )
        ]
        beside = [case for case in chosen if case not in alone]
        results: list[tuple[Case, str]] = []
        with ThreadPoolExecutor(2, initializer=lambda: None) as pool:
            results += zip(beside, pool.map(stand.run, beside, range(len(beside))), strict=True)
        results += [(case, stand.run(case, len(beside) + at)) for at, case in enumerate(alone)]
        count = len(results)
        for name, special in (("setuid", stand.setuid), ("late", stand.late)):
            if not wanted or name in wanted:
                count += 1
                results.append((Case("glibc", name), special()))
        for case, wrong in results:
            if wrong:
                failed += 1
                print(f"FAILED {case}: {wrong}")
        print(f"shim: {count - failed} passed, {failed} failed, {time.monotonic() - start:.0f} s")
        return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
