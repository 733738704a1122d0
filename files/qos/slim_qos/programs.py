# SPDX-License-Identifier: Apache-2.0
"""The classifiers that say whose a packet is.

All run as plain (not direct-action) cls_bpf filters: 0 is "not mine, go on", -1 is
"mine, do the filter's action", which is a redirection to one of our ifb devices.

    leaves      an endpoint's packet on its way out of a device: known by its mark
    enters      a packet that comes in: known by the mark of the socket it is for
    from_fallback  what an endpoint sends over its veth; marked here, as the
                endpoint's own marks do not cross the namespace
    to_fallback what an endpoint is about to receive over its veth
    to_class    mark to class, on the queues themselves
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable

from slim_qos import bpf
from slim_qos.bpf import FP, R0, R1, R2, R3, R4, R5, R6, R7, R8, Code

ETH_HEADER = 14
ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
IPPROTO_TCP = 6
MINE, NOT_MINE = -1, 0


def _keys(indices: Iterable[int]) -> list[bytes]:
    return [struct.pack("=I", index) for index in sorted(indices)]


def _unless_ours(code: Code, register: int, mark: int) -> None:
    """Go on only if *register* has our upper half; it keeps its value."""
    code.move(R2, register)
    code.alu(bpf.AND, R2, 0xFFFF0000)
    code.jump(bpf.JNE, R2, mark, "no")


def _unless_in(code: Code, fd: int, register: int) -> None:
    """Go on only if the endpoint's index, which *register* has as a mark, is in the map."""
    code.move(R2, register)
    code.alu(bpf.AND, R2, 0xFFFF)
    code.alu(bpf.RSH, R2, 3)
    code.store(bpf.W, FP, -4, R2)
    code.map(R1, fd)
    code.move(R2, FP)
    code.add(R2, -4)
    code.call(bpf.MAP_LOOKUP)
    code.jump(bpf.JEQ, R0, 0, "no")


def _ends(code: Code) -> bytes:
    code.leave(MINE)
    code.label("no")
    code.leave(NOT_MINE)
    return code.assembled()


def leaves(mark: int, indices: Iterable[int]) -> int:
    """Redirect what carries the mark of one of these endpoints. Returns a descriptor."""
    chosen = bpf.make_set(_keys(indices), 4)
    try:
        code = Code()
        code.move(R6, R1)
        code.load(bpf.W, R7, R6, bpf.SKB_MARK)
        _unless_ours(code, R7, mark)
        # htb would take a class from here first, and who holds a socket may have set it.
        code.load(bpf.W, R2, R6, bpf.SKB_PRIORITY)
        code.alu(bpf.AND, R2, 0xFFFF0000)
        code.jump(bpf.JEQ, R2, 0, "harmless")
        code.set(R2, 0)
        code.store(bpf.W, R6, bpf.SKB_PRIORITY, R2)
        code.label("harmless")
        _unless_in(code, chosen, R7)
        return bpf.load(_ends(code), "slim_leaves")
    finally:
        os.close(chosen)


def enters(mark: int, indices: Iterable[int], major: int) -> int:
    """Redirect what is for a socket of one of these endpoints, class by skb->priority."""
    chosen = bpf.make_set(_keys(indices), 4)
    try:
        code = Code()
        code.move(R6, R1)
        code.load(bpf.W, R2, R6, bpf.SKB_PROTOCOL)
        code.jump(bpf.JEQ, R2, socket.htons(ETH_P_IPV6), "six")
        code.jump(bpf.JNE, R2, socket.htons(ETH_P_IP), "no")
        # IPv4: header length and version, protocol, fragments; RFC 791.
        _fetch(code, ETH_HEADER, -8, 1)
        code.load(bpf.B, R8, FP, -8)
        code.alu(bpf.AND, R8, 0x0F)
        code.alu(bpf.LSH, R8, 2)
        code.add(R8, ETH_HEADER)
        _fetch(code, ETH_HEADER + 9, -8, 1)
        code.load(bpf.B, R2, FP, -8)
        code.jump(bpf.JNE, R2, IPPROTO_TCP, "no")
        _fetch(code, ETH_HEADER + 6, -8, 2)
        code.load(bpf.H, R2, FP, -8)
        code.alu(bpf.AND, R2, socket.htons(0x1FFF))
        code.jump(bpf.JNE, R2, 0, "no")
        # struct bpf_sock_tuple: both addresses, both ports.
        _fetch(code, ETH_HEADER + 12, -16, 8)
        code.move(R1, R6)
        code.move(R2, R8)
        _fetch_at_r2(code, -8, 4)
        code.move(R2, FP)
        code.add(R2, -16)
        code.set(R3, 12)
        code.jump(bpf.JEQ, R3, 12, "look")
        code.label("six")
        # Extension headers are not followed: RFC 8200; TCP of ours has none.
        _fetch(code, ETH_HEADER + 6, -8, 1)
        code.load(bpf.B, R2, FP, -8)
        code.jump(bpf.JNE, R2, IPPROTO_TCP, "no")
        _fetch(code, ETH_HEADER + 8, -40, 32)
        _fetch(code, ETH_HEADER + 40, -8, 4)
        code.move(R2, FP)
        code.add(R2, -40)
        code.set(R3, 36)
        code.label("look")
        code.move(R1, R6)
        code.set(R4, -1)  # BPF_F_CURRENT_NETNS
        code.set(R5, 0)
        code.call(bpf.SK_LOOKUP_TCP)
        code.jump(bpf.JEQ, R0, 0, "no")
        code.load(bpf.W, R7, R0, bpf.SOCK_MARK)
        code.move(R1, R0)
        code.call(bpf.SK_RELEASE)
        _unless_ours(code, R7, mark)
        _unless_in(code, chosen, R7)
        code.alu(bpf.AND, R7, 0xFFFF)
        code.alu(bpf.OR, R7, major << 16)
        code.store(bpf.W, R6, bpf.SKB_PRIORITY, R7)
        return bpf.load(_ends(code), "slim_enters")
    finally:
        os.close(chosen)


def _fetch(code: Code, offset: int, place: int, size: int) -> None:
    """Bytes of the packet onto the stack."""
    code.move(R1, R6)
    code.set(R2, offset)
    _fetch_at_r2(code, place, size)


def _fetch_at_r2(code: Code, place: int, size: int) -> None:
    code.move(R3, FP)
    code.add(R3, place)
    code.set(R4, size)
    code.call(bpf.SKB_LOAD_BYTES)
    code.jump(bpf.JNE, R0, 0, "no")


def from_fallback(mark: int, so_priority: int, local: Iterable[str]) -> int:
    """Mark what an endpoint sends; redirect what stays on this host (destination among
    *local*). The rest meets ``leaves`` on the host's device, as it is on the wire."""
    chosen = bpf.make_set([ipaddress.IPv4Address(vip).packed for vip in sorted(local)], 4)
    try:
        code = Code()
        code.move(R6, R1)
        code.set(R2, mark)
        code.store(bpf.W, R6, bpf.SKB_MARK, R2)
        # A container with CAP_NET_RAW could name another's class with SO_PRIORITY.
        code.set(R2, so_priority)
        code.store(bpf.W, R6, bpf.SKB_PRIORITY, R2)
        code.load(bpf.W, R2, R6, bpf.SKB_PROTOCOL)
        code.jump(bpf.JNE, R2, socket.htons(ETH_P_IP), "no")
        _fetch(code, ETH_HEADER + 16, -4, 4)
        code.map(R1, chosen)
        code.move(R2, FP)
        code.add(R2, -4)
        code.call(bpf.MAP_LOOKUP)
        code.jump(bpf.JEQ, R0, 0, "no")
        return bpf.load(_ends(code), "slim_from")
    finally:
        os.close(chosen)


def to_fallback(classid: int) -> int:
    """Redirect all of it, to this class."""
    code = Code()
    code.move(R6, R1)
    code.set(R2, classid)
    code.store(bpf.W, R6, bpf.SKB_PRIORITY, R2)
    code.leave(MINE)
    return bpf.load(code.assembled(), "slim_to")


def to_class(mark: int, major: int, mask: int, base: int) -> int:
    """The class of a marked packet: *base* plus the bits of its mark under *mask*."""
    code = Code()
    code.move(R6, R1)
    code.load(bpf.W, R0, R6, bpf.SKB_MARK)
    _unless_ours(code, R0, mark)
    code.alu(bpf.AND, R0, mask)
    code.alu(bpf.OR, R0, major << 16 | base)
    code.leave_with_r0()
    code.label("no")
    code.leave(NOT_MINE)
    return bpf.load(code.assembled(), "slim_class")
