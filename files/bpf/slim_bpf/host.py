# SPDX-License-Identifier: Apache-2.0
"""Can this host run secure mode by BPF? Looks only."""

import os

from .errors import BpfError
from .layout import BPFFS, LSM_LIST, VMLINUX_BTF


def require_lsm() -> None:
    """Raise BpfError unless BPF programs at LSM hooks are called at all.

    Without "bpf" in the list the kernel attaches such programs without an
    error and never calls them.
    """
    try:
        active = LSM_LIST.read_text().strip().split(",")
    except OSError as error:
        raise BpfError(
            str(LSM_LIST), os.strerror(error.errno or 0), "mount securityfs at /sys/kernel/security"
        ) from error
    if "bpf" not in active:
        names = ",".join(active)
        raise BpfError(
            "kernel",
            f"its LSM list ({names}) lacks bpf, so that BPF programs at LSM hooks are never called",
            f"boot with lsm={names},bpf (needs CONFIG_BPF_LSM), or use the kernel module",
        )


def require() -> None:
    """Raise BpfError with the first thing that is missing."""
    require_lsm()
    if not VMLINUX_BTF.exists():
        raise BpfError(
            str(VMLINUX_BTF),
            "missing",
            "use a kernel with CONFIG_DEBUG_INFO_BTF, or the kernel module",
        )
    # uapi/linux/magic.h would say it too; a mount's device differs from its parent's.
    if not BPFFS.is_dir() or BPFFS.stat().st_dev == BPFFS.parent.stat().st_dev:
        raise BpfError(str(BPFFS), "no bpf file system there", f"mount -t bpf bpf {BPFFS}")
