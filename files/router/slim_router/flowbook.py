# SPDX-License-Identifier: Apache-2.0
"""The flow log: notes of workers and ends of sockets in, JSON lines out. Supervisor's.

    workers --notes--> supervisor's loop --queue (bounded)--+
                                                            +--> thread --> FlowFile
    kernel --ends of sockets, one listener a namespace------+

One thread has it all: the open connections, the listeners, the file. The supervisor's
loop only puts messages into a queue, so that neither a slow disk nor a busy kernel holds
anybody up. The format is docs/flow-log.md's.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import __version__, log, wire
from .config import FlowLog, Key
from .ends import End, Ends
from .flowfile import FlowFile
from .flows import FALLBACK, OPEN, REFUSE, REVOKE

FORMAT = 1
TICK_S = 0.1
"""Seconds between looks: waking up for each connection costs several times its line."""
BATCHES = 2048
"""Messages of workers that wait for the thread: 130,000 notes."""
ROWS = 200_000
"""Open connections that are remembered; of more than these no close is written."""
UNCLAIMED, UNCLAIMED_S = 20_000, 5.0
"""Ends of sockets that no note has spoken of, how many and how long: a short connection
is over before its worker has sent the note of its beginning."""
READS = 20_000
"""Reports of one namespace a look."""
SETTLE_S = 1.0
"""After lost reports: so long may notes and reports be on their way."""
CHECK_S = 300.0
"""Seconds between checks whether what is remembered lives: a report may be lost without
a word (the kernel had no memory for it)."""
BLIND_S = 15.0
"""The same where the kernel reports nothing: seconds that a close may be late then."""
STOP_S = 5.0
NOTE_SIZE = 14

HOST: Key = ("", "")
"""The host's own network namespace, among the endpoints' (Key)."""

_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps makes one each time

EVENTS = {OPEN: "open", FALLBACK: "fallback", REFUSE: "refuse", REVOKE: "revoke"}


class Flow(NamedTuple):
    """An open connection: what its close needs."""

    text: str  # what it repeats, as JSON without braces
    since: float  # monotonic
    peer: tuple[bytes, int] | None = None  # overlay, outgoing: where its socket must lead
    gap: dict[str, Any] | None = None  # what text is made of, if the end fills something in


@dataclass(slots=True)
class Batch:
    """Notes of one worker."""

    key: Key
    name: str
    notes: list[Any]
    dropped: int
    rules: Callable[[int, int], str | None]


class FlowBook:
    """The flow log of one router. Public methods are for the supervisor's loop."""

    def __init__(self, host: str, ports: tuple[int, int]) -> None:
        """*ports*: the data ports, one of which every host connection has."""
        self._name = _encode(host)
        self.ports = ports
        self.counters: Counter[str] = Counter()
        """lines, dropped, overruns, unknown: of the thread, to be looked at only."""
        self.overflowed = 0  # notes that the queue had no room for; the loop's
        self.cause = ""
        self._wanted: FlowLog | None = None
        self._queue: deque[Batch | Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._stopping = False
        # The thread's own:
        self._file: FlowFile | None = None
        self._open: dict[tuple[Key, int], Flow] = {}
        self._unclaimed: dict[tuple[Key, int], tuple[float, End]] = {}
        self._ends: dict[Key, Ends] = {}
        self._missing: set[tuple[Key, int]] = set()
        self._lines: list[bytes] = []
        self._lost: Counter[tuple[str, Key]] = Counter()  # (where, whose) not said yet
        self._told = 0  # of overflowed
        self._check_at = 0.0
        self._suspect: dict[Key, float] = {}  # namespaces that lost reports: when to look

    # --- for the loop ---------------------------------------------------------------

    @property
    def on(self) -> bool:
        """Is anything to be logged?"""
        return self._wanted is not None

    def use(self, wanted: FlowLog | None) -> None:
        """Log to *wanted*, or no more."""
        if wanted == self._wanted:
            return
        self._wanted = wanted
        self._queue.append(lambda: self._switch(wanted))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="slim-flows", daemon=True)
            self._thread.start()

    def take(
        self, key: Key, name: str, message: dict[str, Any], rules: Callable[[int, int], str | None]
    ) -> None:
        """`flows` of the worker of *key*; *rules* is asked for the id of (index, revision).

        Raises KeyError, TypeError, ValueError for a malformed message.
        """
        notes, dropped = message["notes"], int(message["dropped"])
        if not isinstance(notes, list) or not all(
            isinstance(note, list) and len(note) == NOTE_SIZE and note[0] in EVENTS
            for note in notes
        ):
            raise ValueError("notes")
        if not self.on:
            return
        if len(self._queue) >= BATCHES:
            self.overflowed += len(notes) + dropped
            return
        self._queue.append(Batch(key, name, notes, dropped, rules))

    def watch(self, key: Key, fd: int) -> None:
        """Hear of the ends of sockets in the endpoint's namespace, behind *fd*, which is ours
        from now on."""
        self._queue.append(lambda: self._watch(key, fd))

    def unwatch(self, key: Key, *, gone: bool) -> None:
        """Let the endpoint's namespace go: it is *gone*, and with it what was in it, or it is
        no concern of ours any more."""
        if self._thread is not None:
            self._queue.append(lambda: self._unwatch(key, gone=gone))

    def stop(self) -> None:
        """Write what is there, and end; bounded in time."""
        if self._thread is not None:
            self._stopping = True
            self._wake.set()
            self._thread.join(STOP_S)
            self._thread = None

    @property
    def dropped(self) -> int:
        """Lines that were not written, for whatever reason."""
        return self.counters["dropped"] + self.overflowed - self._told

    def report(self) -> dict[str, object]:
        """For status and metrics."""
        return {
            "path": str(self._wanted.path) if self._wanted is not None else None,
            "lines": self.counters["lines"],
            "dropped": self.dropped,
            "overruns": self.counters["overruns"],
            "unknown_ends": self.counters["unknown"],
            "open": len(self._open),
            "cause": self.cause,
        }

    # --- the thread -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            stopping = self._stopping
            try:
                self.look()
            except Exception as error:  # a defect of ours must not end the log
                log.error("flow-log-defect", cause=repr(error))
            if stopping:
                break
            self._wake.wait(TICK_S)
        self._switch(None)

    def look(self) -> None:
        """One round: notes, ends, checks, file."""
        for _unused in range(len(self._queue)):
            work = self._queue.popleft()
            if isinstance(work, Batch):
                self._notes(work)
            else:
                work()
            if len(self._lines) > 4096:
                self._write()
        for key in list(self._ends):
            self._read(key)
        now = time.monotonic()
        for known in list(self._unclaimed):
            if now - self._unclaimed[known][0] < UNCLAIMED_S:
                break
            del self._unclaimed[known]
        for key, due in list(self._suspect.items()):
            if now >= due:
                del self._suspect[key]
                self._check(key, at_once=True)
        if self._file is not None and now >= self._check_at:
            self._check_at = now + CHECK_S
            for key in list(self._ends):
                self._check(key, at_once=False)
        self._write()

    def _switch(self, wanted: FlowLog | None) -> None:
        if self._file is not None:
            self._say("stop")
            self._write()
            self._file.close()
        self._file = None
        if wanted is None:
            for ends in self._ends.values():
                ends.close()
            for store in (self._ends, self._open, self._unclaimed, self._missing, self._suspect):
                store.clear()
            self.cause = ""
            return
        self._file = FlowFile(wanted.path, wanted.max_bytes, wanted.files)
        self._check_at = time.monotonic() + CHECK_S
        self._say("start", router=__version__)
        if HOST not in self._ends:
            self._listen(HOST, None)

    def _listen(self, key: Key, fd: int | None) -> None:
        blind = ""
        try:
            ends = self._ends[key] = Ends(fd, self.ports if key == HOST else None)
            blind = ends.blind
            # What began and ended before we listened has a note, and no report.
            self._suspect[key] = time.monotonic() + SETTLE_S
        except OSError as error:
            blind = str(error)
        if blind:
            # The checks find out what has ended, later and without figures.
            log.warning(
                "flow-log-blind", endpoint="/".join(key).strip("/") or None, cause=blind,
                next="closes come late and without figures; see docs/flow-log.md",
            )  # fmt: skip

    def _watch(self, key: Key, fd: int) -> None:
        try:
            if self._file is not None:
                before = self._ends.pop(key, None)
                self._listen(key, fd)  # first: nothing is missed in between
                if before is not None:
                    before.close()
        finally:
            os.close(fd)

    def _unwatch(self, key: Key, *, gone: bool) -> None:
        ends = self._ends.get(key)
        if ends is not None:
            self._read(key)
            ends.close()
            del self._ends[key]
        for known in [known for known in self._open if known[0] == key]:
            if gone:
                self._close(known, None)
            else:
                del self._open[known]
                self._missing.discard(known)

    # --- notes ------------------------------------------------------------------------

    def _notes(self, batch: Batch) -> None:
        offset = time.time() - time.monotonic()
        if batch.dropped:
            self._lost["worker", batch.key] += batch.dropped
            self.counters["dropped"] += batch.dropped
        for note in batch.notes:
            (
                kind,
                when,
                cookie,
                outgoing,
                slim,
                why,
                src,
                sport,
                dst,
                dport,
                host,
                rule,
                rev,
                more,
            ) = note
            said: dict[str, Any] = {
                "endpoint": batch.name, "tenant": batch.key[0],
                "id": cookie or None,
                "direction": "out" if outgoing else "in",
                "path": "slim" if slim else "overlay",
                "src": src, "sport": sport or None, "dst": dst, "dport": dport,
                **_host_names(host),
            }  # fmt: skip
            ruling = {"rule": batch.rules(rule, rev), "revision": rev if rev >= 0 else None}
            if kind == FALLBACK:
                ruling["why"] = wire.REASONS.get(why, str(why))
            elif kind == REVOKE:
                ruling["by"] = "order" if more else "policy"
            text = _inner(said)
            self._line(EVENTS[kind], when + offset, text, ruling)
            if kind in (OPEN, FALLBACK) and cookie:
                place = HOST if slim else batch.key
                theirs = outgoing and not slim
                flow = Flow(
                    text, when, (wire.pack_addr(dst), dport) if theirs else None,
                    said if theirs or (slim and not said["hsport"]) else None,
                )  # fmt: skip
                if slim and host is not None:
                    self._widen(host[3])
                self._remember((place, cookie), flow)

    def _remember(self, known: tuple[Key, int], flow: Flow) -> None:
        if known in self._open:
            return  # a shim calls what it likes the cookie of its socket
        if len(self._open) >= ROWS:
            self.counters["unknown"] += 1
            return
        self._open[known] = flow
        early = self._unclaimed.pop(known, None)
        if early is not None:
            self._end(known, early[1])

    def _widen(self, port: int) -> None:
        """A host with other data ports than ours: the kernel has to look for these, too."""
        first, last = self.ports
        if first <= port <= last:
            return
        self.ports = min(first, port), max(last, port)
        if HOST in self._ends:
            self._ends[HOST].narrow(self.ports)

    # --- ends ---------------------------------------------------------------------------

    def _read(self, key: Key) -> None:
        ends = self._ends[key]
        before = ends.overruns
        now = time.monotonic()
        try:
            for end in ends.read(READS):
                known = (key, end.cookie)
                if known in self._open:
                    self._end(known, end)
                else:
                    if len(self._unclaimed) >= UNCLAIMED:
                        del self._unclaimed[next(iter(self._unclaimed))]
                    self._unclaimed[known] = (now, end)
        except OSError as error:
            ends.blind = str(error)
            log.warning("flow-log-blind", cause=error, next="closes come late, without figures")
        if ends.overruns != before:
            self.counters["overruns"] += ends.overruns - before
            self._suspect.setdefault(key, now + SETTLE_S)
        elif ends.blind:
            self._suspect.setdefault(key, now + BLIND_S)

    def _end(self, known: tuple[Key, int], end: End) -> None:
        peer = self._open[known].peer
        if peer is not None and (end.dst, end.dport) != peer:
            del self._open[known]  # the shim called a stranger's socket its own
            return
        self._close(known, end)

    def _close(self, known: tuple[Key, int], end: End | None) -> None:
        text, since, peer, gap = self._open.pop(known)
        self._missing.discard(known)
        if end is not None and gap is not None and gap["direction"] == "out":
            text = _inner(gap | {"sport" if peer is not None else "hsport": end.sport})
        self._line(
            "close", time.time(), text,
            {
                "seconds": round(time.monotonic() - since, 3),
                "figures": end.figures if end is not None else None,
            },
        )  # fmt: skip

    def _check(self, key: Key, *, at_once: bool) -> None:
        """Close what lives no more, though nobody has said so: *at_once*, or at the second
        check that misses it. (A socket that was aborted is missed as long as its owner
        has not closed it, and its report is still to come.)"""
        wanted = {cookie for place, cookie in self._open if place == key}
        ends = self._ends.get(key)
        if not wanted or ends is None:
            return
        try:
            living = ends.living(wanted)
        except OSError as error:
            log.warning("flow-log-check", cause=error, next="will try again")
            return
        self._read(key)
        for cookie in wanted - living:
            known = (key, cookie)
            if known not in self._open:
                continue
            if at_once or known in self._missing:
                self._close(known, None)
            else:
                self._missing.add(known)

    # --- lines --------------------------------------------------------------------------

    def _say(self, event: str, **fields: object) -> None:
        self._line(event, time.time(), "", fields)

    def _line(self, event: str, when: float, text: str, more: dict[str, Any]) -> None:
        """*text* is of a connection, as JSON without braces."""
        if self._file is None:
            return
        head = f'{{"v":{FORMAT},"time":"{stamp(when)}","event":"{event}","host":{self._name}'
        tail = _inner(more)
        parts = ",".join(part for part in (head, text, tail) if part)
        self._lines.append(parts.encode() + b"}\n")

    def _write(self) -> None:
        overflowed = self.overflowed
        if overflowed != self._told:
            self._lost["router", HOST] += overflowed - self._told
            self.counters["dropped"] += overflowed - self._told
            self._told = overflowed
        file = self._file
        if file is None:
            self._lines.clear()
            self._lost.clear()
            return
        if not self._lines and not self._lost:
            return
        lost, self._lost = self._lost, Counter()
        lines, self._lines = self._lines, []
        for (where, (tenant, vip)), number in lost.items():
            self._say("dropped", n=number, where=where, tenant=tenant or None, vip=vip or None)
        heads, self._lines = self._lines, []
        written = file.write(heads + lines)
        self.counters["lines"] += written
        if written < len(heads):
            self._lost.update(lost)  # to be said when it can be written again
        left = len(lines) - max(0, written - len(heads))
        if left:
            self._lost["file", HOST] += left
            self.counters["dropped"] += left
        if file.cause != self.cause:
            if file.cause:
                log.error(
                    "flow-log-unwritable", cause=file.cause,
                    next="the router goes on; lines are counted and lost until it can be written",
                )  # fmt: skip
            else:
                log.info("flow-log-written-again", path=file.path)
            self.cause = file.cause


def stamp(when: float) -> str:
    """Seconds since the epoch as RFC 3339 has it, in UTC, to the microsecond."""
    second, micro = divmod(round(when * 1e6), 1_000_000)
    return f"{_second(second)}.{micro:06d}Z"


@functools.lru_cache(maxsize=8)
def _second(when: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when))


def _inner(fields: dict[str, Any]) -> str:
    """An object as JSON, without its braces."""
    return _encode(fields)[1:-1]


def _host_names(host: list[Any] | None) -> dict[str, Any]:
    if host is None:
        return {"hsrc": None, "hsport": None, "hdst": None, "hdport": None}
    src, sport, dst, dport = host
    return {
        "hsrc": _plain(src), "hsport": sport or None, "hdst": _plain(dst), "hdport": dport or None,
    }  # fmt: skip


def _plain(address: str) -> str | None:
    """IPv4-mapped addresses as IPv4; an unspecified one is not known."""
    text = address.removeprefix("::ffff:") if "." in address else address
    return None if text in ("", "0.0.0.0", "::") else text
