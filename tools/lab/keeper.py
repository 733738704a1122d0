# SPDX-License-Identifier: Apache-2.0
"""The place of systemd on a namespace node: keep one command running.

    keeper.py --pidfile P start [--wait S] [--log FILE] -- CMD...
    keeper.py --pidfile P stop [-9] | restart | reload | status | hold | resume

`start` leaves a keeper behind in a session of its own. It starts CMD, writes CMD's
pid into P, and starts it again when it ends unasked, SIGKILL included, with a
growing pause between quick failures. `hold` ends that: a CMD that dies stays dead
until `resume`. CMD may say READY=1 as to systemd (sd_notify(3)); `start --wait`
waits for it. Nothing is imported from the rest of the lab: a node runs this file
alone.

Exit status: 0 done; 1 it could not be done; 3 `status` of a command that does not
run (as `systemctl status`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

#: Pause before a restart, in seconds: doubled up to the last, back to the first
#: when the command ran for longer than SETTLED.
FIRST_PAUSE = 0.05
LAST_PAUSE = 2.0
SETTLED = 5.0
#: How long `stop` waits after SIGTERM before it sends SIGKILL, in seconds.
STOP_WAIT = 10.0
#: How long a request to the keeper may take, in seconds.
REQUEST_WAIT = 30.0


def _control_path(pidfile: Path) -> str:
    path = f"{pidfile}.keeper"
    # sockaddr_un holds 108 bytes with the final zero (unix(7)).
    if len(path.encode()) > 107:
        raise SystemExit(f"keeper: {path} is too long for a socket; choose a shorter pid file")
    return path


class Keeper:
    """The process that stays behind."""

    def __init__(self, pidfile: Path, command: list[str]) -> None:
        self.pidfile = pidfile
        self.command = command
        self.child: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.restarts = 0
        self.ready = False
        self.held = False
        self.stopping = False
        self.last_status: int | None = None
        self.pause = FIRST_PAUSE
        self.restart_at: float | None = None
        self.kill_at: float | None = None
        #: Connections that wait for the command to be gone.
        self.waiting: list[socket.socket] = []
        self.selector = selectors.DefaultSelector()
        self.control = self._bind(_control_path(pidfile), socket.SOCK_SEQPACKET)
        self.notify_path = f"{pidfile}.notify"
        self.notify = self._bind(self.notify_path, socket.SOCK_DGRAM)
        self.control.listen(16)

    @staticmethod
    def _bind(path: str, kind: int) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        server = socket.socket(socket.AF_UNIX, kind)
        server.bind(path)
        Path(path).chmod(0o600)
        server.setblocking(False)
        return server

    def log(self, text: str) -> None:
        """Write a line into the command's log."""
        print(f"keeper: {text}", file=sys.stderr, flush=True)

    def spawn(self) -> None:
        """Start the command and publish its pid."""
        self.restart_at = None
        self.ready = False
        environment = {**os.environ, "NOTIFY_SOCKET": self.notify_path}
        try:
            self.child = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        except OSError as error:
            self.log(f"{self.command[0]}: {error.strerror}")
            self.last_status = 127
            self._plan_restart(0.0)
            return
        self.started = time.monotonic()
        temporary = Path(f"{self.pidfile}.new")
        temporary.write_text(f"{self.child.pid}\n")
        temporary.replace(self.pidfile)
        self.log(f"started {self.command[0]} as {self.child.pid}")

    def _plan_restart(self, lived: float) -> None:
        if lived > SETTLED:
            self.pause = FIRST_PAUSE
        self.restart_at = time.monotonic() + self.pause
        self.pause = min(self.pause * 2, LAST_PAUSE)

    def reap(self) -> None:
        """Look whether the command has ended, and decide what follows."""
        if self.child is None or self.child.poll() is None:
            return
        self.last_status = self.child.returncode
        lived = time.monotonic() - self.started
        self.log(f"{self.child.pid} ended with status {self.last_status} after {lived:.3f} s")
        self.child = None
        self.ready = False
        self.kill_at = None
        with contextlib.suppress(FileNotFoundError):
            self.pidfile.unlink()
        if self.stopping:
            self.finish_waiting()
        elif not self.held:
            self.restarts += 1
            self._plan_restart(lived)

    def finish_waiting(self) -> None:
        """Answer those who asked for the end."""
        for connection in self.waiting:
            self.answer(connection, {"ok": True})
        self.waiting.clear()

    def signal(self, number: int) -> bool:
        """Signal the command; say whether it runs."""
        if self.child is None:
            return False
        # Our child cannot be recycled before we have reaped it.
        self.child.send_signal(number)
        return True

    def answer(self, connection: socket.socket, reply: dict[str, Any]) -> None:
        """Send one reply and hang up."""
        with contextlib.suppress(OSError):
            connection.send(json.dumps(reply).encode())
        connection.close()

    def serve(self, connection: socket.socket) -> None:
        """Do what one request asks."""
        try:
            connection.settimeout(1.0)
            request = json.loads(connection.recv(65536))
            verb = request["verb"]
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()
            return
        if verb == "status":
            self.answer(connection, {"ok": True, **self.describe()})
        elif verb == "reload":
            running = self.signal(signal.SIGHUP)
            error = None if running else "the command does not run"
            self.answer(connection, {"ok": running, "error": error})
        elif verb == "hold":
            self.held = True
            self.restart_at = None
            self.answer(connection, {"ok": True})
        elif verb == "resume":
            self.held = False
            if self.child is None and not self.stopping:
                self.pause = FIRST_PAUSE
                self.spawn()
            self.answer(connection, {"ok": True})
        elif verb == "stop":
            self.stopping = True
            self.restart_at = None
            if self.child is None:
                self.answer(connection, {"ok": True})
                return
            self.waiting.append(connection)
            hard = bool(request.get("kill"))
            self.signal(signal.SIGKILL if hard else signal.SIGTERM)
            self.kill_at = time.monotonic() + STOP_WAIT
        else:
            self.answer(connection, {"ok": False, "error": f"no verb {verb!r}"})

    def describe(self) -> dict[str, Any]:
        """What `status` shows."""
        return {
            "keeper": os.getpid(),
            "pid": self.child.pid if self.child else None,
            "ready": self.ready,
            "held": self.held,
            "restarts": self.restarts,
            "last_status": self.last_status,
            "command": self.command,
        }

    def _listen_notify(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message = self.notify.recv(4096)
                if b"READY=1" in message.split(b"\n"):
                    self.ready = True

    def _wait_time(self) -> float | None:
        times = [at for at in (self.restart_at, self.kill_at) if at is not None]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def loop(self) -> None:
        """Keep the command until told to stop."""
        wake_read, wake_write = socket.socketpair()
        wake_write.setblocking(False)
        wake_read.setblocking(False)
        signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._terminate())
        signal.signal(signal.SIGHUP, lambda *_: self.signal(signal.SIGHUP) and None)
        for source in (self.control, self.notify, wake_read):
            self.selector.register(source, selectors.EVENT_READ)
        self.spawn()
        while not (self.stopping and self.child is None):
            for key, _events in self.selector.select(self._wait_time()):
                if key.fileobj is self.control:
                    with contextlib.suppress(OSError):
                        self.serve(self.control.accept()[0])
                elif key.fileobj is self.notify:
                    self._listen_notify()
                else:
                    with contextlib.suppress(BlockingIOError):
                        wake_read.recv(4096)
            self.reap()
            now = time.monotonic()
            if self.kill_at is not None and now >= self.kill_at:
                self.kill_at = now + STOP_WAIT
                self.signal(signal.SIGKILL)
            if self.restart_at is not None and now >= self.restart_at:
                self.spawn()
        self.finish_waiting()
        for path in (_control_path(self.pidfile), self.notify_path):
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()

    def _terminate(self) -> None:
        self.stopping = True
        self.restart_at = None
        if self.signal(signal.SIGTERM):
            self.kill_at = time.monotonic() + STOP_WAIT


def ask(pidfile: Path, verb: str, **fields: Any) -> dict[str, Any]:
    """Ask the keeper of `pidfile`; raises OSError where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(REQUEST_WAIT)
        connection.connect(_control_path(pidfile))
        connection.send(json.dumps({"verb": verb, **fields}).encode())
        raw = connection.recv(65536)
    if not raw:
        raise ConnectionError("the keeper hung up without an answer")
    reply: dict[str, Any] = json.loads(raw)
    return reply


def running(pidfile: Path) -> dict[str, Any] | None:
    """Status of the keeper of `pidfile`, None where there is none."""
    try:
        return ask(pidfile, "status")
    except OSError:
        return None


def _leave_behind(pidfile: Path, command: list[str], log: Path) -> None:
    """Fork twice, so that the keeper has no parent and no terminal; see daemon(7)."""
    pidfile.parent.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    ready_read, ready_write = os.pipe()
    if os.fork():
        os.close(ready_write)
        if os.read(ready_read, 1) != b"+":
            raise SystemExit(f"keeper: could not start; see {log}")
        os.close(ready_read)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(null, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    # Nothing of the caller's may stay open here: it would wait for our end.
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the directory is being changed
        number = int(name)
        if number > 2 and number != ready_write:
            with contextlib.suppress(OSError):
                os.close(number)
    try:
        keeper = Keeper(pidfile, command)
        os.write(ready_write, b"+")
        os.close(ready_write)
        keeper.loop()
    except BaseException as error:
        print(f"keeper: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def _wait_ready(pidfile: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        seen = running(pidfile)
        if seen and seen["ready"]:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"keeper: the command was not ready in {seconds:g} s")
        time.sleep(0.02)


def _stop(pidfile: Path, hard: bool) -> None:
    """Stop command and keeper; nothing to do where there is none."""
    if running(pidfile) is None:
        return
    ask(pidfile, "stop", kill=hard)
    deadline = time.monotonic() + 5
    while Path(_control_path(pidfile)).exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"keeper: the keeper of {pidfile} did not end")
        time.sleep(0.01)


def main(arguments: list[str]) -> int:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(prog="keeper")
    parser.add_argument("--pidfile", type=Path, required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("start", "restart"):
        starting = verbs.add_parser(verb)
        starting.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
        starting.add_argument("--log", type=Path)
        starting.add_argument("command", nargs="*", metavar="CMD")
    stop = verbs.add_parser("stop")
    stop.add_argument("-9", dest="hard", action="store_true")
    for verb in ("reload", "status", "hold", "resume"):
        verbs.add_parser(verb)
    options = parser.parse_args(arguments)
    pidfile: Path = options.pidfile
    verb = options.verb

    if verb in ("start", "restart"):
        seen = running(pidfile)
        command = options.command or (seen["command"] if seen and verb == "restart" else [])
        if not command:
            raise SystemExit("keeper: name the command to keep: start -- CMD...")
        if verb == "restart":
            _stop(pidfile, hard=False)
            seen = None
        if seen is None:
            log = options.log or pidfile.with_suffix(".log")
            _leave_behind(pidfile, command, log)
        if options.wait:
            _wait_ready(pidfile, options.wait)
        return 0
    if verb == "stop":
        _stop(pidfile, options.hard)
        return 0
    seen = running(pidfile)
    if verb == "status":
        print(json.dumps(seen or {"keeper": None, "pid": None, "ready": False}))
        return 0 if seen and seen["pid"] else 3
    if seen is None:
        raise SystemExit(f"keeper: nobody keeps {pidfile}; use start first")
    reply = ask(pidfile, verb)
    if not reply["ok"]:
        raise SystemExit(f"keeper: {verb}: {reply.get('error')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
