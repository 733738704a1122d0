# SPDX-License-Identifier: Apache-2.0
"""Runs cases.py in guests (tools/guest), one for each kernel; `make test` calls it.

Needs clang and gcc, for objects with holes in them and for the C programs.
--cost measures instead (cost.py), with instructions counted.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from pack import pack

HERE = Path(__file__).resolve().parent
BPF = HERE.parent
KMOD = BPF.parent / "kmod"

# On one CPU: it calls a hook while that is patched, and an emulator with two can
# run an int3 that the kernel has taken back already (seen once, "Oops: int3";
# known of QEMU's TCG in the kernel's own tracing tests).
ALONE = "upgrade_has_no_gap"

# Text of slim.bpf.c and what stands in its place. The load check must refuse
# those that are called holes; `other` differs in nothing but its bytes.
VARIANTS = {
    "other": ('= "GPL"', '= "Dual BSD/GPL"'),
    "hole-shutdown": ("tag && slim_is_revoked(tag) ? slim_aborted() : 0", "0"),
    "hole-option": ("slim_allow_set(level, name)", "level == 0"),
    "hole-chown": ("slim_count(SLIM_DENIED_CHOWN);\n\treturn -EPERM", "return 0"),
}


def _variants(scratch: Path) -> list[Path]:
    text = (BPF / "slim.bpf.c").read_text()
    made = []
    for name, (old, new) in VARIANTS.items():
        if old not in text:
            raise SystemExit(f"guests: {name}: slim.bpf.c has no {old!r} any more; mend VARIANTS")
        source, target = scratch / f"{name}.bpf.c", scratch / f"{name}.o"
        source.write_text(text.replace(old, new))
        subprocess.run(
            ["clang", "-target", "bpf", "-mcpu=v2", "-O2", "-g", "-std=gnu11", "-w", f"-I{BPF}",
             f"-I{BPF}/tests", "-I/usr/include/x86_64-linux-gnu", "-c", source, "-o", target],
            check=True,
        )  # fmt: skip
        made.append(target)
    garbage = scratch / "garbage.o"
    garbage.write_bytes(b"\x7fELF" + bytes(200))
    return [*made, garbage]


def _program(target: Path, *sources: Path) -> Path:
    """Static, and not position independent: lowlevel.c wants addresses of 32 bits."""
    command = ["gcc", "-static", "-no-pie", "-pthread", "-O1", "-Wall", "-Wextra"]
    subprocess.run([*command, "-o", target, *sources], check=True)
    return target


def _run(kernel: str, script: str, files: list[Path], *words: str) -> int:
    command = [
        sys.executable,
        "-m",
        "guest",
        "--kernel",
        kernel,
        "--mem",
        "768",
        "--deadline",
        "900",
    ]
    # SOCK_DESTROY for TCP; a host loads it by itself.
    command.append("--load=tcp_diag")
    return subprocess.run(
        [*command, "--init", HERE / script, *words, *files], check=False
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", required=True)
    parser.add_argument("--case", action="append", default=[])
    parser.add_argument("--smp", default="2")
    parser.add_argument("--cost", action="store_true")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        files = [
            pack(scratch / "python.tar"),
            _program(scratch / "lowlevel", HERE / "lowlevel.c"),
            _program(scratch / "cost", HERE / "cost.c"),
            _program(scratch / "slimtest", *sorted((KMOD / "tests").glob("*.c"))),
            KMOD / "allow.h",
            *_variants(scratch),
        ]
        cases = [f"--argument={case}" for case in options.case]
        for kernel in options.kernel:
            if options.cost:
                if _run(kernel, "cost.sh", files, "--icount"):
                    failed.append(f"{kernel} cost")
                continue
            if cases:
                if _run(kernel, "guest.sh", files, "--smp", options.smp, *cases):
                    failed.append(kernel)
                continue
            rest = f"--argument=-{ALONE}"
            if _run(kernel, "guest.sh", files, "--smp", options.smp, rest):
                failed.append(kernel)
            if _run(kernel, "guest.sh", files, f"--argument={ALONE}"):
                failed.append(f"{kernel} {ALONE}")
            if _run(kernel, "no-lsm.sh", files[:1], "--append=lsm=lockdown,capability,apparmor"):
                failed.append(f"{kernel} without the bpf LSM")
    print(f"guests: {'failed: ' + ', '.join(failed) if failed else 'all passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
