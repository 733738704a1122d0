# SPDX-License-Identifier: Apache-2.0
"""Data ports stay what they were, over restarts, crashes and corrupt files."""

from __future__ import annotations

import json
import os

import pytest

from slim_router.ports import PortsError, PortTable


def test_ports_are_stable_over_restarts_and_orders(tmp_path):
    path = tmp_path / "ports.json"
    first = PortTable(path, (20000, 20009)).assign(["t/a", "t/b"])
    assert first == {"t/a": 20000, "t/b": 20001}
    again = PortTable(path, (20000, 20009))
    assert again.assign(["t/c", "t/b", "t/a"]) == {"t/c": 20002, **first}


def test_an_endpoint_that_comes_back_finds_its_port(tmp_path):
    path = tmp_path / "ports.json"
    PortTable(path, (20000, 20009)).assign(["t/a", "t/b"])
    PortTable(path, (20000, 20009)).assign(["t/b", "t/c"])
    assert PortTable(path, (20000, 20009)).assign(["t/a"]) == {"t/a": 20000}


def test_a_full_range_takes_the_ports_of_the_departed(tmp_path):
    table = PortTable(tmp_path / "ports.json", (20000, 20001))
    table.assign(["t/a", "t/b"])
    assert table.assign(["t/b", "t/c"]) == {"t/b": 20001, "t/c": 20000}
    with pytest.raises(PortsError, match="t/d: no data port left in 20000 to 20001"):
        table.assign(["t/b", "t/c", "t/d"])


def test_a_port_outside_a_changed_range_is_exchanged(tmp_path):
    path = tmp_path / "ports.json"
    PortTable(path, (20000, 20009)).assign(["t/a"])
    assert PortTable(path, (21000, 21009)).assign(["t/a"]) == {"t/a": 21000}


def test_a_port_that_a_stranger_holds_is_exchanged(tmp_path):
    table = PortTable(tmp_path / "ports.json", (20000, 20009))
    table.assign(["t/a", "t/b"])
    assert table.assign(["t/a", "t/b"], frozenset({20000})) == {"t/a": 20002, "t/b": 20001}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 1}',
        b'{"version": 2, "ports": {}}',
        b'{"version": 1, "ports": {"a": 0}}',
        b'{"version": 1, "ports": {"a": "20000"}}',
        b'{"version": 1, "ports": {"a": 20000, "b": 20000}}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_corrupt_file_is_set_aside_with_a_message(tmp_path, capsys, raw):
    path = tmp_path / "ports.json"
    path.write_bytes(raw)
    table = PortTable(path, (20000, 20009))
    assert table.assign(["t/a"]) == {"t/a": 20000}
    (aside,) = tmp_path.glob("ports.json.corrupt-*")
    assert aside.read_bytes() == raw
    assert "ports-file-set-aside" in capsys.readouterr().err
    assert json.loads(path.read_bytes())["ports"] == {"t/a": 20000}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "ports.json"
    PortTable(path, (20000, 20009)).assign(["t/a"])
    before = path.read_bytes()

    def full(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        PortTable(path, (20000, 20009)).assign(["t/a", "t/b"])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ports.json"]
