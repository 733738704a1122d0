# SPDX-License-Identifier: Apache-2.0
"""What the modules say of a router that is not there, refuses, is old, or talks nonsense.

module --> socket of a stub that answers with given bytes, or nobody
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.module_utils import _router


@pytest.fixture
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bytes | None], str]]:
    """Answers every request with these bytes; None: never."""
    path = tmp_path_factory.mktemp("s") / "admin.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    answers: list[bytes | None] = []
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                sock, _unused = listener.accept()
            except OSError:
                return
            with sock.makefile("rb") as lines:
                lines.readline()
            if answers[0] is None:
                held.append(sock)
                continue
            with sock:
                sock.sendall(answers[0])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    def use(answer: bytes | None) -> str:
        answers[:] = [answer]
        return str(path)

    yield use
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for sock in held:
        sock.close()


def failure(path: str, timeout: int = 5) -> _router.RouterError:
    with pytest.raises(_router.RouterError) as caught:
        router = _router.Router(path, timeout)
        router.need("acl", router.ask("acl"), revision=int)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (b"", "bad-answer", "cut off after 0 bytes"),
        (b'{"ok": true, "result', "bad-answer", "cut off"),
        (b"HTTP/1.1 400 Bad Request\n", "bad-answer", "not what a router"),
        (b"[]\n", "bad-answer", "not what a router"),
        (b'{"ok": 1, "result": {}}\n', "bad-answer", "not what a router"),
        (b'{"ok": true}\n', "bad-answer", "not what a router"),
        (b'{"ok": true, "result": []}\n', "bad-answer", "not what a router"),
        (b'{"ok": true, "result": {"revision": "7"}}\n', "bad-answer", "not what a router"),
        (b"[" * 100_000 + b"\n", "bad-answer", "not what a router"),
        (
            b'{"ok": false, "error": "unknown op \'acl\'; the ops are ping, status"}\n',
            "old-router",
            "does not know acl",
        ),
        (
            b'{"ok": false, "error": "op acl: unknown argument \'wait\'"}\n',
            "old-router",
            "deploy this one",
        ),
        (b'{"ok": false, "error": "too many clients"}\n', "refused", "slim-router: too many"),
        (b'{"ok": false, "error": "it goes on", "late": true}\n', "no-answer", "it goes on"),
    ],
)
def test_what_is_wrong_is_said_with_the_next_step(stub, answer, kind, words) -> None:
    error = failure(stub(answer))
    assert error.kind == kind
    assert words in str(error)


def test_a_router_that_never_answers_costs_a_bounded_time(stub) -> None:
    error = failure(stub(None), timeout=1)
    assert error.kind == "no-answer"
    assert "within 1 s" in str(error)


def test_an_answer_without_end_is_given_up(stub, monkeypatch) -> None:
    monkeypatch.setattr(_router, "REPLY_MAX", 1000)
    error = failure(stub(b"x" * 5000))
    assert "more than 1000 bytes" in str(error)


def test_nobody_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.sock", tmp_path / ("x" * 200)):
        error = failure(str(path))
        assert error.kind == "no-router"
        assert "systemctl start slim-router" in str(error)


def test_a_stale_socket_is_nobody(tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("s") / "admin.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    assert failure(str(path)).kind == "no-router"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
def test_only_root_may_ask(stub) -> None:
    path = Path(stub(b"{}\n"))
    path.chmod(0o600)
    for part in (path.parent, path.parent.parent, path.parent.parent.parent):
        part.chmod(0o755)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            _router.Router(str(path)).ask("acl")
        except _router.RouterError as error:
            os._exit(0 if error.kind == "no-access" and "become: true" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("slim_acl", {"default": "allow", "rules": []}),
        ("slim_acl_info", {}),
        ("slim_connections_info", {}),
        ("slim_revoke", {"dport": 1}),
        ("slim_router_info", {}),
    ],
)
def test_every_module_fails_so_in_both_modes(
    run_module: Callable[..., dict[str, Any]], tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    for check in (False, True):
        words = {"socket": str(tmp_path / "none"), "_ansible_check_mode": check, **arguments}
        bad = run_module(name, words)
        assert (bad["failed"], bad["kind"]) == (True, "no-router"), json.dumps(bad)
    bad = run_module(name, {**words, "timeout": 0})
    assert "timeout: 0 s" in bad["msg"]
