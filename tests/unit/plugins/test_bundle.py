# SPDX-License-Identifier: Apache-2.0
"""Releases: named by their content, installed whole, never written into."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.module_utils import _bundle


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    (top / "pkg" / "__pycache__").mkdir(parents=True)
    (top / "tests").mkdir()
    (top / "pkg" / "__init__.py").write_text("")
    (top / "pkg" / "main.py").write_text("print(1)\n")
    (top / "pkg" / "__pycache__" / "main.pyc").write_text("x")
    (top / "tests" / "test_x.py").write_text("")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o755)
    return top


EXCLUDE = ["__pycache__", "*.pyc", ".*", "tests"]


def name(top: Path) -> str:
    result: str = _bundle.release_name("1", str(top), _bundle.listing(str(top), ["*"], EXCLUDE))
    return result


def test_caches_and_tests_are_left_out(source: Path) -> None:
    assert _bundle.listing(str(source), ["*"], EXCLUDE) == ["pkg/__init__.py", "pkg/main.py", "run"]


def test_nothing_to_install_is_an_error(source: Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        _bundle.listing(str(source), ["*.so"], EXCLUDE)


def test_the_name_follows_the_content(source: Path) -> None:
    first = name(source)
    (source / "pkg" / "main.py").touch()
    (source / "pkg" / "main.py").chmod(0o600)
    assert name(source) == first, "times and the umask are no content"
    (source / "pkg" / "main.py").write_text("print(2)\n")
    second = name(source)
    (source / "run").chmod(0o644)
    assert len({first, second, name(source)}) == 3


def test_a_bundle_comes_out_as_it_went_in(source: Path, tmp_path: Path) -> None:
    files = _bundle.listing(str(source), ["*"], EXCLUDE)
    _bundle.pack(str(source), files, str(tmp_path / "b.tar.gz"))
    _bundle.unpack(str(tmp_path / "b.tar.gz"), str(tmp_path / "out"))
    assert name(tmp_path / "out") == name(source)


@pytest.mark.parametrize("path", ["../evil", "/evil", "a/../../evil"])
def test_a_bundle_that_leaves_its_directory_is_refused(tmp_path: Path, path: str) -> None:
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as bundle:
        bundle.addfile(tarfile.TarInfo(path))
    (tmp_path / "out").mkdir()
    with pytest.raises(tarfile.TarError):
        _bundle.unpack(str(tmp_path / "b.tar.gz"), str(tmp_path / "out"))


def test_install_again_and_change(source: Path, tmp_path: Path, run_module: Any) -> None:
    arguments = {
        "name": "part",
        "root": str(tmp_path / "root"),
        "version": "1",
        "src": str(source),
        "remote_src": True,
        "exclude": EXCLUDE,
    }
    current = tmp_path / "root" / "part" / "current"
    checked = run_module("slim_release", {**arguments, "_ansible_check_mode": True})
    assert checked["changed"] is True
    assert not (tmp_path / "root").exists(), "check mode has changed something"
    first = run_module("slim_release", arguments)
    assert first["changed"] is True
    assert (current / "pkg" / "main.py").read_text() == "print(1)\n"
    assert run_module("slim_release", arguments)["changed"] is False
    held = (current / "pkg" / "main.py").open()
    (source / "pkg" / "main.py").write_text("print(2)\n")
    second = run_module("slim_release", arguments)
    assert (second["changed"], second["previous"]) == (True, first["release"])
    assert (current / "pkg" / "main.py").read_text() == "print(2)\n"
    # Who has the first release open or mapped keeps it as it was.
    with held:
        assert held.read() == "print(1)\n"
    assert (Path(first["path"]) / "pkg" / "main.py").read_text() == "print(1)\n"
    assert not [path for path in (tmp_path / "root" / "part").iterdir() if path.name[0] == "."]


def test_what_was_not_built_is_named(tmp_path: Path, run_module: Any) -> None:
    answer = run_module(
        "slim_release",
        {
            "name": "shim",
            "root": str(tmp_path),
            "version": "1",
            "src": str(tmp_path / "nowhere"),
            "remote_src": True,
        },
    )
    assert answer["failed"] is True
    assert "build it first" in answer["msg"]
