# SPDX-License-Identifier: Apache-2.0
"""Secure mode in the worker: no host socket leaves without a tag, no process is served
that is above the tag.

    Stand (stand.py), with a backend of the test's own: it notes what it tags, or fails.
    Every descriptor that the worker sends away is looked at on its way.

    real processes in the endpoint's namespace --- Unix socket --- test --- op shim ---> worker
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from slim_router import callers, listeners, secure, secure_bpf, shims, wire
from slim_router.shims import SO_NETNS_COOKIE
from slim_router.sockets import cookie_of
from tests.unit.worker.stand import PATIENCE, Record, Shim, inside, is_reset, read_exactly, until

SPORT = 40000


class Fake:
    """A backend that notes, or fails with an errno."""

    mode = "kmod"

    def __init__(self) -> None:
        self.tags: set[int] = set()
        self.calls = 0
        self.fails = 0
        self.untagged: list[int] = []  # cookies that left without

    def open(self) -> None:
        """There it is."""

    def identity(self) -> str:
        return "fake"

    def tag(self, fd: int, cookie: int) -> None:
        self.calls += 1
        with socket.socket(fileno=os.dup(fd)) as sock:
            assert cookie_of(sock) == cookie, "the cookie is that of the descriptor"
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        self.tags.add(cookie)

    def revoke(self, cookies):
        return secure.Revoked(len(list(cookies)))

    def close(self) -> None:
        """Nothing to close."""


def namespace_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")


@pytest.fixture
def fake(stand, monkeypatch):
    """The stand's worker in secure mode; whoever asks is served, what leaves is checked."""
    made = Fake()
    stand.worker.guard(made)
    monkeypatch.setattr(stand.worker, "may_serve", lambda _sock: True)
    # (the stand's applications make their channels in the test's own namespace)
    monkeypatch.setattr(stand.worker, "of_endpoint", lambda _sock: True)

    def look(fd: int) -> None:
        with socket.socket(fileno=os.dup(fd)) as sock:
            tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
            if tcp and namespace_of(sock) != stand.worker.netns_cookie:
                cookie = cookie_of(sock)
                if cookie not in made.tags:
                    made.untagged.append(cookie)

    reply, deliver = shims.Shim.reply, listeners.Listener._send

    def watched_reply(self, message, *fds):
        for fd in fds:
            look(fd)
        reply(self, message, *fds)

    def watched_send(self, message, sock):
        look(sock.fileno())
        return deliver(self, message, sock)

    monkeypatch.setattr(shims.Shim, "reply", watched_reply)
    monkeypatch.setattr(listeners.Listener, "_send", watched_send)
    yield made
    assert not made.untagged, "host sockets left without a tag"


def lease(stand, app_port: int = 80):
    """A live lease of PEER:app_port, got by a whole cold connect; the shim that has it."""
    shim = stand.shim()
    record, _unused = shim.connect(app_port)
    assert record.kind == wire.COLD
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    host, hello, _unused = stand.peer.met()
    stand.peer.acknowledge(host, hello[2])
    record, fds = shim.ask(wire.SWAP, value=record.value, error=1_000_000)
    assert record.kind == wire.SWAPPED, record
    shim.tell(wire.COMMITTED, cookie=record.cookie)
    stand.sup.sync()
    for fd in fds:
        os.close(fd)
    host.close()
    return shim


def host_sockets() -> int:
    """TCP sockets of this process, the test's included."""
    count = 0
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name.name))) as sock:
            count += sock.family in (socket.AF_INET, socket.AF_INET6)
    return count


# --- out ----------------------------------------------------------------------------------


def test_without_secure_mode_nobody_is_asked(stand):
    assert stand.worker.tag is None
    data, _unused = Shim(stand, greet=False).ask_raw(wire.message(wire.HELLO, 1, value=1))
    record = Record(*wire.MSG.unpack_from(data))
    assert (record.kind, record.flags) == (wire.WELCOME, 0)


def test_the_greeting_says_that_it_is_secure(stand, fake):
    data, _unused = Shim(stand, greet=False).ask_raw(wire.message(wire.HELLO, 1, value=1))
    record = Record(*wire.MSG.unpack_from(data))
    assert (record.kind, record.flags) == (wire.WELCOME, wire.F_SECURE)


def test_cold_and_warm_are_tagged_before_they_leave(stand, fake):
    shim = lease(stand)
    assert len(fake.tags) == 1
    record, fds = shim.connect(80)
    assert record.kind == wire.WARM
    assert record.cookie in fake.tags
    os.close(fds[0])
    assert fake.calls == 2, "one call for each"


def test_a_warm_one_that_cannot_be_tagged_takes_the_overlay_and_the_peer_sees_nothing(stand, fake):
    shim = lease(stand)
    before = host_sockets()
    fake.fails = errno.ENOMEM
    for _unused in range(3):
        record, fds = shim.connect(80)
        assert (record.kind, record.error, fds) == (wire.PLAIN, wire.R_NOT_TAGGED, [])
    stand.counted("connect_overlay_not_tagged", 3)
    stand.counted("not_tagged", 3)
    stand.peer.host.settimeout(0.2)
    with pytest.raises(TimeoutError):
        stand.peer.host.accept()
    assert host_sockets() == before, "nothing is kept"
    assert "Cannot allocate" in stand.sup.get("untagged")["cause"]
    assert stand.sup.count("untagged") == 0, "said once, not for every connection"
    fake.fails = 0
    record, fds = shim.connect(80)
    assert record.kind == wire.WARM, "the lease was never in doubt"
    os.close(fds[0])


def test_a_cold_one_that_cannot_be_tagged_stays_on_the_overlay(stand, fake):
    fake.fails = errno.EPERM
    shim = stand.shim()
    record, _unused = shim.connect(80)
    shim.tell(wire.BEGIN, value=record.value, lport=SPORT)
    host, hello, _unused = stand.peer.met()
    before = host_sockets()
    stand.peer.acknowledge(host, hello[2])
    record, fds = shim.ask(wire.SWAP, value=record.value, error=1_000_000)
    assert (record.kind, record.error, fds) == (wire.KEEP, wire.R_NOT_TAGGED, [])
    assert read_exactly(host, 1) == b"", "it ends without a COMMIT"
    stand.counted("connect_overlay_not_tagged")
    assert host_sockets() == before - 1
    assert not stand.settled.outbound.attempts


# --- in -----------------------------------------------------------------------------------


def test_accepted_connections_are_tagged_and_overlay_ones_are_not(stand, fake):
    app = stand.app()
    record, accepted, host = stand.peer.cold(app)
    assert record.cookie in fake.tags
    accepted.close()
    host.close()
    with stand.peer.dial(stand.peer.hello(wire.K_DELIVER, SPORT, app.port) + b"data") as _host:
        record, accepted = app.accept()
        assert record.cookie in fake.tags
        assert read_exactly(accepted, 4) == b"data"
        accepted.close()
    tags = set(fake.tags)
    with stand.peer.overlay(app.port, source="192.0.2.9") as _over:
        record, accepted = app.accept()
        assert record.flags & wire.F_OVERLAY
        accepted.close()
    assert fake.tags == tags, "the overlay's sockets are the container's own"


def test_what_waits_in_the_queue_is_tagged_too(stand, fake):
    app = stand.app(backlog=600)
    _unused, accepted, first = stand.peer.cold(app)
    accepted.close()
    hosts = [first]
    listener = next(iter(stand.worker.listeners.by_cookie.values()))
    for number in range(420):  # more than a channel holds
        hosts.append(stand.peer.dial(stand.peer.hello(wire.K_DELIVER, SPORT + number, app.port)))
    until(lambda: len(listener.queue) > 20, "connections wait in the worker")
    waiting = {cookie_of(sock) for _unused, sock in list(listener.queue)}
    assert waiting <= fake.tags
    for _unused in range(420):
        record, accepted = app.accept()
        assert record.cookie in fake.tags
        accepted.close()
    for host in hosts:
        host.close()


def test_a_hello_that_cannot_be_tagged_is_reset_and_the_leases_end(stand, fake):
    app = stand.app()
    _unused, accepted, host = stand.peer.cold(app)
    accepted.close()
    host.close()
    fake.fails = errno.EIO
    with stand.peer.dial(stand.peer.hello(wire.K_DELIVER, SPORT, app.port)) as dialled:
        assert is_reset(dialled)
    assert stand.sup.get("withdraw")["vips"] == [stand.peer.vip]
    assert app.idle
    stand.counted("not_tagged")


def test_a_prepare_that_cannot_be_tagged_sends_the_client_to_the_overlay(stand, fake):
    app = stand.app()
    fake.fails = errno.EIO
    over = stand.peer.overlay(app.port)
    sock, status, _unused = stand.peer.try_prepare(over.getsockname()[1], app.port)
    assert status == wire.R_NOT_TAGGED
    sock.close()
    stand.sup.auto["query"] = lambda m: {"op": "answer", "id": m["id"], "probe": False}
    over.sendall(b"x")
    record, accepted = app.accept()
    assert record.flags & wire.F_OVERLAY
    accepted.close()
    over.close()


# --- who is served ------------------------------------------------------------------------

CLIENT = """
import array, os, socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
hello = bytes.fromhex(sys.argv[2])
sock.send(hello)
print(sock.recv(4096).hex(), flush=True)
for line in sys.stdin:
    if line == "join\\n":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    elif line == "join elsewhere\\n":
        os.unshare(0x40000000) if hasattr(os, "unshare") else __import__("ctypes").CDLL(None).unshare(0x40000000)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    else:
        break
    sock.sendmsg([bytes.fromhex(sys.argv[3])],
                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
    theirs.close()
    ours.settimeout(5)
    try:
        ours.send(hello)
        print(ours.recv(4096).hex(), flush=True)
    except OSError:
        print("", flush=True)
"""
DANGEROUS = "-net_admin,-net_raw,-sys_admin"
DROPPED = ["setpriv", f"--bounding-set={DANGEROUS}", "--inh-caps=-all"]


class Process:
    """A real shim: a process that greets, and says what it was answered."""

    def __init__(self, stand, directory: Path, *command: str, netns: str = "") -> None:
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = directory / f"d{time.monotonic_ns()}"
        door.bind(str(path))
        path.chmod(0o666)
        door.listen()
        door.settimeout(PATIENCE)
        hello = wire.message(wire.HELLO, 1, value=1).hex()
        join = wire.message(wire.JOIN, 2).hex()
        self.process = subprocess.Popen(
            ["nsenter", f"--net={netns or stand.netns}", *command, sys.executable, "-I", "-S", "-c",
             CLIENT, str(path), hello, join],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with door:
            sock, _unused = door.accept()
        with sock:
            stand.sup.send(sock.fileno(), op="shim")
        self.answer = self.read()

    def read(self) -> Record | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        return Record(*wire.MSG.unpack_from(bytes.fromhex(line))) if line else None

    def order(self, what: str) -> Record | None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.communicate("end\n", timeout=PATIENCE)


@pytest.fixture
def secured(stand):
    """The worker in secure mode, judging for itself; makes processes."""
    stand.worker.guard(Fake())
    made: list[Process] = []
    scratch = tempfile.TemporaryDirectory(prefix="slim-secure-")
    directory = Path(scratch.name)
    directory.chmod(0o755)  # some of them are nobody's

    def start(*command: str, **options: str) -> Process:
        made.append(Process(stand, directory, *command, **options))
        return made[-1]

    with scratch:
        yield start
        for process in made:
            process.end()


def test_a_process_that_holds_them_is_refused_and_the_operator_is_told_once(stand, secured):
    process = secured()
    assert (process.answer.kind, process.answer.error) == (wire.ERROR, errno.EPERM)
    said = stand.sup.get("barred")
    assert said["cause"] == "holds NET_ADMIN, NET_RAW, SYS_ADMIN"
    assert said["next"] == (
        "drop it (--cap-drop NET_ADMIN --cap-drop NET_RAW --cap-drop SYS_ADMIN)"
    )
    assert re.fullmatch(r"[\w.-]+ \(pid \d+\)", said["who"])
    assert str(process.process.pid) in said["who"]
    other = secured()
    assert other.answer.kind == wire.ERROR
    stand.counted("shim_refused_capability", 2)
    assert stand.sup.count("barred") == 0, "one at a time is told of"
    process.end()
    assert stand.sup.get("barred")["cause"] == "", "and when it has ended"
    assert not stand.settled.shims


@pytest.mark.parametrize("kept", ["net_admin", "net_raw", "sys_admin"])
def test_one_of_them_in_the_bounding_set_is_enough(stand, secured, kept):
    """A user without any capability, who could get it by a program with file capabilities."""
    dropped = ",".join(f"-{name}" for name in ("net_admin", "net_raw", "sys_admin") if name != kept)
    process = secured(
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--bounding-set={dropped}",
        "--inh-caps=-all",
    )  # fmt: skip
    assert process.answer.kind == wire.ERROR
    assert stand.sup.get("barred")["cause"] == f"holds {kept.upper()}"


def test_root_without_them_is_served(stand, secured):
    process = secured(*DROPPED)
    assert (process.answer.kind, process.answer.flags) == (wire.WELCOME, wire.F_SECURE)


def test_what_a_process_holds_in_its_own_user_namespace_does_not_count(stand, secured):
    process = secured("unshare", "--user", "--map-root-user")
    assert process.answer.kind == wire.WELCOME


def test_a_process_elsewhere_is_refused(stand, secured):
    """Its connection is one of the endpoint's as far as the supervisor told us."""
    process = secured(*DROPPED, netns=stand.stranger)
    assert (process.answer.kind, process.answer.error) == (wire.ERROR, errno.EPERM)
    assert "not in the endpoint's network namespace" in stand.sup.get("barred")["cause"]


def test_join_asks_the_same(stand, secured, monkeypatch):
    process = secured(*DROPPED)
    answer = process.order("join")
    assert answer is not None and answer.kind == wire.WELCOME
    monkeypatch.setattr(
        callers, "judge", lambda *_unused: (callers.Refusal("x", "holds NET_RAW", "drop it", 1), -1)
    )
    answer = process.order("join")
    assert answer is not None and (answer.kind, answer.error) == (wire.ERROR, errno.EPERM)


def test_a_join_pair_of_another_namespace_is_closed(stand, secured):
    process = secured("unshare", "--user", "--map-root-user")  # may make namespaces of its own
    assert process.answer.kind == wire.WELCOME
    assert process.order("join elsewhere") is None
    stand.counted("shim_refused_namespace")


def test_a_channel_of_another_namespace_is_hostile(stand, monkeypatch):
    stand.worker.guard(Fake())
    monkeypatch.setattr(stand.worker, "may_serve", lambda _sock: True)
    shim = stand.shim()
    with inside(stand.netns):
        listener = socket.create_server(("10.44.0.1", 0))
    with inside(stand.stranger):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shim.tell(wire.LISTEN, listener.fileno(), theirs.fileno(), family=2, value=1)
    assert shim.dropped
    for sock in (listener, ours, theirs):
        sock.close()


@pytest.mark.parametrize("peerpidfd", [callers.SO_PEERPIDFD, 9999], ids=["pidfd", "pid"])
def test_a_process_that_has_ended_is_nobody(peerpidfd, monkeypatch):
    monkeypatch.setattr(callers, "SO_PEERPIDFD", peerpidfd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if child == 0:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(theirs, [b"x"], [pair[0].fileno()])
        os._exit(0)
    _unused, fds, _unused, _unused = socket.recv_fds(ours, 1, 1)
    os.waitpid(child, 0)
    with socket.socket(fileno=fds[0]) as sock:
        found, pidfd = callers.judge(sock, 0)
    assert found is not None and "cannot be looked at" in found.cause
    assert pidfd == -1
    ours.close()
    theirs.close()


def test_a_number_that_is_anothers_by_now_is_seen(monkeypatch):
    """Without SO_PEERPIDFD: who began after the connection did not make it."""
    monkeypatch.setattr(callers, "SO_PEERPIDFD", 9999)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with callers.Caller(ours) as caller:
            assert caller.pid == os.getpid()
        monkeypatch.setattr(callers.time, "clock_gettime", lambda _unused: 0.0)
        with pytest.raises(ProcessLookupError, match="another process's"):
            callers.Caller(ours)


def test_a_name_is_printed_harmlessly(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, callers.Caller(ours) as caller:
        status = {b"Name": b"\x1b[2J\xff", b"CapPrm": b"2000", b"CapBnd": b"0"}
        monkeypatch.setattr(callers.Caller, "status", lambda _self: status)
        found = callers.refusal(caller, Path("/proc/thread-self/ns/net").stat().st_ino)
    assert found is not None
    assert found.who == f"?[2J? (pid {os.getpid()})"
    assert found.cause == "holds NET_RAW"


# --- backends: the module -----------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path):
    """A directory with files in the place of the module's."""
    (tmp_path / "version").write_text("1 0.3.0 ops setsockopt getsockopt file_ioctl\n")
    (tmp_path / "control").write_bytes(b"")
    (tmp_path / "tags").write_text("cookie state age_ms holder_pid\n")
    return tmp_path


def test_kmod_writes_one_record_of_32_bytes(stand_in):
    backend = secure.Kmod(str(stand_in))
    backend.open()
    with socket.socket() as sock:
        backend.tag(sock.fileno(), 0x1122334455667788)
        raw = (stand_in / "control").read_bytes()
        want = struct.pack("<HBBiQQQ", 0x4B53, 1, 1, sock.fileno(), 0x1122334455667788, 0, 0)
    assert (len(raw), raw) == (32, want)
    backend.close()
    with pytest.raises(OSError, match="Bad file"):
        os.write(backend._fd, b"")


def test_kmod_revokes_in_batches_and_tells_who_is_left(stand_in):
    backend = secure.Kmod(str(stand_in))
    backend.open()
    (stand_in / "tags").write_text(
        "cookie state age_ms holder_pid\n7 revoked 10 4711\n8 live 10 1\n9 revoked 3 0\n"
    )
    got = backend.revoke([7, 9, *range(100, 1600)])
    assert got == secure.Revoked(1502, [(7, 4711)])
    raw = (stand_in / "control").read_bytes()
    records = list(secure.RECORD.iter_unpack(raw))
    assert len(records) == 1502
    assert records[0] == (0x4B53, 1, 2, -1, 7, 0, 0)
    backend.close()


def test_kmod_takes_the_gone_for_revoked_and_stops_at_other_errors(stand_in, monkeypatch):
    backend = secure.Kmod(str(stand_in))
    backend.open()
    seen: list[int] = []

    def write(_fd, data):
        cookie = secure.RECORD.unpack_from(data)[4]
        seen.append(cookie)
        if cookie == 1:
            raise OSError(errno.ENOENT, "no such tag")
        if cookie == 3:
            raise OSError(errno.EPERM, "no")
        return 32

    monkeypatch.setattr(secure.os, "write", write)
    assert backend.revoke([1, 2]).revoked == 2
    with pytest.raises(PermissionError):
        backend.revoke([2, 3, 4])
    assert seen == [1, 2, 3], "whole batches; what one write leaves, the next takes"
    backend.close()


def test_kmod_opens_again_when_the_module_was_replaced(stand_in, monkeypatch):
    backend = secure.Kmod(str(stand_in))
    backend.open()
    real, failed = os.write, []

    def once(fd, data):
        if not failed:
            failed.append(fd)
            raise OSError(errno.EIO, "gone")
        return real(fd, data)

    monkeypatch.setattr(secure.os, "write", once)
    backend.tag(0, 5)
    assert len((stand_in / "control").read_bytes()) == 32
    (stand_in / "control").unlink()
    failed.clear()
    with pytest.raises(secure.SecureError, match="not there; load slim_kmod"):
        backend.tag(0, 6)
    backend.close()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: (d / "version").unlink(), r"version: not there; load slim_kmod"),
        (lambda d: (d / "control").unlink(), r"control: not there; load slim_kmod"),
        (lambda d: (d / "version").write_text("2 x\n"), r"format 2, this router speaks 1; deploy"),
        (lambda d: (d / "version").write_text(""), r"format \(none\)"),
    ],
)
def test_kmod_that_cannot_be_used_says_why(stand_in, change, text):
    change(stand_in)
    with pytest.raises(secure.SecureError, match=text):
        secure.Kmod(str(stand_in)).open()


def test_modes():
    assert secure.make("none") is None
    assert isinstance(secure.make("kmod"), secure.Kmod)
    assert isinstance(secure.make("bpf"), secure_bpf.Bpf)
    with pytest.raises(secure.SecureError, match="correct router.json"):
        secure.make("lsm")


# --- backends: BPF ------------------------------------------------------------------------

BPF_MAP_CREATE, BPF_OBJ_PIN, BPF_BTF_LOAD = 0, 6, 18


def bpf(command: int, raw: bytes) -> int:
    attr = ctypes.create_string_buffer(raw.ljust(144, b"\0"))
    number = secure_bpf.SYS_BPF[os.uname().machine]
    result = secure_bpf._libc.syscall(number, command, attr, len(attr))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def btf() -> int:
    """Types 1: int, 2: u64, 3: struct of two u64 (Documentation/bpf/btf.rst)."""
    strings = b"\0int\0u64\0tag\0a\0b\0"
    integer = [
        struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32),
        struct.pack("<IIII", 5, 1 << 24, 8, 64),
    ]
    record = struct.pack("<III", 9, 4 << 24 | 2, 16)
    record += struct.pack("<IIIIII", 13, 2, 0, 15, 2, 64)
    types = b"".join(integer) + record
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    blob = ctypes.create_string_buffer(head + types + strings, 24 + len(types) + len(strings))
    return bpf(BPF_BTF_LOAD, struct.pack("<QQIIII", ctypes.addressof(blob), 0, len(blob), 0, 0, 0))


def make_map(kind: int, key: int, value: int, entries: int, flags: int = 0, types: int = -1) -> int:
    raw = struct.pack("<IIIIIII", kind, key, value, entries, flags, 0, 0) + bytes(16)
    raw += struct.pack("<III", 0, *((types, 1) if types >= 0 else (0, 0)))
    return bpf(BPF_MAP_CREATE, raw + struct.pack("<I", 3 if types >= 0 else 0))


def pin(fd: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(BPF_OBJ_PIN, struct.pack("<QI", ctypes.addressof(name), fd))


@pytest.fixture
def pins(tmp_path):
    """A bpffs with a real map of socket storage, and something for a program."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    mount = tmp_path / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", mount], check=True)
    directory = mount / "slim"
    directory.mkdir()
    made: list[int] = []
    try:
        try:
            types = btf()
            made += [types, make_map(24, 4, 16, 0, 1, types), make_map(1, 8, 4, 64)]
        except OSError as error:
            pytest.skip(f"this kernel makes no such map: {error}")
        pin(made[1], directory / "tags")
        pin(made[2], directory / "revoke")
        pin(make_array := make_map(2, 4, 8, 1), directory / "slim_connect")
        made.append(make_array)
        yield directory
    finally:
        for fd in made:
            os.close(fd)
        subprocess.run(["umount", mount], check=True)


@pytest.fixture
def bpf_backend(pins, monkeypatch):
    monkeypatch.setattr(secure_bpf, "LSM_LIST", "/nonexistent")
    backend = secure_bpf.Bpf(str(pins))
    backend.open()
    yield backend
    backend.close()


def test_bpf_tags_once_and_for_ever(bpf_backend):
    with socket.socket() as sock, socket.socket(socket.AF_INET6) as other:
        assert bpf_backend.state(sock.fileno()) == 0
        bpf_backend.tag(sock.fileno(), cookie_of(sock))
        assert bpf_backend.state(sock.fileno()) == 1
        copy = sock.dup()
        assert bpf_backend.state(copy.fileno()) == 1, "the tag is the socket's"
        bpf_backend.tag(copy.fileno(), cookie_of(sock))
        assert bpf_backend.state(other.fileno()) == 0
        key, value = ctypes.c_int(sock.fileno()), secure_bpf._Value(cookie_of(sock), 2, 0)
        attr = secure_bpf._Element(
            bpf_backend._fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0
        )
        secure_bpf._bpf(secure_bpf.BPF_MAP_UPDATE_ELEM, attr)
        with pytest.raises(OSError, match="File exists"):
            bpf_backend.tag(sock.fileno(), cookie_of(sock))
        assert bpf_backend.state(sock.fileno()) == 2, "a revoked one does not live again"
        copy.close()


def test_bpf_tells_what_it_cannot_tag(bpf_backend):
    with pytest.raises(OSError, match="Bad file"):
        bpf_backend.tag(1 << 20, 1)
    read, write = os.pipe()
    with pytest.raises(OSError, match="socket"):
        bpf_backend.tag(read, 1)
    os.close(read)
    os.close(write)
    bpf_backend.close()
    with socket.socket() as sock, pytest.raises(OSError):
        bpf_backend.tag(sock.fileno(), cookie_of(sock))


def test_bpf_notices_another_map(bpf_backend, pins):
    before = bpf_backend.identity()
    types = btf()
    fd = make_map(24, 4, 16, 0, 1, types)
    (pins / "tags").unlink()
    pin(fd, pins / "tags")
    assert bpf_backend.identity() != before
    os.close(fd)
    os.close(types)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: (d / "tags").unlink(), "tags: not there; load the programs"),
        (lambda d: (d / "slim_connect").unlink(), "a map without programs"),
        (lambda d: (d / "slim_connect").rename(d / "tags"), "not ours"),
    ],
)
def test_bpf_that_cannot_be_used_says_why(pins, change, text, monkeypatch):
    monkeypatch.setattr(secure_bpf, "LSM_LIST", "/nonexistent")
    if "not ours" in text:
        (pins / "tags").unlink()
    change(pins)
    with pytest.raises(secure.SecureError, match=text):
        secure_bpf.Bpf(str(pins)).open()


def test_bpf_wants_the_kernels_list(pins, tmp_path, monkeypatch):
    listed = tmp_path / "lsm"
    listed.write_text("lockdown,capability,apparmor")
    monkeypatch.setattr(secure_bpf, "LSM_LIST", str(listed))
    with pytest.raises(secure.SecureError, match="add lsm=lockdown,capability,apparmor,bpf to its"):
        secure_bpf.Bpf(str(pins)).open()


def test_bpf_revokes_by_the_iterators_and_resets(bpf_backend, monkeypatch):
    """The iterators need programs that this kernel may not load: their lines are the test's."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        accepted, _unused = server.accept()
    cookie = cookie_of(client)
    address = "00000000000000000000ffff7f000001"
    mark = [str(cookie), "2", "2", str(client.getsockname()[1]), str(client.getpeername()[1]),
            address, address]  # fmt: skip
    says = {"slim_mark": [["5", *mark[1:]], mark], "slim_holders": [[str(cookie), "2", "77", "4"]]}
    asked: list[str] = []
    monkeypatch.setattr(bpf_backend, "_lines", lambda name: asked.append(name) or says[name])
    assert bpf_backend.revoke([cookie, 999]) == secure.Revoked(2, [(cookie, 77)])
    assert asked == ["slim_mark"] * 3 + ["slim_holders"], "asked again for the missing one"
    with pytest.raises(ConnectionAbortedError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        accepted.recv(1)
    client.close()
    accepted.close()


# --- the proof ----------------------------------------------------------------------------


def test_a_backend_that_denies_nothing_is_refused(namespaces):
    """This kernel enforces nothing: the attempts are real ones."""
    moves: list[str] = []
    with pytest.raises(secure.SecureError, match="a forbidden call was let through"):
        secure.prove(Fake(), lambda: moves.append("in"), lambda: moves.append("out"))
    assert moves == ["in", "out"]


def test_a_backend_that_denies_is_taken(monkeypatch):
    class Denying(socket.socket):
        def getsockname(self):
            raise PermissionError

        def bind(self, _name):
            raise PermissionError

        def setsockopt(self, level, name, value):
            if level == socket.IPPROTO_IP:
                raise PermissionError
            super().setsockopt(level, name, value)

    monkeypatch.setattr(secure.socket, "socket", Denying)
    secure.prove(Fake(), lambda: None, lambda: None)

    def none(*_unused):
        raise PermissionError

    monkeypatch.setattr(Denying, "setsockopt", none)
    with pytest.raises(secure.SecureError, match="a permitted call was denied"):
        secure.prove(Fake(), lambda: None, lambda: None)


def test_a_backend_that_cannot_tag_is_refused():
    fake = Fake()
    fake.fails = errno.ENOMEM
    with pytest.raises(secure.SecureError, match="Cannot allocate memory"):
        secure.prove(fake, lambda: None, lambda: None)
    with pytest.raises(secure.SecureError, match="cannot be tagged"):
        secure.try_out(fake)
