# SPDX-License-Identifier: Apache-2.0
"""policy.json: whole or old, and never "everything is allowed" by accident."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from slim_router import config, policy, policystore, ports
from slim_router.policystore import CLOSED, PolicyStore
from slim_router.reader import ConfigError

RULE = {"id": "web", "action": "allow", "sources": ["10.44.0.0/16"], "ports": [80]}


def made(revision: int = 1, default: str = "deny") -> policy.Policy:
    return policy.parse({"version": 1, "revision": revision, "default": default, "rules": [RULE]})


def test_no_file_allows_everything_and_is_no_trouble(tmp_path):
    store = PolicyStore(tmp_path / "policy.json")
    assert store.load() == policy.Policy(0, "allow", ())
    assert store.cause == ""
    assert not list(tmp_path.iterdir())


def test_what_is_saved_is_loaded_and_is_the_routers_alone(tmp_path):
    store = PolicyStore(tmp_path / "policy.json")
    store.save(made())
    assert PolicyStore(store.path).load() == made()
    assert store.path.stat().st_mode & 0o777 == 0o600
    assert json.loads(store.path.read_text()) == policy.dump(made())
    assert [each.name for each in tmp_path.iterdir()] == ["policy.json"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff", "not UTF-8"),
        (b"[]", "a list"),
        (b'{"version":1,"version":1}', "twice"),
        (b'{"version":1,"revision":' + b"9" * 5000 + b',"default":"allow","rules":[]}', "JSON"),
        (b'{"version":2,"revision":1,"default":"allow","rules":[]}', "version"),
        (b'{"version":1,"revision":1,"default":"allow"}', "rules"),
        (b'{"version":1,"revision":1,"default":"allow","rules":[{"id":"x"}]}', "rule 1 (x)"),
    ],
)
def test_a_bad_file_closes_and_is_kept_until_a_good_list_comes(tmp_path, content, part):
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    store = PolicyStore(path)
    assert store.load() == CLOSED == policy.Policy(0, "deny", ())
    assert part in store.cause
    assert str(path) in store.cause
    assert path.read_bytes() == content
    store.save(made())
    assert store.cause == ""
    assert PolicyStore(path).load() == made()
    assert store.aside.read_bytes() == content
    store.save(made(2))
    assert store.aside.read_bytes() == content


def test_a_file_that_cannot_be_read_closes(tmp_path, monkeypatch):
    path = tmp_path / "policy.json"
    path.mkdir()
    store = PolicyStore(path)
    assert store.load() == CLOSED
    assert "directory" in store.cause
    with pytest.raises(OSError, match="directory"):
        store.save(made())
    assert store.cause, "it is as closed as before"
    big = tmp_path / "big.json"
    big.write_bytes(b"x" * 10)
    monkeypatch.setattr(policystore, "FILE_MAX", 9)
    store = PolicyStore(big)
    assert store.load() == CLOSED
    assert "larger" in store.cause


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_list(tmp_path, monkeypatch, step):
    store = PolicyStore(tmp_path / "policy.json")
    store.save(made())

    def full(*_unused: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(ports.os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        store.save(made(2))
    monkeypatch.undo()
    assert PolicyStore(store.path).load() == made()
    assert [each.name for each in tmp_path.iterdir()] == ["policy.json"]


def test_router_files_with_endless_numbers_are_refused_in_words(tmp_path):
    path = tmp_path / "router.json"
    path.write_text('{"version": ' + "9" * 5000 + "}")
    with pytest.raises(ConfigError, match="not valid JSON"):
        config.load(path, path)
