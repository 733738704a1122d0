# SPDX-License-Identifier: Apache-2.0
"""slim-hook on images that are directories, and bundles that are files.

OCI runtime (the test) --state on stdin--> slim-hook --admin socket--> router (stub.py)
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slim_cni import libc
from slim_cni.hook import Container, HookError, of_state, preload
from slim_cni.rootfs import Root
from tests.unit.cni.stub import FILES, Stub

MACHINE = "x86_64"
LOADER, MUSL = libc.LOADERS[MACHINE]
ELF64 = b"\x7fELF\2\1\1" + bytes(9)


@pytest.fixture
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    made = Stub(tmp_path_factory.mktemp("h"))
    made.answers = {"attach": {"vip": "10.1.0.5", "changed": True}}
    yield made.start()
    made.stop()


def image(directory: Path, **files: bytes) -> Path:
    """A root file system with these files; a double underscore is a slash, as __DOT__ a dot."""
    root = directory / "rootfs"
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "etc").mkdir(parents=True, exist_ok=True)
    return root


def glibc(directory: Path, *minors: int, place: str = "usr/lib/x86_64-linux-gnu") -> Path:
    """One with a glibc that has these versions, and merged /usr: lib64 is a link."""
    root = image(directory)
    for name in ("usr/lib64", place):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "lib64").symlink_to("usr/lib64")
    (root / "lib").symlink_to("usr/lib")
    (root / LOADER).write_bytes(ELF64)
    names = b"".join(b"GLIBC_2.%d\0" % minor for minor in minors)
    (root / place / "libc.so.6").write_bytes(ELF64 + names)
    return root


def shim(directory: Path, minor: int = 17) -> str:
    path = directory / "libslim.so"
    path.write_bytes(ELF64 + b"GLIBC_2.2.5\0GLIBC_2.%d\0" % minor)
    return str(path)


@pytest.mark.parametrize(
    ("minors", "words"),
    [((2, 14, 36), ""), ((17,), ""), ((5, 12), "the image has glibc 2.12, the shim needs 2.17"),
     ((), "a glibc of unknown version")],
)  # fmt: skip
def test_the_images_glibc_decides(tmp_path, minors, words):
    root = Root(str(glibc(tmp_path, *minors)))
    said = libc.why_not(root, shim(tmp_path), MACHINE)
    root.close()
    assert said.startswith(words) if not words else words in said
    assert bool(said) == bool(words)


def test_a_libc_of_another_architecture_does_not_count(tmp_path):
    made = glibc(tmp_path, 36, place="usr/lib64")
    (made / "usr/lib").mkdir(exist_ok=True)
    (made / "usr/lib/libc.so.6").write_bytes(b"\x7fELF\1\1\1" + b"GLIBC_2.99\0")
    root = Root(str(made))
    assert libc.find(root, MACHINE) == libc.Libc("glibc", 36)
    assert libc.find(root, "aarch64").kind == ""
    root.close()


def test_musl_and_images_without_a_linker_are_told(tmp_path):
    root = Root(str(image(tmp_path, lib__ld_musl=b"")))
    assert "no dynamic linker" in libc.why_not(root, shim(tmp_path), MACHINE)
    (Path(root.path) / MUSL).write_bytes(ELF64)
    assert "shim=musl" in libc.why_not(root, shim(tmp_path), MACHINE)
    root.close()


def test_links_of_an_image_lead_nowhere_else(tmp_path):
    root = image(tmp_path)
    (root / "lib64").symlink_to("/usr/lib64")
    (tmp_path / "secret").write_text("of the host")
    (root / "etc/ld.so.preload").symlink_to(
        "../../../../../../../../../.." + str(tmp_path / "secret")
    )
    opened = Root(str(root))
    assert opened.read(LOADER) is None, "the host's own loader"
    assert opened.read("etc/ld.so.preload") is None
    opened.close()


def test_this_machines_own_libc_takes_the_shim():
    root = Root("/")
    found = libc.find(root)
    root.close()
    assert found.kind == "glibc"
    assert f"2.{found.minor}" == os.confstr("CS_GNU_LIBC_VERSION").split()[1]


MOUNTS = """
import sys
from slim_cni.hook import Container, HookError, preload
try:
    preload(Container("c0ffee", "", "default", sys.argv[1]), sys.argv[2], sys.argv[3])
except HookError as error:
    print(f"refused: {error}")
print(open(sys.argv[1] + "/etc/ld.so.preload").read() if len(sys.argv) < 5 else "")
try:
    open(sys.argv[1] + "/etc/ld.so.preload", "w")
except OSError as error:
    print(error.errno)
"""


def mounted(root: Path, library: str, source: Path) -> subprocess.CompletedProcess[str]:
    """preload in a mount namespace of its own, as a createContainer hook has one."""
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "python3", "-c", MOUNTS, root, library,
         source],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(FILES)},
    )  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_preload_is_mounted_read_only_and_only_there(tmp_path, monkeypatch):
    root, source = glibc(tmp_path, 36), tmp_path / "preload"
    source.write_text("/opt/slim/shim/current/libslim.so\n")
    if os.uname().machine != MACHINE:
        pytest.skip("the image is of another architecture")
    done = mounted(root, shim(tmp_path), source)
    assert done.stderr == ""
    assert done.stdout.split() == ["/opt/slim/shim/current/libslim.so", "30"]
    assert (root / "etc/ld.so.preload").read_text() == "", "what the image has is an empty file"
    assert source.read_text().startswith("/opt")


def test_an_image_that_is_too_old_gets_no_preload(tmp_path):
    root = glibc(tmp_path, 12)
    if os.uname().machine != MACHINE:
        pytest.skip("the image is of another architecture")
    with pytest.raises(HookError, match=r"has glibc 2\.12"):
        preload(Container("x", "", "default", str(root)), shim(tmp_path), str(tmp_path / "p"))
    assert not (root / "etc/ld.so.preload").exists()


def test_an_images_own_preload_stays(tmp_path):
    root = glibc(tmp_path, 36)
    if os.uname().machine != MACHINE:
        pytest.skip("the image is of another architecture")
    (root / "etc/ld.so.preload").write_text("/lib/other.so\n")
    with pytest.raises(HookError, match="of its own"):
        preload(Container("x", "", "default", str(root)), shim(tmp_path), str(tmp_path / "p"))


# --- attach and detach --------------------------------------------------------------------


def bundle(directory: Path, namespaces: list[dict[str, str]], **more: Any) -> dict[str, Any]:
    """A state as the OCI runtime specification has it, with its bundle."""
    spec = {
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "linux": {"namespaces": namespaces},
        **more,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(spec))
    return {
        "ociVersion": "1.0.2", "id": "c0ffee" * 8, "status": "created", "pid": os.getpid(),
        "bundle": str(directory),
    }  # fmt: skip


def hook(stub: Stub, word: str, state: object, *more: str) -> subprocess.CompletedProcess[str]:
    where = ["--socket", str(stub.path), "--directory", str(stub.directory)]
    text = state if isinstance(state, str) else json.dumps(state)
    return subprocess.run(
        [FILES / "slim-hook", word, *where, *more], input=text, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_a_container_is_attached_by_its_own_namespace(stub, tmp_path):
    path = "/proc/self/ns/net"
    state = bundle(
        tmp_path, [{"type": "network", "path": path}],
        annotations={"slim.overlay/tenant": "blue"},
    )  # fmt: skip
    done = hook(stub, "attach", state)
    assert (done.returncode, done.stderr) == (0, "")
    assert stub.asked == [
        {"op": "attach", "network": "oci", "container": state["id"], "ifname": "all",
         "name": "c0ffeec0ffee", "tenant": "blue", "netns": path, "once": True}
    ]  # fmt: skip
    (tmp_path / "config.json").unlink()  # some runtimes take the bundle away first
    done = hook(stub, "detach", {**state, "pid": 0, "status": "stopped"})
    assert (done.returncode, done.stderr) == (0, "")
    assert stub.asked[1] == {
        "op": "detach", "network": "oci", "container": state["id"], "ifname": "all",
    }  # fmt: skip


def test_a_namespace_without_a_path_is_found_by_the_process(tmp_path):
    state = bundle(tmp_path, [{"type": "network"}])
    assert of_state(json.dumps(state).encode()).netns == f"/proc/{os.getpid()}/ns/net"


def test_a_container_of_the_hosts_network_is_none_of_ours(stub, tmp_path):
    assert hook(stub, "attach", bundle(tmp_path, [{"type": "mount"}])).stderr == ""
    assert stub.asked == []


def test_a_unit_says_name_and_namespace_itself(stub):
    done = hook(stub, "attach", "", "--netns", "/proc/self/ns/net", "--name", "web")
    assert (done.returncode, done.stderr) == (0, "")
    assert (stub.asked[0]["container"], stub.asked[0]["name"]) == ("web", "web")


def test_nothing_keeps_a_container_from_starting(stub, tmp_path):
    state = bundle(tmp_path, [{"type": "network", "path": "/proc/self/ns/net"}])
    stub.refused = "attach: no pool"
    done = hook(stub, "attach", state)
    assert done.returncode == 0
    assert "no pool" in done.stderr
    stub.stop()
    done = hook(stub, "attach", state)
    assert (done.returncode, len(stub.left("oci"))) == (0, 1)
    assert "plain overlay until" in done.stderr
    assert hook(stub, "detach", state).returncode == 0
    assert stub.left("oci") == []
    for text in ("", "{", "[]", '{"id": 1}', json.dumps({**state, "bundle": "/nowhere"})):
        done = hook(stub, "attach", text)
        assert done.returncode == 0
        assert "slim-hook: attach: container" in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["jump"], ["attach", "--netns"], ["attach", "--colour", "x"]]
)
def test_wrong_words_are_answered_with_the_right_ones(words):
    done = subprocess.run(
        [FILES / "slim-hook", *words], input="", capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
