# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""IPv4 addresses of this host, with nothing but the kernel's own calls.

Private to this collection.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct

# netdevice(7): get the interfaces' IPv4 addresses.
SIOCGIFCONF = 0x8912
# struct ifreq of a 64-bit kernel, the only ones that are supported.
IFREQ_SIZE = 40
INTERFACES_MAX = 4096


def interface_addresses():
    """List of (interface, address)."""
    buffer = array.array("B", bytes(IFREQ_SIZE * INTERFACES_MAX))
    place, size = buffer.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, SIOCGIFCONF, struct.pack("iL", size, place))
    used = struct.unpack("iL", answer)[0]
    raw = buffer.tobytes()
    found = []
    for start in range(0, used, IFREQ_SIZE):
        name = raw[start : start + 16].split(b"\0", 1)[0].decode()
        found.append((name, socket.inet_ntoa(raw[start + 20 : start + 24])))
    return found


def device_of(address):
    """The interface that has the address, or None."""
    for name, found in interface_addresses():
        if found == address:
            return name
    return None
