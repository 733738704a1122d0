# SPDX-License-Identifier: Apache-2.0
"""The safe part of the escape suite: what secure mode must refuse on a host socket.

attempts(fd) makes each call by its number, past the shim and any other library, and
returns the names of those that the kernel did not answer with EPERM. Were one let
through, it would harm our own connection and nothing else. The whole suite, and what
each call would give, is in docs/security.md. Runs inside an endpoint, after CLIENT.
"""

import ctypes
import errno
import platform
import struct

# Calls in the order of NAMES: asm/unistd_64.h; asm-generic/unistd.h.
NAMES = "connect accept sendto recvfrom bind listen getsockname getpeername setsockopt getsockopt ioctl fchown"
NUMBERS = {
    "x86_64": (42, 43, 44, 45, 49, 50, 51, 52, 54, 55, 16, 93),
    "aarch64": (203, 202, 206, 207, 200, 201, 204, 205, 208, 209, 29, 55),
}


def attempts(fd: int) -> list[str]:
    """What was let through; one entry that says so where nothing can be tried."""
    if platform.machine() not in NUMBERS:
        return ["nothing can be tried on " + platform.machine()]
    number = dict(zip(NAMES.split(), NUMBERS[platform.machine()], strict=True))
    libc = ctypes.CDLL(None, use_errno=True)
    unspec, local = struct.pack("=H14x", 0), struct.pack("=HHI8x", 2, 0, 0)
    room, size, one = (
        ctypes.create_string_buffer(256),
        ctypes.c_uint32(256),
        ctypes.create_string_buffer(struct.pack("=i", 1)),
    )

    def option(call: str, level: int, name: int) -> tuple[object, ...]:
        last = ctypes.byref(size) if call == "getsockopt" else 4
        return call, level, name, room if call == "getsockopt" else one, last

    # Constants: asm-generic/socket.h, linux/in.h, linux/tcp.h, linux/sockios.h, linux/socket.h.
    tries = {
        "getsockname": ("getsockname", room, ctypes.byref(size)),
        "getpeername": ("getpeername", room, ctypes.byref(size)),
        "SO_PEERNAME": option("getsockopt", 1, 28),
        "SO_BINDTODEVICE": option("getsockopt", 1, 25),
        "IP_PKTOPTIONS": option("getsockopt", 0, 9),
        "SO_MARK": option("setsockopt", 1, 36),
        "SO_PRIORITY": option("setsockopt", 1, 12),
        "SO_MAX_PACING_RATE": option("setsockopt", 1, 47),
        "IP_TOS": option("setsockopt", 0, 1),
        "TCP_ULP": option("setsockopt", 6, 31),
        "TCP_REPAIR": option("setsockopt", 6, 19),
        "SIOCGIFCONF": ("ioctl", 0x8912, room),
        "SIOCGIFNAME": ("ioctl", 0x8910, room),
        "fchown": ("fchown", -1, -1),
        "MSG_ERRQUEUE": ("recvfrom", room, 64, 0x2000 | 0x40, None, None),
        "MSG_ZEROCOPY": ("sendto", room, 0, 0x4000000, None, 0),
        "MSG_FASTOPEN": ("sendto", room, 0, 0x20000000, local, 16),
        "sendto an address": ("sendto", room, 0, 0, local, 16),
        "bind": ("bind", local, 16),
        "listen": ("listen", 1),
        "accept": ("accept", None, None),
        "connect": ("connect", local, 16),
        "connect AF_UNSPEC": ("connect", unspec, 16),
    }
    through = []
    for name, (call, *words) in tries.items():
        result = libc.syscall(number[str(call)], fd, *words)
        if result != -1 or ctypes.get_errno() != errno.EPERM:
            through.append(name)
    return through
