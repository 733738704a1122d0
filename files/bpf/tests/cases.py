# SPDX-License-Identifier: Apache-2.0
"""The BPF twin in a guest: `cases.py [NAME...]`, -NAME for all but that. Exit status: failures.

Topology: harness.py. Every case loads what it needs and leaves the programs
loaded and no tagged socket behind.
"""

import errno
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from harness import (  # noqa: E402 - found by the path above
    Foreign,
    error_of,
    foreign,
    linger_reset,
    pair,
    pidfd_getfd,
    recv_fd,
    send_fd,
    tagged,
    wrong_answers,
)  # fmt: skip
from slim_bpf import attempts, check, destroy, load  # noqa: E402 - found by the path above
from slim_bpf.errors import BpfError  # noqa: E402 - found by the path above
from slim_bpf.layout import HOOKS, PINS, STAGING  # noqa: E402 - found by the path above
from slim_bpf.tags import REVOKED, Tags  # noqa: E402 - found by the path above

FILES = Path("/test")
NOBODY = 65534
DEADLINE_S = 30.0


def until(what, condition):
    """Poll, with a deadline."""
    end = time.monotonic() + DEADLINE_S
    while not (answer := condition()):
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S} s"
        time.sleep(0.01)
    return answer


def refused_by_load(path):
    """The message of a load that must fail."""
    try:
        load.load(path)
    except BpfError as error:
        assert not STAGING.exists(), "the staging directory is left"
        return str(error)
    raise AssertionError(f"{path.name} was loaded")


# --- loading -------------------------------------------------------------------------------


def case_load_once():
    """The first load changes, the second does not; everything is attached."""
    if PINS.exists():
        load.unload()
    assert not load.state().loaded
    changed, found = load.load()
    assert changed and found.loaded
    print("   absent here:", found.absent or "no hook")
    changed, _unused = load.load()
    assert not changed
    check.attached()
    check.behaves()


def case_check_misses_nothing():
    """Each pin taken away: check fails and names it; load heals."""
    load.load()
    for hook in HOOKS:
        path = PINS / hook.program
        if not path.exists():
            continue
        away = PINS / f"{hook.program}_away"
        path.rename(away)
        try:
            check.attached()
        except BpfError as error:
            assert hook.program in str(error), error
        else:
            # The one that may be absent where the kernel cannot attach it.
            assert hook.program == "slim_chown", hook
        away.rename(path)
    check.attached()
    (PINS / "slim_connect").unlink()
    assert load.load()[0], "a missing program was not loaded again"
    check.attached()
    # A link under another program's name.
    (PINS / "slim_bind").unlink()
    (PINS / "slim_listen").rename(PINS / "slim_bind")
    try:
        check.attached()
    except BpfError as error:
        assert "slim_bind" in str(error), error
    else:
        raise AssertionError("a link of another hook passed the check")
    assert load.load()[0]
    check.behaves()


def case_hole_is_found():
    """An object with one rule missing is not loaded, and the running one stays."""
    load.load()
    before = load.state()
    for name in ("hole-shutdown.o", "hole-option.o"):
        message = refused_by_load(FILES / name)
        assert "self-test" in message, message
        print("  ", message)
    assert "slim.bpf" not in refused_by_load(FILES / "garbage.o")
    assert load.state() == before
    check.attached()
    check.behaves()
    # The running slim_chown, which looks at any storage, would hide this one.
    load.unload()
    message = refused_by_load(FILES / "hole-chown.o")
    assert "fchown" in message, message
    assert not PINS.exists()
    load.load()


def case_upgrade_has_no_gap():
    """Another version is loaded while a holder tries all the time; the tags stay."""
    load.load()
    other = FILES / "other.o"
    with Tags() as tags:
        made = tagged(tags)
        stop_read, stop_write = os.pipe()

        def hammer():
            tries = through = 0
            while not select.select([stop_read], [], [], 0)[0]:
                for _unused in range(20):
                    tries += 1
                    through += error_of(made.client.getsockname) != errno.EPERM
            return [tries, through]

        # Loading is slow in an emulator.
        process = Foreign(hammer, bound_s=400).ready()
        assert load.load(other)[0]
        assert load.state().sha256 == load.digest(other)
        assert load.load()[0]
        os.write(stop_write, b"x")
        tries, through = process.result()
        print(f"   {tries} tries during two upgrades, {through} got through")
        assert tries and not through
        with Tags() as now:
            assert [tag.cookie for tag in now.list()] == [made.cookie]
            assert now.state(made.client.fileno()) == 1
            assert made.cookie in now.mark([made.cookie])
        made.close()
    check.attached()


def case_unload_refused():
    """Not while a tagged socket lives."""
    load.load()
    with Tags() as tags:
        made = tagged(tags)
        try:
            load.unload()
        except BpfError as error:
            assert "1 tagged" in str(error), error
        else:
            raise AssertionError("unloaded under a live tag")
        check.attached()
        made.close()
    until("tag gone", no_tags)
    assert load.unload() and not PINS.exists()
    made = pair()
    assert foreign(lambda: error_of(made.client.getsockname)) == 0, "still refused"
    made.close()
    assert load.load()[0]


def no_tags():
    with Tags() as tags:
        return not list(tags.list())


# --- what a holder can do --------------------------------------------------------------------


def case_untagged_untouched():
    """Untagged: everything goes through that went through (and so the attempts prove something)."""
    made = pair()

    def count():
        os.set_blocking(made.client.fileno(), False)
        numbers = {one.name: one.run(made.client.fileno()) for one in attempts.ATTEMPTS}
        return [name for name, number in numbers.items() if number != errno.EPERM]

    allowed = foreign(count)
    made.close()
    print(f"   {len(allowed)} of {len(attempts.ATTEMPTS)} attempts succeed or fail by themselves")
    for name in ("connect(AF_UNSPEC)", "getsockname", "mmap", "ioctl SIOCGIFCONF", "fchown"):
        assert name in allowed, name


def case_every_way_to_hold():
    """Fork, dup, exec, SCM_RIGHTS, pidfd_getfd; as root of the container and as nobody."""
    with Tags() as tags:
        for family in (socket.AF_INET, socket.AF_INET6):
            for uid in (0, NOBODY):
                for way in (by_fork, by_dup, by_exec, by_rights, by_pidfd):
                    made = tagged(tags, family)
                    wrong = way(made, uid)
                    made.close()
                    # An unprivileged fchown fails by itself.
                    assert not wrong, f"{way.__name__} uid {uid}: {wrong}"


def by_fork(made, uid):
    return foreign(wrong_answers, made.client.fileno(), uid=uid)


def by_dup(made, uid):
    def run():
        low, high = os.dup(made.client.fileno()), made.client.fileno() + 100
        os.dup2(low, high)
        return wrong_answers(high)

    return foreign(run, uid=uid)


def by_exec(made, uid):
    def run():
        script = (
            f"import sys, json; sys.path[:0] = {sys.path[:2]!r}\n"
            "import harness; print(json.dumps(harness.wrong_answers(int(sys.argv[1]))))"
        )
        fd = made.client.fileno()
        words = [sys.executable, "-I", "-c", script, str(fd)]
        answer = subprocess.run(words, pass_fds=[fd], capture_output=True, text=True, check=True)
        return json.loads(answer.stdout)

    return foreign(run, uid=uid)


def by_rights(made, uid):
    """From one container to another one."""
    left, right = socket.socketpair()

    def take():
        return wrong_answers(recv_fd(right))

    other = Foreign(take, uid=uid).ready()
    foreign(send_fd, left, made.client.fileno(), uid=uid)
    left.close()
    right.close()
    return other.result()


def by_pidfd(made, uid):
    if uid:
        return []  # Yama decides; with it allowed it is root's case
    stop_read, stop_write = os.pipe()
    holder = Foreign(wait_for, stop_read).ready()
    wrong = foreign(lambda: wrong_answers(pidfd_getfd(holder.pid, made.client.fileno())))
    os.write(stop_write, b"x")
    holder.result()
    return wrong


def wait_for(fd):
    return len(os.read(fd, 1))


def lowlevel(mode, fd):
    """Results of lowlevel.c by name."""
    answer = subprocess.run(
        [FILES / "lowlevel", mode, str(fd)],
        pass_fds=[fd],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        name: int(number) for name, number in (line.split() for line in answer.stdout.splitlines())
    }


# What kernels that lack an operation answer: nothing was done either.
UNKNOWN = (-errno.EINVAL, -errno.EOPNOTSUPP)


def case_io_uring():
    """io_uring's operations, by descriptor and by registered file."""
    with Tags() as tags:
        for mode in ("uring", "fixed"):
            plain = pair()
            proof = foreign(lowlevel, mode, plain.client.fileno())
            plain.close()
            made = tagged(tags)
            made.server.sendall(b"data")
            got = foreign(lowlevel, mode, made.client.fileno())
            print(f"   {mode}: tagged {got}")
            print(f"   {mode}: untagged {proof}")
            assert proof["CONNECT"] == 0, proof
            assert got["SEND"] == 1 and got["RECV"] == 4, got
            assert got["CMD_SIOCINQ"] >= 0 or got["CMD_SIOCINQ"] in UNKNOWN, got
            for name in (
                "CONNECT", "ACCEPT", "SENDMSG", "SEND_FASTOPEN", "SEND_ZC", "RECV_ERRQUEUE", "BIND",
                "LISTEN", "CMD_GETSOCKOPT", "CMD_SETSOCKOPT", "CMD_UNKNOWN",
            ):  # fmt: skip
                late = name in ("BIND", "LISTEN") or name.startswith("CMD_")
                assert got[name] == -errno.EPERM or (late and got[name] in UNKNOWN), (name, got)
            made.close()


def case_32_bit_calls():
    """int 0x80: the compat entry points, file_ioctl_compat among them."""
    with Tags() as tags:
        plain = pair()
        proof = foreign(lowlevel, "compat", plain.client.fileno())
        plain.close()
        assert proof["ioctl_SIOCGIFCONF"] == 0 and proof["getsockname"] == 0, proof
        made = tagged(tags)
        got = foreign(lowlevel, "compat", made.client.fileno())
        made.close()
        allowed = {"ioctl_FIONREAD", "setsockopt_NODELAY"}
        assert all(
            (number == -errno.EPERM) == (name not in allowed) for name, number in got.items()
        ), got


def allow_list():
    """Sets of allow.h as numbers: (set, get) options by (level, name), and ioctls."""
    text = (FILES / "allow.h").read_text()

    def entries(macro):
        body = re.search(rf"#define {macro}\(X\)((?:.*\\\n)*.*)", text).group(1)
        return re.findall(r"X\((.*?)\)", body)

    levels = {
        name: int(number) for name, number in re.findall(r"#define (SLIM_SOL_\w+)\s+(\d+)", text)
    }

    def options(macro):
        return {
            (levels[level.strip()], int(number, 0))
            for level, _unused, number in (entry.split(",") for entry in entries(macro))
        }

    sets = options("SLIM_ALLOW_SETS")
    gets = sets | options("SLIM_ALLOW_GETS_ONLY")
    ioctls = {int(entry.split(",")[1], 0) for entry in entries("SLIM_ALLOW_IOCTLS")}
    assert len(sets) > 20 and len(gets) > len(sets) and len(ioctls) == 8
    return sets, gets, ioctls


def case_whole_allow_list():
    """Every option of every level and every socket ioctl: EPERM or not as allow.h has it."""
    sets, gets, ioctls = allow_list()
    # SOL_IP, SOL_SOCKET, SOL_TCP, SOL_UDP, SOL_IPV6, SOL_RAW, SOL_TLS, SOL_MPTCP, SOL_SMC, nonsense
    levels = (0, 1, 6, 17, 41, 255, 282, 284, 286, -1)
    numbers = [*range(136), 255, 0x10001, -1]
    commands = [*range(0x5400, 0x5480), *range(0x8900, 0x8A00), 0x8B00, 0xC0045877, 0]

    def sweep(fd):
        wrong = []
        libc = attempts._libc
        value = struct.pack("=i", 1)
        for level in levels:
            for number in numbers:
                number_set = attempts._set(level, number, value)(fd)
                set_errno = attempts.ctypes.get_errno() if number_set else 0
                if (set_errno == errno.EPERM) == ((level, number) in sets):
                    wrong.append(f"set {level} {number}: {set_errno}")
                number_get = attempts._get(level, number)(fd)
                get_errno = attempts.ctypes.get_errno() if number_get else 0
                if (get_errno == errno.EPERM) == ((level, number) in gets):
                    wrong.append(f"get {level} {number}: {get_errno}")
        for command in commands:
            buffer = attempts.ctypes.create_string_buffer(256)
            failed = libc.ioctl(fd, attempts.ctypes.c_ulong(command), buffer)
            number = attempts.ctypes.get_errno() if failed else 0
            if (number == errno.EPERM) == (command in ioctls):
                wrong.append(f"ioctl {command:#x}: {number}")
        return wrong

    with Tags() as tags:
        for family in (socket.AF_INET, socket.AF_INET6):
            made = tagged(tags, family)
            wrong = foreign(sweep, made.client.fileno())
            made.close()
            assert not wrong, wrong


def case_module_sweep():
    """The module's own sweep (../../kmod/tests/calls.c): both must give the same answers."""

    def run(fd):
        words = [FILES / "slimtest", "sweep", str(fd)]
        answer = subprocess.run(words, pass_fds=[fd], capture_output=True, text=True, check=False)
        return [answer.returncode, answer.stdout[-2000:] + answer.stderr[-500:]]

    with Tags() as tags:
        for family in (socket.AF_INET, socket.AF_INET6):
            for uid in (0, NOBODY):
                made = tagged(tags, family)
                made.server.sendall(b"abcdefgh")
                status, said = foreign(run, made.client.fileno(), uid=uid)
                made.close()
                assert status == 0, f"uid {uid}: {status} wrong: {said}"


def case_data_flows():
    """Everything that a program does with a connection goes on working."""

    def talk(client):
        client.sendall(b"one")
        os.write(client.fileno(), b"two")
        os.writev(client.fileno(), [b"th", b"ree"])
        client.sendmsg([b"fo", b"ur"])
        read, write = os.pipe()
        os.write(write, b"five")
        os.splice(read, client.fileno(), 4)
        path = Path("/tmp/sendfile")
        path.write_bytes(b"six")
        with path.open("rb") as file:
            os.sendfile(client.fileno(), file.fileno(), 0, 3)
        got = b""
        while len(got) < 9:
            got += client.recv(9 - len(got))
        poll = select.epoll()
        poll.register(client.fileno(), select.EPOLLIN)
        assert not poll.poll(0)
        client.setblocking(False)
        assert error_of(client.recv, 1) == errno.EAGAIN
        client.setblocking(True)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        os.splice(client.fileno(), write, 5)
        assert os.read(read, 5) == b"piped"
        client.shutdown(socket.SHUT_WR)
        return got.decode()

    with Tags() as tags:
        made = tagged(tags)
        process = Foreign(talk, made.client).ready()
        made.client.close()
        got = b""
        while len(got) < len("onetwothreefourfivesix"):
            got += made.server.recv(100)
        assert got == b"onetwothreefourfivesix", got
        made.server.sendall(b"nine-char")
        time.sleep(0.3)
        made.server.sendall(b"piped")
        assert made.server.recv(1) == b"", "no end of data after shutdown"
        assert process.result() == "nine-char"
        made.server.close()


def case_router_is_exempt():
    """A caller of the socket's own namespace may do what it likes."""
    with Tags() as tags:
        made = tagged(tags)
        numbers = {one.name: one.run(made.client.fileno()) for one in attempts.ATTEMPTS[4:12]}
        made.close()
    assert numbers["getsockname"] == numbers["setsockopt SO_PRIORITY"] == 0, numbers


def case_listener_children():
    """Should anybody tag a listener: nobody can accept from it, and its children are tagged."""
    with Tags() as tags, socket.create_server(("127.0.0.1", 0)) as listener:
        tags.tag(listener.fileno(), check.cookie_of(listener))
        client = socket.create_connection(listener.getsockname())
        assert foreign(lambda: error_of(listener._accept)) == errno.EPERM
        child, _unused = listener.accept()
        assert tags.state(child.fileno()) == 1
        assert not foreign(wrong_answers, child.fileno())
        for sock in (client, child):
            sock.close()


def case_strangers_cannot_tag():
    """Maps and pins are root's."""

    def run():
        return [
            error_of(Path(PINS / "slim_list").read_bytes),
            error_of(os.listdir, PINS),
            tags_error(),
        ]

    numbers = foreign(run, uid=NOBODY)
    assert all(numbers), numbers


def tags_error():
    try:
        Tags().close()
    except BpfError:
        return 1
    return 0


# --- revocation ------------------------------------------------------------------------------


def revoke(tags, cookies):
    """Mark and abort; all must be found."""
    found = tags.mark(cookies)
    assert set(found) == set(cookies), "not all marked"
    failed = destroy.destroy(found.values())
    assert not failed, destroy.explain(failed)


def dead(sock):
    """Both directions, twice: ECONNABORTED, never an end of data, never silence."""
    for _unused in range(2):
        assert error_of(sock.recv, 1) == errno.ECONNABORTED
        assert error_of(sock.send, b"x") == errno.ECONNABORTED
    assert error_of(sock.shutdown, socket.SHUT_WR) == errno.ECONNABORTED
    return attempts.ATTEMPTS[0].run(sock.fileno())


def case_revoke_without_descriptor():
    """The router closed its copy; the cookie is enough. The peer sees a reset; the tag stays."""
    with Tags() as tags:
        for family in (socket.AF_INET, socket.AF_INET6):
            made = tagged(tags, family)
            go_read, go_write = os.pipe()

            def hold(client=made.client, go=go_read):
                os.read(go, 1)
                poll = select.poll()
                poll.register(client.fileno(), select.POLLIN)
                events = poll.poll(10000)
                return [dead(client), events[0][1] & select.POLLHUP]

            process = Foreign(hold).ready()
            cookie = made.cookie
            made.client.close()
            before = tags.counters()
            revoke(tags, [cookie])
            assert error_of(made.server.recv, 1) == errno.ECONNRESET
            # Marked again: listed, not counted twice.
            assert cookie in tags.mark([cookie])
            os.write(go_write, b"x")
            assert process.result() == [errno.EPERM, select.POLLHUP]
            assert tags.counters()["revoked_total"] == before["revoked_total"] + 1
            made.server.close()
        assert not tags.mark([1, 2, 3]), "found what does not exist"


def case_revoke_thousand():
    """1,000 connections, with copies, in one request."""
    with Tags() as tags:
        pairs = [tagged(tags) for _unused in range(1000)]
        cookies = [made.cookie for made in pairs]
        keep = pair()
        tags.tag(keep.client.fileno(), keep.cookie)
        go_read, go_write = os.pipe()

        def hold():
            os.read(go_read, 1)
            numbers = {error_of(made.client.recv, 1) for made in pairs}
            keep.client.sendall(b"alive")
            return list(numbers)

        process = Foreign(hold).ready()
        start = time.monotonic()
        found = tags.mark(cookies)
        middle = time.monotonic()
        failed = destroy.destroy(found.values())
        end = time.monotonic()
        print(f"   marked in {middle - start:.3f} s, aborted in {end - middle:.3f} s (emulated)")
        assert len(found) == 1000 and not failed, (len(found), failed)
        os.write(go_write, b"x")
        assert process.result() == [errno.ECONNABORTED]
        assert keep.server.recv(5) == b"alive"
        assert tags.state(keep.client.fileno()) == 1
        for made in (*pairs, keep):
            made.close()
    until("tags gone", no_tags)


def case_revoke_queued_copy():
    """A copy that lies in a Unix socket when it happens is dead when it is taken out."""
    with Tags() as tags:
        made = tagged(tags)
        left, right = socket.socketpair()
        send_fd(left, made.client.fileno())
        cookie = made.cookie
        made.client.close()
        revoke(tags, [cookie])
        number = foreign(lambda: dead(taken(right)))
        assert number == errno.EPERM
        made.server.close()
        left.close()
        right.close()


def taken(channel):
    """Python's socket(fileno=) asks for the family otherwise, which is refused."""
    fd = recv_fd(channel)
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)


def case_revoke_io_uring():
    """A recv that waits in io_uring."""
    with Tags() as tags:
        made = tagged(tags)
        process = Foreign(lowlevel, "wait", made.client.fileno()).ready()
        until("holder", lambda: any(one.pid != os.getpid() for one in tags.holders()))
        time.sleep(1)
        revoke(tags, [made.cookie])
        assert process.result() == {"RECV": -errno.ECONNABORTED}
        made.close()


def case_revoke_stopped():
    """A stopped holder finds it dead when it goes on."""
    with Tags() as tags:
        made = tagged(tags)
        process = Foreign(dead_after_recv, made.client).ready()
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        revoke(tags, [made.cookie])
        os.kill(process.pid, signal.SIGCONT)
        assert process.result() == [errno.ECONNABORTED, errno.EPERM]
        made.close()


def dead_after_recv(sock):
    return [error_of(sock.recv, 1), dead(sock)]


def readers(made, count):
    """count threads of one foreign process, blocked in recv; a list of their answers."""

    def run():
        answers = []

        def one():
            try:
                answers.append(len(made.client.recv(1)))
            except OSError as error:
                answers.append(-error.errno)

        threads = [threading.Thread(target=one) for _unused in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(answers)

    process = Foreign(run).ready()

    def blocked():
        tasks = list(Path(f"/proc/{process.pid}/task").iterdir())
        # The main thread waits in join, the others in recv.
        waiting = sum("wait_woken" in (task / "wchan").read_text() for task in tasks)
        return waiting >= count or (len(tasks) == count + 1 and all_sleep(tasks))

    until("readers blocked", blocked)
    time.sleep(0.5)
    return process


def all_sleep(tasks):
    return all((task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "S" for task in tasks)


def case_revoke_blocked_frozen():
    """Eight blocked readers, the cgroup frozen around the abort: every one ECONNABORTED."""
    group = Path("/sys/fs/cgroup/slim-test")
    group.mkdir(exist_ok=True)
    with Tags() as tags:
        made = tagged(tags)
        process = readers(made, 8)
        (group / "cgroup.procs").write_text(str(process.pid))
        tags.mark([made.cookie])
        (group / "cgroup.freeze").write_text("1")
        until("frozen", lambda: "frozen 1" in (group / "cgroup.events").read_text())
        revoke(tags, [made.cookie])
        (group / "cgroup.freeze").write_text("0")
        assert process.result() == [-errno.ECONNABORTED] * 8
        made.close()
    group.rmdir()


def case_revoke_blocked_plain():
    """The same without freezing: one error, and what the others see (README says so)."""
    with Tags() as tags:
        made = tagged(tags)
        process = readers(made, 8)
        revoke(tags, [made.cookie])
        answers = process.result()
        print(
            f"   {answers.count(-errno.ECONNABORTED)} ECONNABORTED, {answers.count(0)} end of data"
        )
        assert answers[0] == -errno.ECONNABORTED
        made.close()


def case_revoke_at_once():
    """Four revokers, each with its own cookies: each finds all of its own."""
    with Tags() as tags:
        groups = [[tagged(tags) for _unused in range(50)] for _unused in range(4)]

        def run(cookies):
            with Tags() as mine:
                return len(mine.mark(cookies))

        started = [Foreign(run, [made.cookie for made in group]) for group in groups]
        assert [process.ready().result() for process in started] == [50] * 4
        for made in (made for group in groups for made in group):
            assert tags.state(made.client.fileno()) == REVOKED
            linger_reset(made.server)
            made.close()


def case_router_backend():
    """The router's own side (slim_router/secure_bpf.py): open, prove, tag, revoke."""
    sys.path.append("/router")
    from slim_router import secure
    from slim_router.secure_bpf import Bpf

    backend = Bpf()
    backend.open()
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    secure.try_out(backend)
    secure.prove(backend, attempts.leave_namespace, lambda: attempts._libc.setns(here, 0))
    os.close(here)
    made, other = pair(), pair()
    for one in (made, other):
        backend.tag(one.client.fileno(), one.cookie)
        backend.tag(one.client.fileno(), one.cookie)
    assert not foreign(wrong_answers, other.client.fileno())
    done = backend.revoke([made.cookie, 1])
    assert done.revoked == 2, done
    assert error_of(made.client.recv, 1) == errno.ECONNABORTED
    assert error_of(made.server.recv, 1) == errno.ECONNRESET
    assert error_of(backend.tag, made.client.fileno(), made.cookie) == errno.EEXIST
    assert backend.state(other.client.fileno()) == 1
    for one in (made, other):
        one.close()
    # It keeps the programs attached while it lives, whatever happens to the pins.
    load.unload()
    try:
        keep = pair()
        backend.tag(keep.client.fileno(), keep.cookie)
        assert foreign(lambda: error_of(keep.client.getsockname)) == errno.EPERM
        keep.close()
    finally:
        backend.close()
        load.load()


def case_holders():
    """Who holds which."""
    with Tags() as tags:
        made = tagged(tags)
        stop_read, stop_write = os.pipe()
        process = Foreign(wait_for, stop_read).ready()
        found = {(one.pid, one.fd) for one in tags.holders() if one.cookie == made.cookie}
        fd = made.client.fileno()
        assert found == {(os.getpid(), fd), (process.pid, fd)}, found
        os.write(stop_write, b"x")
        process.result()
        made.close()


CASES = {name[5:]: value for name, value in list(globals().items()) if name.startswith("case_")}


def main(names):
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    failures = 0
    without = {name[1:] for name in names if name.startswith("-")}
    names = [name for name in names if name not in without and name[:1] != "-"] or [
        name for name in CASES if name not in without
    ]
    for name in names:
        start = time.monotonic()
        try:
            load.load()
            CASES[name]()
            until("tags of the case gone", no_tags)
        except BaseException:
            failures += 1
            print(f"FAIL {name}", flush=True)
            traceback.print_exc()
        else:
            print(f"ok {name} ({time.monotonic() - start:.1f} s)", flush=True)
    print(f"{len(names) - failures} passed, {failures} failed")
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
