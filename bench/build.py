# SPDX-License-Identifier: Apache-2.0
"""Compiles the measuring programs of bench/programs/*.c when they are needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from bench.lab import BenchError

SOURCES = Path(__file__).parent / "programs"


def compile_program(name: str, into: Path) -> Path:
    """Compile `name`.c into the directory; gives the program's path.

    Raises:
        BenchError: there is no compiler, or it complained.
    """
    target = into / name
    if target.exists():
        return target
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BenchError(
            "cc: not found; the measuring programs need a C compiler (apt install gcc libc6-dev)"
        )
    words = [compiler, "-O2", "-Wall", "-o", str(target), str(SOURCES / f"{name}.c")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise BenchError(f"{name}.c: does not compile: {done.stderr.strip()[:500]}")
    return target
