# SPDX-License-Identifier: BSD-2-Clause
# Copyright (c) The slim.overlay authors
"""Packs a directory into a bundle whose name tells its content.

Private to this collection: the two halves of slim_release use it, the action
plugin on the controller and the module on the host.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import tarfile
from pathlib import Path

DIGEST_LETTERS = 12


def listing(top, include, exclude):
    """The files to install, relative to top, sorted.

    :raises ValueError: there is none, so something was not built.
    """

    def fits(text, patterns):
        return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns)

    found = []
    for here, directories, names in os.walk(top):
        directories[:] = sorted(name for name in directories if not fits(name, exclude))
        for name in names:
            relative = (Path(here) / name).relative_to(top).as_posix()
            left_out = fits(relative, exclude) or fits(name, exclude)
            if fits(relative, include) and not left_out:
                found.append(relative)
    if not found:
        raise ValueError(f"no file of {top} matches {', '.join(include)}")
    return sorted(found)


def _mode(path):
    """Normalised, so that the umask of a checkout does not make another release."""
    return 0o755 if os.access(path, os.X_OK) else 0o644


def release_name(version, top, files):
    """VERSION-DIGEST, where the digest covers names, modes and content."""
    digest = hashlib.sha256()
    for relative in files:
        path = Path(top) / relative
        content = path.read_bytes()
        digest.update(f"{relative}\0{_mode(path):o}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{version}-{digest.hexdigest()[:DIGEST_LETTERS]}"


def pack(top, files, target):
    """Write the bundle to the path target."""
    with tarfile.open(target, "w:gz") as bundle:
        for relative in files:
            path = Path(top) / relative
            entry = tarfile.TarInfo(relative)
            entry.size = path.stat().st_size
            entry.mode = _mode(path)
            with path.open("rb") as stream:
                bundle.addfile(entry, stream)


def unpack(source, target):
    """Unpack a bundle of ours; anything but plain files inside target is an error."""
    with tarfile.open(source, "r:gz") as bundle:
        for entry in bundle:
            relative = Path(entry.name)
            if not entry.isfile() or relative.is_absolute() or ".." in relative.parts:
                raise tarfile.TarError(f"unexpected entry {entry.name}")
            place = Path(target) / relative
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            content = bundle.extractfile(entry)
            with content, place.open("wb") as stream:
                shutil.copyfileobj(content, stream)
            place.chmod(entry.mode)


def copy(top, files, target):
    """Copy files that are on the host already."""
    for relative in files:
        source = Path(top) / relative
        place = Path(target) / relative
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        shutil.copyfile(str(source), str(place))
        place.chmod(_mode(source))
