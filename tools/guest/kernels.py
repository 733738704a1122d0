# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernels and their headers, unpacked below `.cache/guest`.

Packages come from Debian 12 by `apt-get download` with lists of our own, whatever
the machine runs, and are unpacked by `dpkg-deb -x`, so that the machine stays as
it is. The headers expect to live below `/usr/src`; the
two places where they say so are rewritten, and `make -C KDIR M=...` works.
"""

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import GuestError

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "guest"

MIRROR = os.environ.get("SLIMLAB_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# The meta packages of Debian 12 that follow each series.
META = {"6.1": "linux-image-cloud-amd64", "6.12": "linux-image-6.12-cloud-amd64"}

# The series whose checkpatch.pl is used for all, and what of scripts/ it needs.
CHECKPATCH_OF = "6.1"
CHECKPATCH_FILES = ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt")


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel."""

    name: str
    """what the command line calls it: 6.1 or 6.12"""
    release: str
    """uname -r"""
    root: Path
    """where the packages are unpacked"""

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def config(self) -> Path:
        return self.root / "boot" / f"config-{self.release}"

    @property
    def headers(self) -> Path:
        """KDIR for `make`."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release


def _run(*command: str, cwd: Path | None = None) -> str:
    """Run a command; its output. Raises GuestError with the command's own words."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=600, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestError(f"{command[0]}: {error}; install what it belongs to") from error
    if done.returncode:
        raise GuestError(
            f"{' '.join(command[:3])}: {done.stderr.strip()[-400:]}; see `apt-get update`"
        )
    return done.stdout


class _Apt:
    """Debian 12's packages, beside whatever the machine's own apt knows."""

    def __init__(self, root: Path) -> None:
        """*root*: a directory for lists and sources."""
        for part in ("lists/partial", "cache/archives/partial"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "status").touch()
        (root / "sources.list").write_text(
            "".join(
                f"deb [arch=amd64 signed-by={KEYRING}] {place} main\n"
                for place in (
                    f"{MIRROR} bookworm",
                    f"{MIRROR} bookworm-updates",
                    f"{MIRROR}-security bookworm-security",
                )
            )
        )
        settings = {
            "Dir::Etc::sourcelist": root / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::State::lists": root / "lists",
            "Dir::State::status": root / "status",
            "Dir::Cache": root / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
        }
        self._options = [word for name in settings for word in ("-o", f"{name}={settings[name]}")]
        _run("apt-get", *self._options, "-qq", "update")

    def depends(self, package: str) -> list[str]:
        """What *package* depends on."""
        text = _run("apt-cache", *self._options, "depends", package)
        return re.findall(r"^ *\|?Depends: ([^\s<]+)", text, re.MULTILINE)

    def download(self, packages: list[str], target: Path) -> None:
        """Put the packages' files into *target*."""
        _run("apt-get", *self._options, "-qq", "download", *packages, cwd=target)


def _packages(apt: _Apt, name: str) -> tuple[str, list[str]]:
    """The release that the meta package stands for, and the packages to unpack."""
    image = next((one for one in apt.depends(META[name]) if one.startswith("linux-image-")), None)
    if image is None:
        raise GuestError(f"kernel {name}: {MIRROR} has no {META[name]}; name another mirror")
    release = image.removeprefix("linux-image-")
    headers = f"linux-headers-{release}"
    parts = [
        one for one in apt.depends(headers) if one.startswith(("linux-headers-", "linux-kbuild-"))
    ]
    return release, [image, headers, *parts]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _rewrite(kernel: Kernel) -> None:
    """Let the headers find each other where they are."""
    makefile = kernel.headers / "Makefile"
    makefile.write_text(
        makefile.read_text().replace("include /usr/src/", f"include {kernel.root}/usr/src/")
    )
    for name in ("build", "source"):
        link = kernel.modules / name
        if link.is_symlink():
            target = kernel.root / str(link.readlink()).lstrip("/")
            link.unlink()
            link.symlink_to(target)
    depmod = shutil.which("depmod", path="/usr/sbin:/sbin:/usr/bin")
    if depmod:
        _run(depmod, "-b", str(kernel.root), kernel.release)


def checkpatch() -> Path:
    """Have the kernel's checkpatch.pl, which only Debian's packages of sources carry."""
    target = CACHE / "checkpatch"
    script = target / "checkpatch.pl"
    with _lock(CACHE / "checkpatch.lock"):
        if script.exists():
            return script
        fresh = CACHE / "checkpatch.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        package = f"linux-source-{CHECKPATCH_OF}"
        _Apt(fresh / "apt").download([package], fresh)
        _run("dpkg-deb", "-x", str(next(fresh.glob("*.deb"))), str(fresh))
        # Of the 100 MB only this: where it is, and the two lists beside it.
        _run(
            "tar", "-xf", str(next(fresh.glob(f"usr/src/{package}.tar.*"))), "-C", str(fresh),
            "--strip-components=2",
            *(f"{package}/scripts/{name}" for name in CHECKPATCH_FILES),
        )  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name in CHECKPATCH_FILES:
            (fresh / name).rename(target / name)
        shutil.rmtree(fresh)
        return script


def prepare(name: str) -> Kernel:
    """Have a kernel and its headers, downloading them the first time."""
    if name not in META:
        raise GuestError(f"kernel {name}: unknown; choose one of {', '.join(META)}")
    stamp = CACHE / f"kernel-{name}"
    with _lock(CACHE / f"{name}.lock"):
        if stamp.exists():
            kernel = Kernel(name, stamp.read_text().strip(), CACHE / name)
            if kernel.image.exists() and kernel.headers.is_dir():
                return kernel
        apt = _Apt(CACHE / f"{name}.apt")
        release, packages = _packages(apt, name)
        kernel = Kernel(name, release, CACHE / name)
        fresh, debs = CACHE / f"{name}.new", CACHE / f"{name}.debs"
        for directory in (fresh, debs, kernel.root):
            shutil.rmtree(directory, ignore_errors=True)
        fresh.mkdir()
        debs.mkdir()
        apt.download(packages, debs)
        for deb in sorted(debs.glob("*.deb")):
            _run("dpkg-deb", "-x", str(deb), str(fresh))
        shutil.rmtree(debs)
        shutil.rmtree(CACHE / f"{name}.apt")
        fresh.rename(kernel.root)
        _rewrite(kernel)
        stamp.write_text(release + "\n")
        return kernel
