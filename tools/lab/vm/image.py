# SPDX-License-Identifier: Apache-2.0
"""The disk that every node starts from: made once, kept in .cache/vm."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lab.errors import LabError
from lab.vm import layout

MIRROR = os.environ.get("SLIMLAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")


def packages() -> list[str]:
    """What a node has beside Debian's minimal system and the kernels."""
    lines = [line for path in layout.PACKAGES for line in path.read_text().splitlines()]
    return sorted({line for line in lines if line and not line.startswith("#")})


def recipe() -> str:
    """A name for everything that the image is made from, its packages' versions aside."""
    digest = hashlib.sha256()
    files = [layout.SOURCES / name for name in ("agent.c", "image.sh", "initrd-init.sh")]
    files += sorted(path for path in (layout.SOURCES / "rootfs").rglob("*") if path.is_file())
    for path in files:
        digest.update(f"{path.relative_to(layout.SOURCES)}\0".encode() + path.read_bytes())
    digest.update(f"{layout.KERNELS} {layout.SPARE_MB} {packages()}".encode())
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Hold the cache while something is made there. The kernel drops the lock when we die."""
    layout.CACHE.mkdir(parents=True, exist_ok=True)
    with (layout.CACHE / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(*words: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(
            f"{words[0]}: status {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )


def provide() -> Path:
    """The image's directory; makes it if there is none of this recipe. The lock is held."""
    target = layout.CACHE / f"image-{recipe()}"
    if (target / "base.ext4").exists():
        return target
    started = time.monotonic()
    print("slimlab: making the image of the virtual machines, once", file=sys.stderr, flush=True)
    # What a killed run left.
    for left in layout.CACHE.glob("new-*"):
        shutil.rmtree(left)
    new = layout.CACHE / f"new-{target.name}"
    new.mkdir(mode=0o700)
    for name in ("key", "host_key"):
        _run(
            "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"slimlab-{name}", "-f", new / name
        )
    _run(
        *("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", new / "agent"),
        layout.SOURCES / "agent.c",
    )
    kernels = [":".join([name, *packages]) for name, packages in layout.KERNELS.items()]
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("nice", "-n", "5", "sh", str(layout.SOURCES / "image.sh")),
            *(str(new), str(layout.CACHE / "downloads"), MIRROR, str(layout.SPARE_MB)),
            *(" ".join(packages()), *kernels),
        ],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(
            f"the image could not be made (status {done.returncode}); the words above and the "
            f"logs in {new} say why"
        )
    new.rename(target)
    print(f"slimlab: image made in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return target
