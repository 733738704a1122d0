# SPDX-License-Identifier: Apache-2.0
"""What stands in C and in Python must be the same; `make check` runs this (pytest does too)."""

import re
import sys
from pathlib import Path

BPF = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BPF))

from slim_bpf import attempts, layout, stats, tags  # noqa: E402 - found by the path above

PROGRAMS = (BPF / "slim.bpf.c").read_text()
HEADER = (BPF / "tags.h").read_text()


def test_statistics() -> None:
    names = re.search(r"enum slim_stat \{(.*?)\}", HEADER, re.DOTALL)
    assert names
    slots = [name.lower() for name in re.findall(r"SLIM_(\w+),", names.group(1))]
    assert slots == [*stats.NAMES, "stats"]


def test_tag() -> None:
    fields = re.search(r"struct slim_tag \{(.*?)\}", HEADER, re.DOTALL)
    assert fields
    sizes = {"__u64": "Q", "__u32": "I"}
    form = "=" + "".join(sizes[kind] for kind in re.findall(r"(__u\d+) \w+;", fields.group(1)))
    assert form == tags.TAG.format
    assert f"SLIM_LIVE = {tags.LIVE}" in HEADER and f"SLIM_REVOKED = {tags.REVOKED}" in HEADER


def test_hooks() -> None:
    programs = dict(
        re.findall(r'SEC\("lsm/(\w+)"\)\nint BPF_PROG\((slim_\w+)', PROGRAMS),
    )
    never = re.findall(r"^SLIM_NEVER\((\w+),", PROGRAMS, re.MULTILINE)
    programs |= {f"socket_{call}": f"slim_{call}" for call in never}
    assert programs == {hook.hook: hook.program for hook in layout.HOOKS}
    assert set(re.findall(r"^int (slim_\w+)\(", PROGRAMS, re.MULTILINE)) == set(layout.ITERATORS)


def test_maps() -> None:
    assert set(re.findall(r"\} (\w+) SEC\(\"\.maps\"\)", HEADER)) == set(layout.MAPS)


def test_every_program_is_tried() -> None:
    """Two need another machine's calls (32-bit, io_uring): cases.py makes those."""
    tried = {one.program for one in (*attempts.ATTEMPTS, *attempts.REVOKED_ATTEMPTS)}
    assert {hook.program for hook in layout.HOOKS} - tried == {"slim_ioctl32", "slim_uring_cmd"}


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
    print("C and Python agree")
