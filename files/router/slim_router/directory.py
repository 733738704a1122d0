# SPDX-License-Identifier: Apache-2.0
"""Who is where, who may speak for whom: between the workers and the trunks.

Every answer is computed from the map, the trunks that are open and what the
peers announced on them; nothing here waits for anything, except a QUERY for its
answer, and that for QUERY_S at most. Peers and workers may be wrong or hostile:
a host speaks only for vips that the map puts on it, a worker only for its own.
A vip of a pool is on the host of the pool that attached it last, as the hosts say.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import log
from .attachments import AHEAD_US, now_us
from .config import FleetMap, Key, RouterConfig
from .endpoints import Endpoint, Registry
from .frames import Announce, Answer, Frame, Query, Withdraw
from .link import Message
from .reader import normal
from .trunk import Claim, Trunk, Trunks
from .whole import is_whole
from .wire import (
    R_NO_ROUTER,
    R_NO_TRUNK,
    R_NONE,
    R_OWN_ADDRESS,
    R_REFUSED,
    R_UNKNOWN_PEER,
    pack_addr,
    pair_key,
    unpack_addr,
)

QUERY_S = 0.05
QUERIES_MAX = 4096  # unanswered queries of one worker or trunk
ASKS_MAX = 16384  # locations that one worker is kept informed of
WITHDRAW_VIPS_MAX = 16384
HOLDERS_MAX = 65536  # vips of pools whose last host is remembered
WANTED_S = 600.0  # a host that nobody asked for in this time needs no trunk

Party = Endpoint | Trunk


@dataclass(slots=True)
class Question:
    """A QUERY that was passed on."""

    asker: Party
    asker_id: int
    target: Party
    due: float  # monotonic seconds


class Directory:
    """Handles the messages of workers and the frames of trunks."""

    def __init__(self, config: RouterConfig, fleet: FleetMap, counters: Counter[str]) -> None:
        self.config = config
        self.fleet = fleet
        self.counters = counters
        self.registry: Registry
        self.trunks: Trunks
        self.on_moved: Callable[[Key, str, int], None] = lambda *_unused: None
        """(key, host, born): a vip of a pool is on another host than it was."""
        self._holders: dict[Key, str] = {}  # of vips of pools, the one settled longest ago first
        self._wanted: dict[str, float] = {}  # when a host was last asked for, monotonic seconds
        self._questions: dict[int, Question] = {}
        self._order: collections.deque[int] = collections.deque()
        self._load: Counter[int] = Counter()
        self._next_id = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- map --------------------------------------------------------------------

    def host_of(self, key: Key) -> str | None:
        """The host that the map puts *key* on; of a pool's, the one that attached it last."""
        spec = self.fleet.endpoints.get(key)
        return spec.host if spec is not None else self._holders.get(key)

    def _speaks(self, host: str, key: Key) -> bool:
        """May *host* speak for *key*?"""
        holder = self.host_of(key)
        # Its first hello may overtake its announcement.
        return host == holder or (holder is None and host in self.fleet.pools.hosts_of(key))

    def claimed(self, key: Key) -> int:
        """When *key* of a pool was attached elsewhere, as far as we have heard; 0: nowhere."""
        claims = [claim for _host, claim in self._claims(key)]
        return max((claim.born for claim in claims), default=0)

    def _claims(self, key: Key) -> list[tuple[str, Claim]]:
        """(host, claim) of the other hosts that say that they have *key* of a pool."""
        hosts, limit = self.fleet.pools.hosts_of(key), now_us() + AHEAD_US
        found = []
        for host in hosts:
            trunk = self.trunks.get(host)
            claim = trunk.claims.get(key) if trunk is not None else None
            if claim is not None and 0 < claim.born <= limit:
                found.append((host, claim))
        return found

    def settle(self, key: Key) -> None:
        """Find who has *key* of a pool now, and tell whoever wants to know."""
        if key in self.fleet.endpoints:
            return
        claims = [(claim.born, host) for host, claim in self._claims(key)]
        own = self.registry.endpoints.get(key)
        ours = own is not None and own.spec.born and not own.removed
        if own is not None and ours:
            claims.append((own.spec.born, self.config.host))
        before = self._holders.pop(key, None)
        # One that has gone is remembered: whoever comes next has moved from there.
        born, host = max(claims, default=(0, before))
        if host is not None:
            while len(self._holders) >= HOLDERS_MAX:
                del self._holders[next(iter(self._holders))]
            self._holders[key] = host
        if claims and host is not None:
            if before not in (None, host):
                self.counters["moved"] += 1
                log.info("moved", vip=key[1], tenant=key[0], before=before, now=host)
                # Who was there may say hello as *key* no more.
                self.broadcast({"op": "unpair", "key_ids": self.trunks.keys_of({str(before)})})
            if before not in (None, host) or (ours and host != self.config.host):
                self.on_moved(key, host, born)
        self._tell_askers([key])

    def apply(self, config: RouterConfig, fleet: FleetMap) -> None:
        """A new map: what it moved or removed is void, and said to be so at once."""
        old, self.fleet, self.config = self.fleet, fleet, config
        self._wanted = {host: at for host, at in self._wanted.items() if host in fleet.hosts}
        changed = {
            key
            for key in old.endpoints.keys() | fleet.endpoints.keys()
            if _place(old, key) != _place(fleet, key)
        }
        for key, host in list(self._holders.items()):
            if key in fleet.endpoints or host not in fleet.pools.hosts_of(key):
                del self._holders[key]
                changed.add(key)
        if fleet.pools.specs != old.pools.specs:
            # What peers said before the map allowed it.
            for trunk in self.trunks.all():
                for key, claim in trunk.claims.items():
                    if claim.born and key not in self._holders:
                        self.settle(key)
        if not changed:
            return
        self._revoke_sources(old, changed)
        for ep in self.registry.endpoints.values():
            touched = [vip for vip in ep.asked if (ep.spec.tenant, vip) in changed]
            self._void(ep, touched)
            for vip in touched:
                self._push(ep, vip)

    def _revoke_sources(self, old: FleetMap, changed: set[Key]) -> None:
        """Hosts lost vips: workers must ask again who may speak for whom."""
        losers = {spec.host for key in changed if (spec := old.endpoints.get(key)) is not None}
        key_ids = self.trunks.keys_of(losers)
        if key_ids:
            self.broadcast({"op": "unpair", "key_ids": key_ids})

    def broadcast(self, message: Message) -> None:
        """One message to every worker."""
        for ep in self.registry.endpoints.values():
            ep.tell(message)

    # --- from workers -------------------------------------------------------------

    def on_worker_message(self, ep: Endpoint, message: Message) -> None:
        """One message of a worker. Raises KeyError, TypeError, ValueError when malformed."""
        op = message.get("op")
        if op == "locate":
            self._locate(ep, _vip(message["vip"]))
        elif op == "pair":
            self._pair(ep, _number(message["key_id"], 32), _vip(message["vip"]))
        elif op == "query":
            self._query_of_worker(ep, message)
        elif op == "answer":
            self._answered(ep, _number(message["id"], 64), bool(message["probe"]))
        elif op == "withdraw":
            self._withdraw_of_worker(ep, message)
        elif op == "using":
            self._using(ep, message)
        else:
            raise ValueError("unknown op")

    def _locate(self, ep: Endpoint, vip: str) -> None:
        self.counters["locate"] += 1
        ep.asked.pop(vip, None)
        while len(ep.asked) >= ASKS_MAX:
            oldest = next(iter(ep.asked))
            del ep.asked[oldest]
            self._void(ep, [oldest])
        ep.asked[vip] = None
        key = (ep.spec.tenant, vip)
        holder = self.host_of(key)
        # Where a vip of a pool is, only those can say that may have it.
        hosts = self.fleet.pools.hosts_of(key) if holder is None else (holder,)
        for host in hosts:
            if host != self.config.host:
                self._wanted[host] = time.monotonic()
                self.trunks.demand(host)
        self._push(ep, vip)

    def _using(self, ep: Endpoint, message: Message) -> None:
        """A worker holds leases of these peers: their trunks are in use."""
        listed = message["vips"]
        if not isinstance(listed, list) or len(listed) > WITHDRAW_VIPS_MAX:
            raise ValueError("vips")
        now = time.monotonic()
        for vip in map(_vip, listed):
            host = self.host_of((ep.spec.tenant, vip))
            if host is not None:
                self._wanted[host] = now

    def _push(self, ep: Endpoint, vip: str) -> None:
        """Tell *ep* where *vip* is, as of now."""
        ep.tell({"op": "located", "vip": vip, **self._location(ep, vip)})

    @staticmethod
    def _void(ep: Endpoint, vips: list[str]) -> None:
        if vips and ep.link is not None:
            ep.link.send_vips("unlocate", vips)

    def _location(self, ep: Endpoint, vip: str) -> Message:
        key = (ep.spec.tenant, vip)
        host = self.host_of(key)
        if key == ep.key:
            return _nowhere(R_OWN_ADDRESS)
        if host is None:
            return _nowhere(R_UNKNOWN_PEER)
        if host == self.config.host:
            peer = self.registry.endpoints.get(key)
            if peer is None or not peer.up:
                return _nowhere(R_NO_ROUTER)
            port, generation, address = peer.port, peer.generation, self.config.address
            key_id, secret = self.trunks.self_key_id, self.trunks.self_key
        else:
            trunk = self.trunks.get(host)
            if trunk is None:
                return _nowhere(R_NO_TRUNK)
            claim = trunk.claims.get(key)
            if claim is None:
                return _nowhere(R_NO_ROUTER)
            port, generation, address = claim.port, claim.generation, self.fleet.hosts[host].address
            # Hellos to the peer are made under the key that the peer gave us.
            key_id, secret = trunk.peer_key_id, trunk.peer_key
        src, dst = pack_addr(ep.spec.vip), pack_addr(vip)
        made = pair_key(secret, ep.spec.tenant, src, dst, generation)
        return {
            "found": True, "reason": R_NONE, "address": address, "port": port,
            "key_id": key_id, "key": made.hex(),
        }  # fmt: skip

    def _pair(self, ep: Endpoint, key_id: int, vip: str) -> None:
        """May the host behind *key_id* speak for *vip*?"""
        self.counters["pair"] += 1
        key = (ep.spec.tenant, vip)
        held = self.trunks.key(key_id)
        reply: Message = {"op": "pair", "key_id": key_id, "vip": vip}
        if held is None:
            self.counters["pair_unknown_key"] += 1
            ep.tell({**reply, "ok": False, "key": None, "reason": R_NO_TRUNK})
            return
        host, secret = held
        if not self._speaks(host, key) or key == ep.key:
            self.counters["pair_refused"] += 1
            log.warning(
                "pair-refused", endpoint=ep.spec.label, vip=vip, tenant=ep.spec.tenant, peer=host,
                cause="the map does not put this vip there",
                next="push one map to all hosts; if it is current, examine the peer",
            )  # fmt: skip
            ep.tell({**reply, "ok": False, "key": None, "reason": R_REFUSED})
            return
        # Of our own generation: what was said to a worker before this one is void.
        src, dst = pack_addr(vip), pack_addr(ep.spec.vip)
        made = pair_key(secret, ep.spec.tenant, src, dst, ep.generation)
        ep.tell({**reply, "ok": True, "key": made.hex(), "reason": R_NONE})

    def _withdraw_of_worker(self, ep: Endpoint, message: Message) -> None:
        port = _number(message["port"], 16)
        listed = message["vips"]
        if not isinstance(listed, list) or len(listed) > WITHDRAW_VIPS_MAX:
            raise ValueError("vips")
        batches: dict[str, list[Frame]] = {}
        dst = pack_addr(ep.spec.vip)
        for vip in map(_vip, listed):
            key = (ep.spec.tenant, vip)
            host = self.host_of(key)
            if host == self.config.host:
                peer = self.registry.endpoints.get(key)
                if peer is not None:
                    peer.tell({"op": "withdraw", "vip": ep.spec.vip, "port": port})
            elif host is not None:
                frame = Withdraw(ep.spec.tenant, pack_addr(vip), dst, port)
                batches.setdefault(host, []).append(frame)
        for host, batch in batches.items():
            trunk = self.trunks.get(host)
            # Without a trunk the peer's leases went with it.
            if trunk is not None:
                trunk.send_many(batch)

    # --- queries ------------------------------------------------------------------

    def _query_of_worker(self, ep: Endpoint, message: Message) -> None:
        number = _number(message["id"], 64)
        src, sport = _vip(message["vip"]), _number(message["sport"], 16)
        dport = _number(message["dport"], 16)
        key = (ep.spec.tenant, src)
        host = self.host_of(key)
        target: Party | None
        if host == self.config.host:
            target = self.registry.endpoints.get(key)
        else:
            target = self.trunks.get(host) if host is not None else None
        if target is None or not self._ask(ep, number, target, key, sport, ep.spec.vip, dport):
            self.counters["query_unanswerable"] += 1
            ep.tell({"op": "answer", "id": number, "probe": False})

    def _ask(
        self, asker: Party, asker_id: int, target: Party, src: Key, sport: int, dst: str, dport: int
    ) -> bool:
        """Pass a query on; False if it cannot be."""
        if self._load[id(asker)] >= QUERIES_MAX:
            self.counters["query_crowded"] += 1
            return False
        self._next_id = number = self._next_id + 1 & 0x7FFFFFFFFFFFFFFF
        if isinstance(target, Endpoint):
            sent = target.tell(
                {"op": "query", "id": number, "vip": src[1], "sport": sport,
                 "dst": dst, "dport": dport}
            )  # fmt: skip
        else:
            frame = Query(number, src[0], pack_addr(src[1]), sport, pack_addr(dst), dport)
            sent = target.send(frame, droppable=True)
        if not sent:
            return False
        self._questions[number] = Question(asker, asker_id, target, time.monotonic() + QUERY_S)
        self._load[id(asker)] += 1
        self._order.append(number)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(QUERY_S, self._expire)
        return True

    def _answered(self, target: Party, number: int, probe: bool) -> None:
        question = self._questions.get(number)
        if question is None or question.target is not target:
            self.counters["answer_unasked"] += 1
            return
        self._reply(number, probe)

    def _reply(self, number: int, probe: bool) -> None:
        question = self._questions.pop(number)
        asker = question.asker
        self._load[id(asker)] -= 1
        if self._load[id(asker)] <= 0:
            del self._load[id(asker)]
        if isinstance(asker, Endpoint):
            asker.tell({"op": "answer", "id": question.asker_id, "probe": probe})
        else:
            asker.send(Answer(question.asker_id, probe), droppable=True)

    def _expire(self) -> None:
        """Answer "real" for whoever was not answered in time; all wait equally long."""
        self._timer = None
        now = time.monotonic()
        while self._order:
            question = self._questions.get(self._order[0])
            if question is not None:
                if question.due > now:
                    self._timer = asyncio.get_running_loop().call_later(
                        question.due - now, self._expire
                    )
                    return
                self.counters["query_expired"] += 1
                self._reply(self._order[0], False)
            self._order.popleft()

    def _drop_questions(self, party: Party) -> None:
        """*party* is gone: its questions are void, those to it answered "real"."""
        for number, question in list(self._questions.items()):
            if question.asker is party:
                del self._questions[number]
            elif question.target is party:
                self._reply(number, False)
        self._load.pop(id(party), None)

    # --- endpoints of this host ---------------------------------------------------

    def on_endpoint_changed(self, ep: Endpoint) -> None:
        """A worker of ours came up or went down: tell peers, near and far."""
        frame = _announcement(ep)
        for trunk in self.trunks.all():
            trunk.send(frame)
        if ep.spec.born:
            self.settle(ep.key)
        else:
            self._tell_askers([ep.key])
        if ep.up:
            # A successor knows what its predecessor had asked for.
            for vip in list(ep.asked):
                self._push(ep, vip)
        else:
            self._drop_questions(ep)

    def _tell_askers(self, keys: Iterable[Key]) -> None:
        """The whereabouts of *keys* changed: leases are void, locations are new."""
        for tenant, vip in keys:
            for ep in self.registry.endpoints.values():
                if ep.up and ep.spec.tenant == tenant and vip in ep.asked:
                    self._void(ep, [vip])
                    self._push(ep, vip)

    # --- from trunks --------------------------------------------------------------

    def on_trunk_up(self, trunk: Trunk) -> None:
        """Tell the peer which endpoints we serve; it does the same."""
        trunk.send_many([_announcement(ep) for ep in self.registry.endpoints.values() if ep.up])

    def on_trunk_down(self, trunk: Trunk) -> None:
        """Nothing of that host can be reached the fast way any more."""
        for ep in self.registry.endpoints.values():
            vips = [v for v in ep.asked if self.host_of((ep.spec.tenant, v)) == trunk.host]
            self._void(ep, vips)
            for vip in vips:
                self._push(ep, vip)
        self._drop_questions(trunk)

    def on_unpair(self, key_id: int) -> None:
        """A key of ours has died with its trunk."""
        self.broadcast({"op": "unpair", "key_ids": [key_id]})

    def wants(self, host: str) -> bool:
        """Did a worker ask for an endpoint of *host* lately, or hold a lease of one?"""
        return time.monotonic() - self._wanted.get(host, -WANTED_S) < WANTED_S

    def on_frame(self, trunk: Trunk, frame: Announce | Withdraw | Query | Answer) -> None:
        """One frame of a peer."""
        match frame:
            case Announce(tenant, vip, _, up, _, born):
                key = (tenant, unpack_addr(vip))
                if born and trunk.host in self.fleet.pools.hosts_of(key):
                    self.settle(key)
                    return
                if self.host_of(key) != trunk.host:
                    # Kept, but of no effect until a map of ours says so: on a map
                    # push the peer may be ahead of us.
                    self._refused(trunk, "announce", key, quiet=not up)
                    return
                self._tell_askers([key])
            case Withdraw(tenant, src, dst, port):
                key = (tenant, unpack_addr(dst))
                if self.host_of(key) != trunk.host:
                    self._refused(trunk, "withdraw", key)
                    return
                ep = self.registry.endpoints.get((tenant, unpack_addr(src)))
                if ep is not None:
                    ep.tell({"op": "withdraw", "vip": key[1], "port": port})
            case Query(number, tenant, src, sport, dst, dport):
                key = (tenant, unpack_addr(dst))
                ep = self.registry.endpoints.get((tenant, unpack_addr(src)))
                if self.host_of(key) != trunk.host:
                    self._refused(trunk, "query", key)
                    ep = None
                if ep is None or not self._ask(trunk, number, ep, ep.key, sport, key[1], dport):
                    trunk.send(Answer(number, False), droppable=True)
            case Answer(number, probe):
                self._answered(trunk, number, probe)

    def _refused(self, trunk: Trunk, what: str, key: Key, *, quiet: bool = False) -> None:
        self.counters[f"{what}_not_its_vip"] += 1
        (log.debug if quiet or what != "announce" else log.warning)(
            "not-its-vip", peer=trunk.host, what=what, tenant=key[0], vip=key[1],
            cause="our map does not put this vip there",
            next="push one map to all hosts; if it is current, examine the peer",
        )  # fmt: skip


def _announcement(ep: Endpoint) -> Announce:
    spec = ep.spec
    return Announce(spec.tenant, pack_addr(spec.vip), ep.port, ep.up, ep.generation, spec.born)


def _nowhere(reason: int) -> Message:
    return {"found": False, "reason": reason}


def _place(fleet: FleetMap, key: Key) -> tuple[str, str] | None:
    spec = fleet.endpoints.get(key)
    return (spec.host, fleet.hosts[spec.host].address) if spec is not None else None


def _vip(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("vip")
    return str(normal(value))


def _number(value: object, bits: int) -> int:
    if not is_whole(value) or not 0 <= value < 1 << bits:
        raise ValueError(f"{value!r} is no number of {bits} bits")
    return value
