# SPDX-License-Identifier: Apache-2.0
"""`ansible-test sanity` on a copy of the collection.

ansible-test wants its input below ansible_collections/NAMESPACE/NAME, and reads
every file that it finds there; so the copy holds what a release would hold. The
copy lies outside of the checkout, whose git would call all of it ignored.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from gate.parts import CACHE, CHECKOUT, TOOLS

HOME = CACHE / "sanity-home"


def ignored(path: str, patterns: list[str]) -> bool:
    """Would `ansible-galaxy collection build` leave this file out?"""
    parts = path.split("/")
    heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    return any(
        fnmatch.fnmatch(candidate, pattern)
        for pattern in patterns
        for candidate in (*heads, parts[-1])
    )


def files() -> list[str]:
    """What belongs to the checkout: all of it that git would not ignore."""
    listed = subprocess.run(
        ["git", "-C", str(CHECKOUT), "ls-files", "-coz", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted({name for name in listed.split("\0") if name})


def copy(target: Path) -> None:
    """Copy what a release would hold."""
    patterns = yaml.safe_load((CHECKOUT / "galaxy.yml").read_text()).get("build_ignore", [])
    for name in files():
        source = CHECKOUT / name
        if ignored(name, patterns) or not (source.exists() or source.is_symlink()):
            continue
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, place, follow_symlinks=False)


def check(target: Path, arguments: list[str]) -> int:
    """Run ansible-test in the copy and return its status."""
    # Its own home: what ansible-test builds stays for the next time, and the script
    # that it would download is replaced by ours, for machines without internet.
    stand_in = HOME / ".ansible" / "test" / "cache" / "get_pip_24_2.py"
    stand_in.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("get_pip.py"), stand_in)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {
        **os.environ,
        "HOME": str(HOME),
        "XDG_CONFIG_HOME": os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config")),
    }
    command = [str(TOOLS / "ansible-test"), "sanity", "--local", "--color", "no"]
    # Modules run on the lab's interpreter; other versions are not on every machine.
    process = subprocess.Popen(
        [*command, "--python", version, *arguments],
        cwd=target,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    tests = 0
    for line in process.stdout:
        sys.stdout.write(line)
        tests += line.startswith("Running sanity test")
    status = process.wait()
    if status == 0 and tests == 0:
        print("sanity: ansible-test ran no test at all; does it see the files?")
        return 1
    return status


def main(arguments: list[str]) -> int:
    """Copy and check; further arguments go to ansible-test."""
    with tempfile.TemporaryDirectory(prefix="slim-sanity-") as place:
        target = Path(place) / "ansible_collections" / "slim" / "overlay"
        copy(target)
        return check(target, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
