# SPDX-License-Identifier: Apache-2.0
"""Why Slim cannot go onto a host: every refusal, and that a good host passes."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.slim.overlay.plugins.module_utils import _host

FACTS: dict[str, Any] = {
    "kernel": "6.1.0-28-amd64",
    "machine": "x86_64",
    "distribution": "debian 12",
    "os_family": "debian",
    "libc": "glibc",
    "systemd": True,
    "root": True,
    "python": {"path": "/usr/bin/python3", "version": [3, 11, 2], "missing": ["pyroute2"]},
    "addresses": [
        {"device": "lo", "address": "127.0.0.1"},
        {"device": "eth0", "address": "192.0.2.1"},
    ],
    "routes": [
        {"network": "0.0.0.0/0", "device": "eth0", "gateway": "192.0.2.254"},
        {"network": "192.0.2.0/24", "device": "eth0", "gateway": ""},
    ],
    "routes_inside": [],
    "listeners": [{"port": 22}],
    "local_ports": [32768, 60999],
    "ipv6_disabled": False,
    "vxlan": True,
    "wireguard": [],
    "mtus": {"lo": 65536, "eth0": 1500},
    "fallback": {"provider": "", "routes": [], "attached": []},
    "bird": {"program": "", "configured": False},
    "tools": {"cc": "", "make": ""},
    "guard": {
        "lsm": ["lockdown", "capability", "apparmor", "bpf"],
        "btf": True,
        "headers": False,
        "libbpf": True,
        "modules": True,
        "secure_boot": False,
        "loaded": False,
        "srcversion": "",
        "tags": -1,
    },
}
SETTINGS: dict[str, Any] = {
    "name": "node1",
    "address": "192.0.2.1",
    "trunk_port": 6790,
    "data_ports": [20000, 20999],
    "overlay_networks": ["10.44.0.0/16"],
    "fallback_provider": "vxlan",
    "service_manager": "systemd",
    "keeper_command": "",
    "shim_build": "controller",
    "controller_machine": "x86_64",
    "manage_packages": True,
    "own_devices": ["br-slim", "vx-slim"],
    "router_installed": False,
    "allow_plaintext": False,
    "secure_mode": "none",
    "sign_key": "",
    "fallback_mtu": 0,
    "bgp_port": 179,
    "peers": ["192.0.2.2"],
    "fleet": ["node1", "node2"],
    "reflectors": [],
}


def causes(facts: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    found = _host.problems({**FACTS, **(facts or {})}, {**SETTINGS, **settings})
    assert all(entry["thing"] and entry["cause"] and entry["next"] for entry in found)
    return [f"{entry['thing']}: {entry['cause']}" for entry in found]


def test_a_good_host_passes() -> None:
    assert causes() == []


PYTHON = FACTS["python"]
INSIDE = {"network": "10.44.0.0/16", "device": "eth0", "gateway": "", "namespace": "/run/netns/c1"}
BEHIND = {"network": "10.44.0.2/32", "device": "eth0", "gateway": "192.0.2.2"}
OURS = {"provider": "host-gw", "routes": ["10.44.0.2/32"], "attached": [["/run/netns/c1", "eth0"]]}
FAR = {"peers": ["198.51.100.2"]}


@pytest.mark.parametrize(
    ("facts", "settings", "words"),
    [
        ({"kernel": "5.13.19-generic"}, {}, "older than 5.14"),
        ({"kernel": "4.18.0-553.el8"}, {}, "older than 5.14"),
        ({"python": {**PYTHON, "version": [3, 9, 18]}}, {}, "Python 3.9.18"),
        ({"python": {**PYTHON, "version": []}}, {}, "does not run"),
        ({}, {"manage_packages": False}, "no module pyroute2"),
        ({"os_family": "other", "distribution": "alpine 3"}, {}, "package names of alpine 3"),
        ({"machine": "aarch64"}, {}, "it is aarch64"),
        ({}, {"shim_build": "host"}, "there is no cc"),
        ({}, {"address": "192.0.2.9"}, "not on any of its interfaces"),
        ({"vxlan": False}, {}, "no vxlan driver"),
        (
            {"routes": [{"network": "10.44.3.0/24", "device": "eth1", "gateway": ""}]},
            {},
            "overlaps 10.44.3.0/24, which is reached through eth1 of host node1",
        ),
        (
            {"routes": [{"network": "192.0.2.0/24", "device": "eth0", "gateway": ""}]},
            {"fallback_provider": "existing"},
            "has a route into 10.44.0.0/16",
        ),
        (
            {
                "routes": [{"network": "10.44.0.0/16", "device": "wg0", "gateway": ""}],
                "wireguard": ["wg0"],
            },
            {"fallback_provider": "existing"},
            "encrypted (wg0)",
        ),
        ({"systemd": False}, {}, "systemd does not run there"),
        ({}, {"service_manager": "keeper"}, "slim_router_keeper_command is empty"),
        ({"listeners": [{"port": 6790}]}, {}, "taken by another program"),
        ({"root": False}, {}, "do not run as root"),
        ({}, {"fallback_mtu": 1451}, "slim_fallback_mtu is 1451 and eth0 has room for 1450"),
        ({}, {"fallback_mtu": 1501, "fallback_provider": "host-gw"}, "has room for 1500"),
        ({"mtus": {"eth0": 600}}, {}, "would have 550 bytes"),
        ({}, {"fallback_mtu": 500}, "would have 500 bytes"),
        ({"routes": [BEHIND]}, {"fallback_provider": "host-gw"}, "it overlaps 10.44.0.2/32"),
        ({}, {"fallback_provider": "host-gw", **FAR}, "198.51.100.2 is not on one of its links"),
        ({}, {"fallback_provider": "bgp", **FAR}, "behind 192.0.2.254"),
        (
            {},
            {"fallback_provider": "bgp", "reflectors": ["node2"], **FAR},
            "behind 192.0.2.254",
        ),
        ({"routes": []}, {"fallback_provider": "host-gw"}, "no route to the host address"),
        ({"listeners": [{"port": 179}]}, {"fallback_provider": "bgp"}, "port 179 for BGP is taken"),
        (
            {},
            {"fallback_provider": "bgp", "manage_packages": False},
            "bird is not there and packages are not to be installed",
        ),
        (
            {"os_family": "other", "distribution": "alpine 3"},
            {"fallback_provider": "bgp"},
            "its package name on alpine 3",
        ),
        # What we built ourselves is no overlay of the site's.
        (
            {
                "routes": [BEHIND],
                "routes_inside": [INSIDE],
                "fallback": OURS,
            },
            {"fallback_provider": "existing"},
            "has a route into 10.44.0.0/16",
        ),
    ],
)
def test_what_is_refused(facts: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    found = causes(facts, **settings)
    assert any(words in line for line in found), found


@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        ({"kernel": "5.14.0-503.el9"}, {}),
        ({"kernel": "10.2"}, {}),
        ({}, {"manage_packages": False, "fallback_provider": "existing"}),
        ({"routes": [{"network": "10.44.0.0/16", "device": "br-slim", "gateway": ""}]}, {}),
        (
            {"routes": [], "routes_inside": [INSIDE]},
            {"fallback_provider": "existing"},
        ),
        ({"listeners": [{"port": 6790}]}, {"router_installed": True}),
        ({}, {"fallback_mtu": 1450}),
        ({}, {"fallback_mtu": 1500, "fallback_provider": "host-gw"}),
        ({"listeners": [{"port": 179}]}, {"fallback_provider": "host-gw"}),
        ({"listeners": [{"port": 179}]}, {"fallback_provider": "bgp", "bgp_port": 1790}),
        (
            {"listeners": [{"port": 179}], "bird": {"program": "/b", "configured": True}},
            {"fallback_provider": "bgp"},
        ),
        ({}, {"fallback_provider": "bgp", "reflectors": ["192.0.2.254"], **FAR}),
        (
            {"routes": [*FACTS["routes"], BEHIND], "fallback": OURS},
            {"fallback_provider": "host-gw"},
        ),
        ({"machine": "aarch64", "tools": {"cc": "cc", "make": "make"}}, {"shim_build": "host"}),
        (
            {
                "routes": [{"network": "10.44.0.0/16", "device": "wg0", "gateway": ""}],
                "wireguard": ["wg0"],
            },
            {"fallback_provider": "existing", "allow_plaintext": True},
        ),
    ],
)
def test_what_is_accepted(facts: dict[str, Any], settings: dict[str, Any]) -> None:
    assert causes(facts, **settings) == []


@pytest.mark.parametrize(
    ("facts", "settings", "words"),
    [
        ({"ipv6_disabled": True}, {}, "IPv6 is disabled"),
        ({"libc": "musl"}, {}, "musl"),
        ({}, {"fallback_provider": "existing"}, "default route only"),
        ({"local_ports": [1024, 65535]}, {}, "overlap the kernel's range"),
    ],
)
def test_what_is_worth_a_word(facts: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    assert _host.notes(FACTS, SETTINGS) == []
    found = _host.notes({**FACTS, **facts}, {**SETTINGS, **settings})
    assert any(words in line for line in found), found


def guard(**changes: Any) -> dict[str, Any]:
    return {"guard": {**FACTS["guard"], **changes}}


def test_a_kernel_that_can_guard_passes_both_secure_modes() -> None:
    assert causes(secure_mode="bpf") == []
    assert causes(secure_mode="kmod") == []


def test_the_bpf_mode_needs_the_lsm_and_type_information() -> None:
    found = causes(guard(lsm=["lockdown", "apparmor"], btf=False), secure_mode="bpf")
    assert len(found) == 2
    assert "lockdown,apparmor" in found[0]
    assert "/sys/kernel/btf/vmlinux" in found[1]
    assert causes(guard(lsm=[], btf=False), secure_mode="kmod") == []


def test_the_module_needs_a_kernel_that_takes_modules() -> None:
    assert "takes no modules" in causes(guard(modules=False), secure_mode="kmod")[0]
    assert causes(guard(modules=False), secure_mode="bpf") == []


def test_secure_boot_needs_a_key_for_the_module() -> None:
    assert "Secure Boot" in causes(guard(secure_boot=True), secure_mode="kmod")[0]
    assert causes(guard(secure_boot=True), secure_mode="kmod", sign_key="/root/mok.key") == []
    assert causes(guard(secure_boot=True), secure_mode="bpf") == []


def test_an_unknown_system_must_bring_the_headers_itself() -> None:
    strange = {"os_family": "other", "python": {**FACTS["python"], "missing": []}}
    assert "headers" in causes({**strange, **guard()}, secure_mode="kmod")[0]
    assert causes({**strange, **guard(headers=True)}, secure_mode="kmod") == []
