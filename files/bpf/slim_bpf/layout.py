# SPDX-License-Identifier: Apache-2.0
"""Where things lie, and which program stands at which hook."""

from dataclasses import dataclass
from pathlib import Path

OBJECT = Path(__file__).resolve().parent.parent / "slim.bpf.o"
BPFFS = Path("/sys/fs/bpf")
PINS = BPFFS / "slim"
# Filled and tested before anything in PINS is replaced. bpffs refuses dots in names.
STAGING = BPFFS / "slim_staging"
LSM_LIST = Path("/sys/kernel/security/lsm")
VMLINUX_BTF = Path("/sys/kernel/btf/vmlinux")

MAPS = ("tags", "stats", "revoke", "about")
ITERATORS = ("slim_list", "slim_mark", "slim_holders")
# These walk the map `tags`; slim_holders walks all descriptors.
MAP_ITERATORS = ("slim_list", "slim_mark")


@dataclass(frozen=True, slots=True)
class Hook:
    """One LSM program."""

    program: str
    hook: str
    # What answers for the hook where the kernel lacks it; empty: the hook must be there.
    instead: str = ""


HOOKS = (
    Hook("slim_connect", "socket_connect"),
    Hook("slim_bind", "socket_bind"),
    Hook("slim_listen", "socket_listen"),
    Hook("slim_accept", "socket_accept"),
    Hook("slim_getsockname", "socket_getsockname"),
    Hook("slim_getpeername", "socket_getpeername"),
    Hook("slim_setsockopt", "socket_setsockopt"),
    Hook("slim_getsockopt", "socket_getsockopt"),
    Hook("slim_sendmsg", "socket_sendmsg"),
    Hook("slim_recvmsg", "socket_recvmsg"),
    Hook("slim_shutdown", "socket_shutdown"),
    Hook("slim_ioctl", "file_ioctl"),
    Hook("slim_mmap", "mmap_file"),
    Hook("slim_ioctl32", "file_ioctl_compat", "this kernel's file_ioctl sees 32-bit callers too"),
    Hook("slim_uring_cmd", "uring_cmd", "this kernel has no io_uring commands on sockets"),
    Hook(
        "slim_chown",
        "path_chown",
        "nothing: a container's root can change the uid that the host's owner match sees "
        "(kernels before 6.1 cannot attach it)",
    ),
)
