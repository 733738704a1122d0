# SPDX-License-Identifier: Apache-2.0
"""The shim against a router that answers nonsense.

    one network namespace of the test's own, 10.44.0.1 on lo
      program with the shim --- Unix socket --- this test, as a hostile router
             \\-------- the overlay: plain TCP -------- peer without the shim

Malformed answers must cost a bounded time and then the overlay. Well-formed lies about
names may be believed (the router is the host's), but must not crash or hang anybody.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_router import wire
from tests.fuzz.fuzzing import generator, mutate, runs

ROOT = Path(__file__).resolve().parents[2]
CLONE_NEWNET = 0x40000000
VIP = "10.44.0.1"
PORT = 7000
PREFIX = wire.PREFIX.pack(wire.pack_addr("10.44.0.0"), 112)


def welcome(seq: int, **fields) -> bytes:
    bounds = 2000 | 10000 << 32
    given = {"local": wire.pack_addr(VIP), "count": 1, "error": 10000, "value": bounds, **fields}
    return wire.message(wire.WELCOME, seq, **given) + PREFIX


def close_all(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


class Hostile:
    """A router whose answers the test's `answer` makes: list of (bytes, descriptors)."""

    def __init__(self, path: Path, answer) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path))
        path.chmod(0o666)
        self.listener.listen(64)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _unused = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while True:
                raw, ancillary, _unused, _unused = sock.recvmsg(200, socket.CMSG_SPACE(64))
                for _unused, _unused, data in ancillary:
                    for fd in array.array("i", data):
                        os.close(fd)
                if len(raw) != wire.MSG_SIZE:
                    return
                kind, seq = raw[3], int.from_bytes(raw[4:8], "little")
                self.asked.append(kind)
                replies = self.answer(kind, seq, raw)
                if replies is None:
                    return
                for data, fds in replies:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sock.sendmsg([data], rights if fds else [])

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Arena:
    """Where programs run: the namespace, the library, the peer."""

    def __init__(self, directory: Path, build: Path) -> None:
        self.directory = directory
        self.build = build
        self.number = 0

    def run(self, program: str, answer, *, must_pass: bool, limit: float = 60.0) -> list[int]:
        """One program against one hostile router; what the program asked."""
        self.number += 1
        path = self.directory / f"r{self.number}"
        router = Hostile(path, answer)
        environment = {
            **os.environ,
            "LD_PRELOAD": str(self.build / "libslim.so"),
            "SLIM_SOCKET": str(path),
        }
        try:
            done = subprocess.run(
                [self.build / program, VIP, str(PORT)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        finally:
            router.close()
        said = done.stdout + done.stderr
        assert done.returncode >= 0, f"{program} died of signal {-done.returncode}\n{said}"
        assert "deadline passed" not in said, f"{program} was held up: {router.asked}\n{said}"
        if must_pass:
            assert done.returncode == 0, said
        return router.asked


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    if os.geteuid() != 0:
        pytest.skip("needs root: a network namespace")
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    build = tmp_path_factory.mktemp("b")
    subprocess.run(
        ["make", "-s", "-C", ROOT / "files" / "shim", f"BUILD={build}", build / "libslim.so"],
        check=True, timeout=120,
    )  # fmt: skip
    programs = ["peer", "test_connect_unspec", "test_connect_nonblock_poll", "test_accept_calls"]
    subprocess.run(
        ["make", "-s", "-C", ROOT / "tests" / "conformance", f"BUILD={build}",
         *(build / name for name in programs)],
        check=True, timeout=120,
    )  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert libc.unshare(CLONE_NEWNET) == 0
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        subprocess.run(["ip", "addr", "add", f"{VIP}/16", "dev", "lo"], check=True)
        peer = subprocess.Popen([build / "peer", VIP, str(PORT)], stdout=subprocess.PIPE, text=True)
        assert peer.stdout is not None
        assert peer.stdout.readline() == "ready\n"
        yield Arena(tmp_path_factory.mktemp("s"), build)
        peer.kill()
        peer.wait()
    finally:
        libc.setns(back, CLONE_NEWNET)
        os.close(back)


PROGRAMS = ["test_connect_unspec", "test_connect_nonblock_poll", "test_accept_calls"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_fixed_misbehaviour(arena: Arena, program: str) -> None:
    """Each by name: these are the ways that a router can be wrong at once."""

    def greeted(then):
        def answer(kind: int, seq: int, raw: bytes):
            if kind == wire.HELLO:
                return [(welcome(seq), [])]
            return then(kind, seq, raw)

        return answer

    def wrong_type(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.SWAPPED, seq), [])]

    def wrong_seq(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.COLD, seq + 77, value=1), [])]

    def truncated(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.COLD, seq, value=1)[:40], [])]

    def too_long(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.COLD, seq, value=1) + bytes(100), [])]

    def warm_without_descriptor(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.WARM, seq), [])]

    def errors(kind: int, seq: int, raw: bytes):
        return [(wire.message(wire.ERROR, seq, error=13), [])]

    def closes(kind: int, seq: int, raw: bytes):
        return None

    def silent(kind: int, seq: int, raw: bytes):
        return []

    def extra_descriptors(kind: int, seq: int, raw: bytes):
        null = [os.open("/dev/null", os.O_RDWR) for _unused in range(4)]
        threading.Timer(1.0, close_all, null).start()
        return [(wire.message(wire.PLAIN, seq, error=1), null)]

    for then in (
        wrong_type, wrong_seq, truncated, too_long, warm_without_descriptor, errors, closes,
        extra_descriptors,
    ):  # fmt: skip
        print(then.__name__)
        assert arena.run(program, greeted(then), must_pass=True), f"{then.__name__}: not asked"
    if (
        program == "test_connect_unspec"
    ):  # each answer that does not come costs its bound, two connects
        arena.run(program, greeted(silent), must_pass=True)


@pytest.mark.parametrize("what", ["silent", "garbage", "short", "lies", "closes", "version"])
def test_greetings(arena: Arena, what: str) -> None:
    rng = generator(f"greeting-{what}")

    def answer(kind: int, seq: int, raw: bytes):
        if what == "silent":
            return []
        if what == "closes":
            return None
        if what == "garbage":
            return [(rng.randbytes(rng.choice((1, 96, 116, 300))), [])]
        if what == "short":
            return [(welcome(seq)[:100], [])]
        if what == "version":
            return [(wire.message(wire.ERROR, seq, error=93), [])]
        return [(welcome(seq, count=65535), [])]

    for program in PROGRAMS:
        arena.run(program, answer, must_pass=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_random_answers(arena: Arena, program: str) -> None:
    """Mutated and random answers to everything after an honest greeting."""
    rng = generator(f"answers-{program}")
    null = os.open("/dev/null", os.O_RDWR)
    pipe = os.pipe()
    # Beside LISTENING it is a channel, and believed: one whose worker has died.
    channel, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker.close()
    pool = [null, *pipe, channel.fileno()]

    def answer(kind: int, seq: int, raw: bytes):
        if kind == wire.HELLO:
            return [(welcome(seq), [])]
        out = []
        for _unused in range(rng.choice((0, 1, 1, 1, 2, 5))):
            given = wire.message(
                rng.randrange(22), rng.choice((seq, seq, seq, seq + 1, 0)),
                flags=rng.getrandbits(5), error=rng.choice((0, 1, 111)),
                local=raw[16:32], peer=raw[32:48], lport=rng.choice((0, 5000)),
                pport=rng.choice((0, 5000)), cookie=rng.getrandbits(64), value=rng.getrandbits(64),
            )  # fmt: skip
            if rng.random() < 0.5:
                given = mutate(rng, given) or b"\0"
            # No connection is among these, whatever the answer calls them.
            fds = [rng.choice(pool) for _unused in range(rng.choice((0, 0, 0, 1, 2, 4)))]
            out.append((given[:3000], fds))
        return None if rng.random() < 0.05 else out

    try:
        for _unused in range(runs(6)):
            arena.run(program, answer, must_pass=False)
    finally:
        channel.close()
        for fd in (null, *pipe):
            os.close(fd)
