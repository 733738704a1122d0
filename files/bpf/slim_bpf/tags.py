# SPDX-License-Identifier: Apache-2.0
"""Tags of sockets: set, take back, revoke, list. The router's side of secure mode by BPF.

Everything goes through the pins below /sys/fs/bpf/slim; nothing here needs
libbpf. CAP_BPF is needed, for the iterators' files root as well.
"""

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from . import stats, syscall
from .errors import BpfError
from .layout import PINS

LIVE = 1
REVOKED = 2
# struct slim_tag of tags.h
TAG = struct.Struct("=QII")
# A pass can miss a socket when another one of its bucket closes meanwhile.
PASSES = 3


@dataclass(frozen=True, slots=True)
class Tagged:
    """One line of slim_list or slim_mark. Addresses are 16 bytes, IPv4 mapped."""

    cookie: int
    state: int
    family: int
    port: int
    peer_port: int
    address: bytes
    peer_address: bytes


@dataclass(frozen=True, slots=True)
class Holder:
    """One descriptor of a tagged socket, in whatever process."""

    cookie: int
    state: int
    pid: int
    fd: int


class Tags:
    """The pinned maps, open."""

    def __init__(self, pins: Path = PINS) -> None:
        """Raises BpfError if secure mode's programs are not loaded."""
        self.pins = pins
        self._fds: list[int] = []
        try:
            self.tags, self.stats, self.revoked = (
                self._get(name) for name in ("tags", "stats", "revoke")
            )
        except OSError as error:
            self.close()
            raise BpfError(
                str(error.filename or pins), os.strerror(error.errno or 0), "run `slim-bpf load`"
            ) from error

    def _get(self, name: str) -> int:
        fd = syscall.get(str(self.pins / name))
        self._fds.append(fd)
        return fd

    def close(self) -> None:
        """Close the maps. The tags stay."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> "Tags":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def tag(self, fd: int, cookie: int) -> None:
        """Tag a connected or connecting TCP socket of the caller's, before anybody else has it.

        NOEXIST, so that a revoked tag never becomes live again: OSError EEXIST.
        Also EBADF, ENOTSOCK, ENOMEM. Never tag a listener.
        """
        syscall.update(self.tags, struct.pack("=i", fd), TAG.pack(cookie, LIVE, 0), syscall.NOEXIST)

    def untag(self, fd: int) -> None:
        """Take a tag back; only while nobody else has had the socket. OSError ENOENT: none."""
        syscall.delete(self.tags, struct.pack("=i", fd))

    def state(self, fd: int) -> int:
        """LIVE, REVOKED, or 0 for a socket without a tag."""
        try:
            value = syscall.lookup(self.tags, struct.pack("=i", fd), TAG.size)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise
        return int(TAG.unpack(value)[1])

    def counters(self) -> dict[str, int]:
        """Counters by name; they begin at 0 when the programs are first loaded."""
        return {
            name: int.from_bytes(syscall.lookup(self.stats, struct.pack("=I", slot), 8), "little")
            for slot, name in enumerate(stats.NAMES)
        }

    def _lines(self, iterator: str) -> Iterator[list[str]]:
        # Opening the pin makes an iterator, reading it runs the program.
        with (self.pins / iterator).open("rb", buffering=1 << 18) as file:
            for line in file:
                yield line.decode().split()

    def _tagged(self, iterator: str) -> Iterator[Tagged]:
        for cookie, state, family, port, peer_port, address, peer in self._lines(iterator):
            yield Tagged(
                int(cookie),
                int(state),
                int(family),
                int(port),
                int(peer_port),
                bytes.fromhex(address),
                bytes.fromhex(peer),
            )

    def list(self) -> Iterator[Tagged]:
        """Every tag, as long as its socket lives."""
        return self._tagged("slim_list")

    def holders(self) -> Iterator[Holder]:
        """Every descriptor of a tagged socket. Walks all processes: not for a busy path."""
        for fields in self._lines("slim_holders"):
            yield Holder(*map(int, fields))

    def mark(self, cookies: Iterable[int]) -> dict[int, Tagged]:
        """Revoke tags by cookie; answers with those that it found.

        From then on every send, recv and shutdown on them is ECONNABORTED. A
        cookie that is missing in the answer belongs to no tagged socket. Several
        processes may do this at once.
        """
        wanted = set(cookies)
        written: list[bytes] = []
        found: dict[int, Tagged] = {}
        try:
            for cookie in wanted:
                key = struct.pack("=Q", cookie)
                syscall.update(self.revoked, key, struct.pack("=I", 1))
                written.append(key)
            for _unused in range(PASSES):
                for tagged in self._tagged("slim_mark"):
                    if tagged.cookie in wanted:
                        found[tagged.cookie] = tagged
                if len(found) == len(wanted):
                    break
        finally:
            for key in written:
                try:
                    syscall.delete(self.revoked, key)
                except OSError as error:
                    # Another process revoked the same socket.
                    if error.errno != errno.ENOENT:
                        raise
        return found
