# SPDX-License-Identifier: Apache-2.0
"""slim-cni as a runtime calls it; the configurations are the specification's own examples.

runtime (the test) --stdin, CNI_* --> slim-cni --admin socket--> router (played by stub.py)
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slim_cni import arp, router
from slim_router import attachments
from tests.unit.cni.stub import FILES, Stub, call

# CNI 1.1.0, appendix "Examples": the result of the bridge plugin, and what follows it.
RESULT = {
    "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "veth3243", "mac": "55:44:33:22:11:11"},
        {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"},
    ],
    "dns": {"nameservers": ["10.1.0.1"]},
}
CONF = {"cniVersion": "1.1.0", "name": "dbnet", "type": "slim", "prevResult": RESULT}
NAME = {"network": "dbnet", "container": "c0ffee", "ifname": "ct0"}
ROW = {**NAME, "vip": "10.1.0.5", "state": "up", "detail": ""}


@pytest.fixture
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stub]:
    made = Stub(tmp_path_factory.mktemp("c"))
    made.answers = {"attach": {"vip": "10.1.0.5"}, "attached": {"attached": [ROW]}}
    yield made.start()
    made.stop()


def test_add_attaches_and_hands_the_result_on(stub):
    status, said, _unused = call(stub, "ADD", CONF)
    assert (status, said) == (0, {**RESULT, "cniVersion": "1.1.0"})
    (request,) = stub.asked
    assert request == {
        "op": "attach", **NAME, "name": "c0ffee", "tenant": "default",
        "netns": "/proc/self/ns/net", "addresses": ["10.1.0.5"],
    }  # fmt: skip


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_every_version_is_answered_in_its_own_words(stub, version):
    status, said, _unused = call(stub, "ADD", {**CONF, "cniVersion": version})
    assert (status, said["cniVersion"]) == (0, version)


def test_a_pod_gives_its_name_and_the_network_its_tenant(stub):
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0"
    assert call(stub, "ADD", {**CONF, "tenant": "blue"}, CNI_ARGS=args)[0] == 0
    assert (stub.asked[0]["name"], stub.asked[0]["tenant"]) == ("shop.web-0", "blue")


def test_addresses_of_the_host_are_not_the_containers(stub):
    ips = [{"address": "10.1.0.1/16", "interface": 0}, *RESULT["ips"], {"address": "fd00::5/64"}]
    assert call(stub, "ADD", {**CONF, "prevResult": {**RESULT, "ips": ips}})[0] == 0
    assert stub.asked[0]["addresses"] == ["10.1.0.5", "fd00::5"]


def test_del_is_said_as_often_as_one_likes(stub):
    for _unused in range(2):
        status, said, _rest = call(stub, "DEL", CONF)
        assert (status, said) == (0, None)
    assert stub.asked == [{"op": "detach", **NAME}] * 2


def test_del_needs_neither_namespace_nor_result(stub):
    config = {key: value for key, value in CONF.items() if key != "prevResult"}
    for netns in (None, "", "/gone"):
        assert call(stub, "DEL", config, CNI_NETNS=netns)[:2] == (0, None)


def test_check_compares_with_what_is_attached(stub):
    assert call(stub, "CHECK", CONF)[:2] == (0, None)
    stub.answers["attached"] = {"attached": [{**ROW, "vip": "10.1.0.6"}]}
    assert call(stub, "CHECK", CONF)[1]["code"] == 7
    stub.answers["attached"] = {"attached": [{**ROW, "state": "refused", "detail": "no pool"}]}
    assert "no pool" in call(stub, "CHECK", CONF)[1]["msg"]
    stub.answers["attached"] = {"attached": []}
    assert call(stub, "CHECK", CONF)[1]["code"] == 3


def test_gc_detaches_what_the_runtime_does_not_know(stub):
    other = {**ROW, "container": "dead"}
    second = {**ROW, "ifname": "ct1"}
    stub.answers["attached"] = {"attached": [ROW, other, second]}
    valid = [{"containerID": "c0ffee", "ifname": "ct0"}]
    config = {**CONF, "cni.dev/valid-attachments": valid}
    gone = {"CNI_CONTAINERID": None, "CNI_NETNS": None, "CNI_IFNAME": None}
    assert call(stub, "GC", config, **gone)[:2] == (0, None)
    assert stub.asked[0] == {"op": "attached", "network": "dbnet"}
    detached = [(r["container"], r["ifname"]) for r in stub.asked[1:]]
    assert detached == [("dead", "ct0"), ("c0ffee", "ct1")]


@pytest.mark.parametrize("listed", [None, {}, "all", [7], [{"containerID": "x"}]])
def test_gc_without_a_list_does_nothing(stub, listed):
    config = {**CONF, "cni.dev/valid-attachments": listed}
    assert call(stub, "GC", config)[1]["code"] == 7
    assert stub.asked == []


def test_version_tells_what_is_spoken(stub):
    for given in ({"cniVersion": "1.1.0"}, {"cniVersion": "9.9.9"}, {}):
        status, said, _unused = call(stub, "VERSION", given)
        assert (status, said["cniVersion"]) == (0, "1.1.0")
        assert said["supportedVersions"][-1] == "1.1.0"
    # libcni (v1.1, invoke.GetVersionInfo) has to set something.
    dummy = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_CONTAINERID": ""}
    assert call(stub, "VERSION", {"cniVersion": "1.0.0"}, **dummy)[0] == 0
    assert stub.asked == []


def test_status(stub):
    assert call(stub, "STATUS", CONF)[:2] == (0, None)
    stub.stop()
    assert call(stub, "STATUS", CONF)[0] == 0
    assert call(stub, "STATUS", {**CONF, "requireRouter": True})[1]["code"] == 50


@pytest.mark.parametrize(
    ("change", "env", "code"),
    [
        ({"cniVersion": "0.2.0"}, {}, 1),
        ({"cniVersion": "2.0.0"}, {}, 1),
        ({"cniVersion": 1}, {}, 1),
        ({"cniVersion": None}, {}, 1),
        ({"cniVersion": "1.0.0"}, {"CNI_COMMAND": "GC"}, 1),
        ({"cniVersion": "1.0.0"}, {"CNI_COMMAND": "STATUS"}, 1),
        ({"cniVersion": "0.3.1"}, {"CNI_COMMAND": "CHECK"}, 1),
        ({"ipam": {"type": "host-local"}}, {}, 2),
        ({}, {"CNI_NETNS": "/run/netns/nowhere"}, 3),
        ({}, {"CNI_NETNS": "/etc/passwd"}, 3),
        ({}, {"CNI_COMMAND": "JUMP"}, 4),
        ({}, {"CNI_COMMAND": None}, 4),
        ({}, {"CNI_CONTAINERID": None}, 4),
        ({}, {"CNI_CONTAINERID": "-x"}, 4),
        ({}, {"CNI_CONTAINERID": "a/b"}, 4),
        ({}, {"CNI_NETNS": None}, 4),
        ({}, {"CNI_NETNS": "relative"}, 4),
        ({}, {"CNI_IFNAME": "a" * 16}, 4),
        ({}, {"CNI_IFNAME": ".."}, 4),
        ({}, {"CNI_IFNAME": "a/b"}, 4),
        ({}, {"CNI_ARGS": "nonsense"}, 4),
        ({"prevResult": {"ips": [{"interface": 9}], "interfaces": [{}]}}, {}, 6),
        ({"prevResult": {"ips": 7}}, {}, 6),
        ({"name": "a b"}, {}, 7),
        ({"name": None}, {}, 7),
        ({"tenant": 7}, {}, 7),
        ({"tenant": ""}, {}, 7),
        ({"requireRouter": "yes"}, {}, 7),
        ({"prevResult": None}, {}, 7),
        ({"prevResult": {"ips": []}}, {}, 7),
    ],
)  # fmt: skip
def test_what_is_wrong_has_the_specifications_code_and_asks_nobody(stub, change, env, code):
    status, said, done = call(stub, "ADD", {**CONF, **change}, **env)
    assert status == 1
    assert said["code"] == code, said
    assert said["msg"].startswith("slim: ")
    assert done.stderr == b""
    assert stub.asked == []


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_a_configuration_that_is_none_is_code_6(stub, text):
    status, said, done = call(stub, "ADD", text)
    assert (status, said["code"], done.stderr) == (1, 6, b"")


def test_a_refusal_is_the_routers_own_text(stub):
    stub.refused = "attach: vip 10.1.0.5 is already held by web"
    status, said, _unused = call(stub, "ADD", CONF)
    assert (status, said["code"]) == (1, 100)
    assert said["msg"] == f"slim: {stub.refused}"
    assert stub.left() == []


@pytest.mark.parametrize("raw", [b"", b"{", b"[]\n", b'{"ok": true}\n', b"null\n"])
def test_a_router_that_breaks_off_counts_as_none(stub, raw):
    stub.raw = raw
    assert call(stub, "ADD", CONF)[0] == 0
    assert len(stub.left()) == 1


def test_without_a_router_the_next_one_is_told(stub):
    stub.stop()
    status, said, done = call(stub, "ADD", CONF)
    assert (status, said["ips"]) == (0, RESULT["ips"])
    assert b"plain overlay until a router is back" in done.stderr
    (record,) = stub.left()
    assert attachments.parse(record, "file").addresses == ("10.1.0.5",)
    (path,) = stub.directory.iterdir()
    assert path.name == attachments.file_name(("dbnet", "c0ffee", "ct0"))
    assert path.stat().st_mode & 0o777 == 0o600
    assert call(stub, "CHECK", CONF)[1]["code"] == 11
    other = {**CONF, "cni.dev/valid-attachments": [{"containerID": "c0ffee", "ifname": "ct0"}]}
    assert call(stub, "GC", other)[0] == 0
    assert len(stub.left()) == 1
    for _unused in range(2):
        assert call(stub, "DEL", CONF)[0] == 0
        assert stub.left() == []


def test_gc_without_a_router_takes_the_files(stub):
    stub.stop()
    assert call(stub, "ADD", CONF)[0] == 0
    assert call(stub, "GC", {**CONF, "cni.dev/valid-attachments": []})[0] == 0
    assert stub.left() == []


def test_requiring_the_router_leaves_nothing(stub):
    stub.stop()
    status, said, _unused = call(stub, "ADD", {**CONF, "requireRouter": True})
    assert (status, said["code"]) == (1, 11)
    assert stub.left() == []


def test_a_directory_that_cannot_be_written_is_code_5(stub):
    stub.stop()
    stub.directory.write_text("in the way")
    assert call(stub, "ADD", CONF)[1]["code"] == 5


def test_the_plugins_imports_stay_few():
    done = subprocess.run(
        ["python3", "-ISB", "-X", "importtime", FILES / "slim-cni"],
        input=b"", capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    for heavy in (b"asyncio", b"ctypes", b"pathlib", b"dataclasses", b"subprocess", b"ipaddress"):
        assert heavy not in done.stderr, heavy


def test_an_announcement_is_what_rfc_5227_says():
    request, reply = arp.frames(bytes.fromhex("99 88 77 66 55 44"), "10.1.0.5")
    for frame, op in ((request, 1), (reply, 2)):
        assert frame[:14] == b"\xff" * 6 + bytes.fromhex("998877665544 0806")
        assert frame[14:22] == bytes([0, 1, 8, 0, 6, 4, 0, op])
        # (sender's and target's address are the same)
        assert frame[28:32] == frame[38:42] == bytes([10, 1, 0, 5])
        assert len(frame) == 42


def test_defaults_are_the_routers_paths():
    from slim_router.paths import ADMIN_SOCKET, Paths

    assert str(ADMIN_SOCKET) == router.SOCKET
    assert Path(router.DIRECTORY) == Paths().attached
