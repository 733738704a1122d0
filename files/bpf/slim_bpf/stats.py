# SPDX-License-Identifier: Apache-2.0
"""The slots of the map `stats`: enum slim_stat of tags.h, in its order."""

NAMES = (
    "denied_connect",
    "denied_bind",
    "denied_listen",
    "denied_accept",
    "denied_getsockname",
    "denied_getpeername",
    "denied_setsockopt",
    "denied_getsockopt",
    "denied_sendmsg",
    "denied_recvmsg",
    "denied_ioctl",
    "denied_mmap",
    "denied_chown",
    "denied_uring_cmd",
    "revoked_total",
    "revoked_calls",
)
