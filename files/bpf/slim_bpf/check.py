# SPDX-License-Identifier: Apache-2.0
"""Proves that secure mode is on: programs attached, and a tagged socket refused.

Only after `attached` and `behaves` have both returned may anybody say "secure".
"""

import errno
import json
import os
import socket
import struct
from pathlib import Path

from . import attempts, destroy, host, syscall
from .errors import BpfError
from .layout import HOOKS, ITERATORS, PINS
from .libbpf import KernelTypes, Library
from .tags import Tags

# Bound on the child that makes the attempts.
TIMEOUT_S = 20.0


def attached(pins: Path = PINS) -> dict[str, str]:
    """Every hook of this kernel has its program, each on the map `tags` that is pinned.

    Returns the programs that are absent because the kernel lacks the hook, with
    what covers them. Raises BpfError.
    """
    host.require()
    with Tags(pins) as tags:
        tags_id = syscall.map_info(tags.tags).id
    absent: dict[str, str] = {}
    types = KernelTypes(Library())
    try:
        for hook in HOOKS:
            target = types.hook(hook.hook)
            path = pins / hook.program
            if not path.exists() and hook.instead and (not target or hook.program == "slim_chown"):
                absent[hook.program] = hook.instead
                continue
            _link(path, hook.program, target, tags_id)
    finally:
        types.close()
    for iterator in ITERATORS:
        if not (pins / iterator).exists():
            raise BpfError(str(pins / iterator), "not pinned", "run `slim-bpf load`")
    return absent


def _link(path: Path, program: str, target: int, tags_id: int) -> None:
    """One pinned link: an LSM link, at that hook, of a program that reads that map."""
    try:
        fd = syscall.get(str(path))
    except OSError as error:
        raise BpfError(str(path), os.strerror(error.errno or 0), "run `slim-bpf load`") from error
    try:
        link = syscall.link_info(fd)
        if link.type != syscall.LINK_TYPE_TRACING or link.attach_type != syscall.ATTACH_LSM_MAC:
            raise BpfError(str(path), "not a link at an LSM hook", "run `slim-bpf load`")
        # Kernels that do not say leave it 0.
        if link.target_btf_id and link.target_btf_id != target:
            raise BpfError(str(path), "attached to another hook", "run `slim-bpf load`")
        program_fd = syscall.program_by_id(link.program)
    finally:
        os.close(fd)
    try:
        info = syscall.program_info(program_fd)
    finally:
        os.close(program_fd)
    if info.name != program[:15]:
        raise BpfError(str(path), f"it runs the program {info.name}", "run `slim-bpf load`")
    # slim_chown cannot reach the map (slim.bpf.c says why).
    if tags_id not in info.maps and program != "slim_chown":
        raise BpfError(str(path), "it reads another map of tags", "run `slim-bpf load`")


class _Child:
    """A process in a network namespace of its own, which makes the attempts on request."""

    def __init__(self, tagged: socket.socket, untagged: socket.socket, skip: set[str]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(TIMEOUT_S)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._ours.close()
                self._serve(theirs, tagged, untagged, skip)
            finally:
                os._exit(0)
        theirs.close()

    @staticmethod
    def _serve(
        channel: socket.socket, tagged: socket.socket, untagged: socket.socket, skip: set[str]
    ) -> None:
        try:
            attempts.leave_namespace()
        except OSError as error:
            channel.send(json.dumps([f"{error.filename}: {error.strerror}"]).encode())
            return
        for group in (attempts.ATTEMPTS, attempts.REVOKED_ATTEMPTS):
            channel.recv(1)
            wrong = []
            for attempt in group:
                if attempt.program in skip:
                    continue
                number = attempt.run(tagged.fileno())
                refused = number in (errno.EPERM, errno.ECONNABORTED)
                if number != attempt.expected and (attempt.expected or refused):
                    wrong.append(
                        f"{attempt.name}: {os.strerror(number)} where "
                        f"{os.strerror(attempt.expected)} was expected ({attempt.program})"
                    )
            if group is attempts.ATTEMPTS:
                try:
                    untagged.getpeername()
                except OSError as error:
                    wrong.append(f"getpeername on an untagged socket: {error.strerror}")
            channel.send(json.dumps(wrong).encode())

    def step(self) -> list[str]:
        """Run the next group of attempts; what went wrong."""
        try:
            self._ours.send(b"x")
            answer = self._ours.recv(1 << 16)
        except OSError as error:
            return [f"the process that makes the attempts: {error}"]
        wrong: list[str] = json.loads(answer) if answer else ["no answer from the attempts"]
        return wrong

    def close(self) -> None:
        """End it."""
        self._ours.close()
        os.waitpid(self.pid, 0)


def _pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        client = socket.create_connection(listener.getsockname(), TIMEOUT_S)
        server, _unused = listener.accept()
    return client, server


def cookie_of(sock: socket.socket) -> int:
    """SO_COOKIE."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, attempts.SO_COOKIE, 8))[0])


def behaves(pins: Path = PINS) -> None:
    """Tag a connection over loopback and have another namespace try everything on it.

    Raises BpfError with the first thing that was answered wrongly.
    """
    skip = {hook.program for hook in HOOKS if not (pins / hook.program).exists()}
    with Tags(pins) as tags:
        sockets = (*_pair(), *_pair())
        tagged, untagged = sockets[0], sockets[2]
        try:
            cookie = cookie_of(tagged)
            tags.tag(tagged.fileno(), cookie)
            before = tags.counters()
            # Of our own namespace: the router, which may do anything.
            tagged.getsockname()
            child = _Child(tagged, untagged, skip)
            try:
                wrong = child.step()
                if not wrong:
                    if tags.counters()["denied_connect"] <= before["denied_connect"]:
                        wrong.append("the counters do not count")
                    if not any(entry.cookie == cookie for entry in tags.list()):
                        wrong.append("the tag is not in the list")
                    found = tags.mark([cookie])
                    if not found:
                        wrong.append("the tag cannot be revoked by its cookie")
                    wrong += child.step()
                    failed = destroy.destroy(found.values())
                    if failed:
                        wrong.append(
                            f"SOCK_DESTROY: {os.strerror(failed[cookie])} (CONFIG_INET_DIAG_DESTROY, "
                            "and where it is a module tcp_diag)"
                        )
            finally:
                child.close()
        except OSError as error:
            raise BpfError("self-test", error.strerror or str(error)) from error
        finally:
            for sock in sockets:
                sock.close()
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise BpfError("self-test", wrong[0] + more, "do not hand out sockets; report the kernel")
