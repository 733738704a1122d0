# SPDX-License-Identifier: Apache-2.0
"""Tell the network where an address is now: gratuitous ARP (RFC 5227, section 3).

A vip that comes from another host has another MAC address, or is behind another port of
the bridges: without this its neighbours would go on sending to the old place.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct

CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h
ETH_P_ARP = 0x0806
SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h
ARPHRD_ETHER = 1
BROADCAST = b"\xff" * 6
REQUEST, REPLY = 1, 2


def frames(mac: bytes, address: str) -> list[bytes]:
    """The announcement as a request and as a reply: not everybody heeds both."""
    ip = socket.inet_aton(address)
    head = BROADCAST + mac + struct.pack("!H", ETH_P_ARP)
    return [
        head + struct.pack("!HHBBH", ARPHRD_ETHER, 0x0800, 6, 4, op) + mac + ip + target + ip
        for op, target in ((REQUEST, bytes(6)), (REPLY, BROADCAST))
    ]


def announce(netns: str, address: str) -> None:
    """Say it in the namespace at *netns*, where this process then stays. Raises OSError."""
    if ":" in address:
        return  # vips are of IPv4
    if os.path.samefile(netns, "/proc/self/ns/net"):
        return  # the host's own network is not ours to tell anything
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
    finally:
        os.close(fd)
    for _unused, ifname in socket.if_nameindex():
        if _address_of(ifname) == address:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind((ifname, 0))
                name = sock.getsockname()
                if name[3] == ARPHRD_ETHER and len(name[4]) == 6:
                    for frame in frames(name[4], address):
                        sock.send(frame)


def _address_of(ifname: str) -> str:
    """The first IPv4 address of an interface, "" if it has none."""
    request = struct.pack("16s24x", ifname.encode())  # struct ifreq: netdevice(7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, SIOCGIFADDR, request)
        except OSError:
            return ""
    return socket.inet_ntoa(answer[20:24])


def _setns(fd: int) -> None:
    if hasattr(os, "setns"):  # 3.12 and later
        os.setns(fd, CLONE_NEWNET)
        return
    import ctypes  # late: it is the heaviest import of all

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
