# SPDX-License-Identifier: Apache-2.0
"""Brings the kernel to what plan.py says, or tells how far it is from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from slim_qos import kernel, plan, raw
from slim_qos.kernel import EGRESS, INGRESS, ROOT, Class, Link, NetlinkError, Qdisc, Space
from slim_qos.plan import IN, LINK, OUT, Filter
from slim_qos.record import Record
from slim_qos.settings import Endpoint, Settings

# Queues of which kind, handle and options are all there is; others have classes and
# filters of their own, which could not be put back.
CLASSLESS = frozenset(
    (
        *("bfifo", "pfifo", "pfifo_fast", "noqueue"),
        *("cake", "codel", "fq", "fq_codel", "fq_pie", "netem", "pie", "red", "sfq", "tbf"),
    )
)
LEAF_KINDS = ("fq_codel", "bfifo")
"""Best first: the former keeps one stream's queue from delaying the others."""


class ShaperError(RuntimeError):
    """It cannot be done; the text names thing, cause and next step."""


@dataclass
class Outcome:
    """What was done, or would be done."""

    changes: list[str] = field(default_factory=list)
    # Endpoints whose fallback cannot be shaped now: name and reason.
    skipped: list[dict[str, str]] = field(default_factory=list)
    uses: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "changed": bool(self.changes),
            "changes": self.changes,
            "skipped": self.skipped,
            "uses": self.uses,
        }


class Shaper:
    """One pass over the host.

    :param dry: only tell. What a later step would find made by an earlier one counts as
        missing, and is told as well.
    """

    def __init__(self, settings: Settings, record: Record, space: Space, dry: bool) -> None:
        self.settings = settings
        self.record = record
        self.space = space
        self.dry = dry
        self.outcome = Outcome()
        self.links: dict[str, Link] = {}
        self.leaf = ""

    def do(self, text: str, action: Callable[[], Any]) -> None:
        """One step: told, unless it goes without saying, and done unless dry."""
        if text:
            self.outcome.changes.append(text)
        if not self.dry:
            try:
                action()
            except NetlinkError as error:
                raise ShaperError(
                    f"{text or 'queues'}: the kernel refused ({error}); it needs htb, ifb, cls_bpf, clsact and"
                    " mirred: load the modules, or give no rate"
                ) from error
            except OSError as error:
                raise ShaperError(f"{text or 'queues'}: {error}; run as root") from error

    def apply(self) -> Outcome:
        """Make what is missing, correct what differs, take away what is not wanted.

        :raises ShaperError: something that is not ours is in the way, or the kernel lacks
            what is needed.
        """
        self.links = self.space.links()
        devices = self._devices()
        self._link(devices)
        out, into = (
            self._ifb(name, handle, plan.classes(self.settings, side))
            for name, handle, side in (
                (plan.OUT_DEVICE, OUT, "egress"),
                (plan.IN_DEVICE, IN, "ingress"),
            )
        )
        if out:
            self._filter(plan.OUT_DEVICE, out, OUT, plan.out_root(self.settings), {})
        ifbs = {plan.OUT_DEVICE: out, plan.IN_DEVICE: into}
        hooks: dict[str, tuple[Filter | None, Filter | None]] = {}
        if self.settings.limited:
            pair = (plan.device_in(self.settings), plan.device_out(self.settings))
            hooks |= dict.fromkeys((*devices, "lo"), pair)
        for endpoint in self.settings.endpoints:
            both = (
                plan.veth_in(self.settings, endpoint), plan.veth_out(self.settings, endpoint)
            )  # fmt: skip
            if any(both):
                for name in self._veths(endpoint):
                    hooks[name] = both
        self._hooks(hooks, ifbs)
        # Last: nothing redirects to them any more.
        for name, index in ifbs.items():
            link = self.links.get(name)
            if not index and link is not None and link.alias == kernel.MARK:
                self.do(f"remove {name}", partial(self.space.ipr.link, "del", index=link.index))
        self.outcome.uses = {
            "devices": devices, "leaf": self.leaf, "selector": "SO_MARK and cls_bpf",
        }  # fmt: skip
        return self.outcome

    # --- devices ---------------------------------------------------------------
    def _devices(self) -> list[str]:
        """Names of what carries the packets between the hosts."""
        names = list(self.settings.devices)
        if not self.settings.limited and not self.settings.link:
            return [name for name in names if name in self.links]
        if not names:
            index = self.space.holder(self.settings.address)
            names = [link.name for link in self.links.values() if link.index == index]
            if not names:
                raise ShaperError(
                    f"host address {self.settings.address or '(none)'} is on no device of this"
                    " host; correct slim_host_address, or name slim_qos_devices"
                )
        for name in names:
            link = self.links.get(name)
            if link is None:
                raise ShaperError(f"device {name}: not there; correct slim_qos_devices")
            if link.type not in (kernel.ARPHRD_ETHER, kernel.ARPHRD_LOOPBACK):
                raise ShaperError(
                    f"device {name}: no Ethernet headers (type {link.type}), which our filters"
                    " count on; name the device below it in slim_qos_devices"
                )
        return names

    def _veths(self, endpoint: Endpoint) -> list[str]:
        """Names of the host's ends of the pairs that lead into the endpoint's namespace."""
        try:
            if kernel.is_home(endpoint.netns):
                raise ShaperError(
                    f"endpoint {endpoint.name}: netns {endpoint.netns} is that of the host;"
                    " correct slim_endpoints"
                )
            with kernel.inside(endpoint.netns) as there:
                inner = {link.peer: link.index for link in there.links().values() if link.peer}
        except OSError as error:
            self._skip(endpoint, f"netns {endpoint.netns}: {error.strerror}")
            return []
        names = [
            link.name
            for link in self.links.values()
            # Each end has the other's number; numbers of other namespaces coincide.
            if link.kind == "veth" and link.peer == inner.get(link.index)
        ]
        if not names:
            self._skip(endpoint, "no veth pair leads there: its fallback is not limited")
        return names

    def _skip(self, endpoint: Endpoint, reason: str) -> None:
        self.outcome.skipped.append({"endpoint": endpoint.name, "reason": reason})

    # --- queues ----------------------------------------------------------------
    def _ifb(self, name: str, handle: int, classes: list[Class]) -> int:
        """Index of one of our devices with its queue; 0 where it is not wanted, or only told."""
        if not classes:
            return 0
        link = self.links.get(name)
        if link is not None and link.alias != kernel.MARK:
            raise ShaperError(
                f"device {name} is there already and was not made by slim_qos; remove it"
            )
        if link is None:
            self.do(f"add ifb {name}", lambda: self.space.add_ifb(name))
            self.links = self.space.links()
            link = self.links.get(name)
        index = link.index if link is not None else 0
        roots = [q for q in self.space.qdiscs(index) if q.parent == ROOT] if index else []
        if not any(q.kind == "htb" and q.handle == handle for q in roots):
            self.do(f"{name}: htb", lambda: self.space.add_htb(index, handle, 0))
        self._tree(name, index, handle, classes)
        return index

    def _tree(self, name: str, index: int, handle: int, classes: list[Class]) -> None:
        there = self.space.classes(index, handle) if index else {}
        wanted = {c.minor: c for c in classes}
        # Children first: theirs are the smaller numbers but for the link's root.
        gone = sorted(set(there) - set(wanted), key=lambda minor: (there[minor].parent == 0, minor))
        for minor in gone:
            self.do(
                f"{name}: remove class {minor:x}",
                partial(raw.remove_class, index, handle | minor),
            )
        queues = {q.parent: q for q in self.space.qdiscs(index)} if index else {}
        told: set[int] = set()  # new classes, whose children go without saying
        for klass in classes:
            old = there.get(klass.minor)
            text = "" if klass.parent in told else f"{name}: {_words(klass)}"
            other = old is None or _figures(old) != _figures(klass)
            if other:
                if old is None and not klass.leaf:
                    told.add(klass.minor)
                self.do(text, partial(self.space.put_class, index, handle, klass, old is None))
            if not klass.leaf:
                continue
            queue = queues.get(handle | klass.minor)
            known = queue is not None and queue.handle and queue.kind in LEAF_KINDS
            if known and queue is not None and not klass.spare:
                self.leaf = queue.kind
            if other or not known:
                text = "" if other else f"{name}: queue of class {klass.minor:x}"
                self.do(text, partial(self._leaf, index, handle, klass))

    def _leaf(self, index: int, handle: int, klass: Class) -> None:
        """The best queue that this kernel has."""
        parent = handle | klass.minor
        kinds = LEAF_KINDS[-1:] if klass.spare else (self.leaf,) if self.leaf else LEAF_KINDS
        for kind in kinds:
            try:
                self.space.put_leaf(index, kind, parent, 0, plan.queue_limit(klass.ceil))
            except NetlinkError as error:
                if kind == LEAF_KINDS[-1] or error.code not in (kernel.ENOENT, kernel.EOPNOTSUPP):
                    raise
            else:
                if not klass.spare:
                    self.leaf = kind
                return

    def _link(self, devices: list[str]) -> None:
        """The device's own root: ours where a link rate is given, else as it was."""
        classes = plan.link_classes(self.settings)
        wanted = devices if classes else []
        for name in [*self.record.roots]:
            if name not in wanted:
                self._unlink(name)
        for name in wanted:
            index = self.links[name].index
            root = next((q for q in self.space.qdiscs(index) if q.parent == ROOT), None)
            if root is None or (root.kind, root.handle) != ("htb", LINK):
                self._own(name, index, root)
            self._tree(name, index, LINK, classes)
            self._filter(name, index, LINK, plan.link_root(self.settings), {})

    def _own(self, name: str, index: int, root: Qdisc | None) -> None:
        """Put our htb at a device's root, with what was there on record."""
        saved = ""
        if root is not None and root.handle:  # 0: the kernel's own choice, which comes back
            if not self.settings.replace_root:
                raise ShaperError(
                    f"device {name}: root qdisc {root.kind} {root.handle >> 16:x}: is not ours;"
                    " set slim_qos_replace_root: true if it may make way, or give no link rate"
                )
            if root.kind not in CLASSLESS:
                raise ShaperError(
                    f"device {name}: root qdisc {root.kind} {root.handle >> 16:x}: has classes of"
                    " its own, which nobody could put back; remove it yourself, or give no link rate"
                )
            saved = raw.save(index)
        if name not in self.record.roots:
            self.record.roots[name] = saved
            self._save()
        what = f" in place of {root.kind}" if root is not None and root.handle else ""
        if root is not None and root.handle:
            old = root
            self.do(f"{name}: remove {old.kind}", lambda: raw.remove(index, old.handle))
        self.do(
            f"{name}: htb for the link{what}",
            lambda: self.space.add_htb(index, LINK, plan.LINK_BASE | plan.NORMAL),
        )

    def _unlink(self, name: str) -> None:
        """Give a device its old root back."""
        saved = self.record.roots[name]
        link = self.links.get(name)
        if link is not None:
            root = next((q for q in self.space.qdiscs(link.index) if q.parent == ROOT), None)
            if root is not None and (root.kind, root.handle) == ("htb", LINK):
                ours = root
                self.do(f"{name}: remove htb", partial(self.space.drop_qdisc, link.index, ours))
                if saved:
                    self.do(f"{name}: the old root", partial(raw.restore, link.index, saved))
        del self.record.roots[name]
        self._save()

    # --- filters ---------------------------------------------------------------
    def _hooks(
        self, hooks: dict[str, tuple[Filter | None, Filter | None]], ifbs: dict[str, int]
    ) -> None:
        """Filters of clsact, where they are wanted and nowhere else."""
        there = self.space.clsacts()
        for link in self.links.values():
            wanted = hooks.get(link.name, (None, None))
            clsact = there.get(link.index)
            if clsact is not None and clsact.kind != "clsact" and any(wanted):
                raise ShaperError(
                    f"device {link.name}: qdisc {clsact.kind}: is not ours, and clsact has no place"
                    " beside it; have its owner use clsact"
                )
            if clsact is None and any(wanted):
                self.record.clsact.add(link.name)
                self._save()
                self.do(f"{link.name}: clsact", partial(self.space.add_clsact, link.index))
            if clsact is None and (self.dry or not any(wanted)):
                for chosen in wanted:
                    if chosen is not None:
                        self.do(f"{link.name}: filter {chosen.name}", lambda: None)
                continue
            for parent, chosen in zip((INGRESS, EGRESS), wanted, strict=True):
                if chosen is None:
                    self._no_filter(link.name, link.index, parent)
                else:
                    self._filter(link.name, link.index, parent, chosen, ifbs)
            if link.name in self.record.clsact and not any(wanted):
                self._drop_clsact(link)

    def _filter(
        self, name: str, index: int, parent: int, wanted: Filter, ifbs: dict[str, int]
    ) -> None:
        target = ifbs.get(wanted.redirect, 0)
        # A device that was made anew has another number: the filter is another, too.
        full = f"{wanted.name}:{target}" if target else wanted.name
        there = self.space.filters(index, parent) if index else {}
        if there.get(1, (0, ""))[1] == full:
            return

        def put() -> None:
            fd = wanted.make()
            try:
                self.space.put_filter(index, parent, fd, full, target)
            finally:
                os.close(fd)

        self.do(f"{name}: filter {full}", put)

    def _no_filter(self, name: str, index: int, parent: int) -> None:
        for _preference, text in self.space.filters(index, parent).values():
            if text.startswith(f"{plan.NAME}:"):
                self.do(
                    f"{name}: remove filter {text}", partial(self.space.drop_filter, index, parent)
                )

    def _drop_clsact(self, link: Link) -> None:
        """Ours, unless somebody else uses it by now."""
        if not any(self.space.has_filters(link.index, parent) for parent in (INGRESS, EGRESS)):
            clsact = Qdisc("clsact", 0xFFFF0000, kernel.CLSACT)
            self.do(
                f"{link.name}: remove clsact", partial(self.space.drop_qdisc, link.index, clsact)
            )
        self.record.clsact.discard(link.name)
        self._save()

    def _save(self) -> None:
        if not self.dry:
            self.record.save()


def _words(klass: Class) -> str:
    if klass.leaf:
        return (
            f"class {klass.minor:x} from {klass.rate} to {klass.ceil} bit/s, priority {klass.prio}"
        )
    return f"class {klass.minor:x} {klass.ceil} bit/s"


def _figures(klass: Class) -> tuple[int, int, int, int]:
    """What of a class can differ; the kernel keeps bytes per second."""
    return (klass.parent, klass.rate // 8, klass.ceil // 8, klass.prio)
