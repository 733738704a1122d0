#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looks at a host with Slim's eyes. Reads only; judging is the filters' business."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_host_facts
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: What Slim has to know of a host
description:
  - Gathers the few facts that the roles of this collection need, in one call,
    so that plays can run with C(gather_facts=false).
options:
  python:
    description: The interpreter that will run the router.
    type: path
    default: /usr/bin/python3
  modules:
    description: Python modules to look for in that interpreter.
    type: list
    elements: str
    default: []
  namespaces:
    description: Paths of network namespaces whose routes are of interest.
    type: list
    elements: path
    default: []
extends_documentation_fragment:
  - ansible.builtin.action_common_attributes
  - ansible.builtin.action_common_attributes.facts
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  facts:
    support: full
  platform:
    platforms: linux
"""

EXAMPLES = r"""
- name: Know the host
  slim.overlay.slim_host_facts:
    modules: [prometheus_client]
"""

RETURN = r"""
ansible_facts:
  description: The facts.
  returned: always
  type: dict
  contains:
    slim_host:
      description: Kernel, interpreter, addresses, routes, listeners and the like.
      type: dict
"""

import contextlib
import ctypes
import json
import os
import shutil
import socket
import struct
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _fleet
from ansible_collections.slim.overlay.plugins.module_utils._hostnet import interface_addresses

TCP_LISTEN = "0A"
# RTF_REJECT: linux/route.h
REJECT = 0x200


def read(path, default=""):
    """A small file's text, or the default where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return default


def distribution():
    """Identifier and family (debian, redhat or other) from os-release(5)."""
    values = {}
    for line in read("/etc/os-release").splitlines():
        key, sign, value = line.partition("=")
        if sign:
            values[key] = value.strip().strip("\"'")
    like = {values.get("ID", ""), *values.get("ID_LIKE", "").split()}
    family = "other"
    if like & {"debian", "ubuntu"}:
        family = "debian"
    elif like & {"rhel", "fedora", "centos"}:
        family = "redhat"
    return f"{values.get('ID', '')} {values.get('VERSION_ID', '')}".strip(), family


def libc():
    """glibc, musl or unknown: by the C library that this interpreter uses."""
    if "musl" in read("/proc/self/maps"):
        return "musl"
    try:
        return "glibc" if os.confstr("CS_GNU_LIBC_VERSION") else "unknown"
    except (ValueError, OSError):
        return "unknown"


def addresses():
    """Interface and address, in the order in which the kernel lists them."""
    return [{"device": name, "address": address} for name, address in interface_addresses()]


def default_address():
    """The source address towards the default route, or an empty string. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def routes(text):
    """The main table: proc(5), /proc/net/route, addresses in host byte order."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & REJECT:
            continue
        network, gateway = (
            socket.inet_ntoa(struct.pack("=I", int(field, 16))) for field in fields[1:3]
        )
        length = bin(int(fields[7], 16)).count("1")
        found.append(
            {
                "network": f"{network}/{length}",
                "device": fields[0],
                "gateway": "" if gateway == "0.0.0.0" else gateway,
            }
        )
    return found


def routes_inside(module, path):
    """The same of another network namespace; empty where it is not there."""
    command = ["nsenter", f"--net={path}", "cat", "/proc/net/route"]
    code, out = module.run_command(command)[:2]
    return [dict(route, namespace=path) for route in routes(out)] if code == 0 else []


def listeners():
    """TCP ports that somebody listens on: proc(5), /proc/net/tcp and tcp6."""
    ports = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in read(path).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and fields[3] == TCP_LISTEN:
                ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return [{"port": port} for port in sorted(ports)]


def interpreter(module, path, wanted):
    """Version and missing modules of the router's interpreter."""
    script = (
        "import importlib.util, json, sys; "
        "print(json.dumps([list(sys.version_info[:3]), "
        "[name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]]))"
    )
    found = {"path": path, "version": [], "missing": list(wanted)}
    if not os.access(path, os.X_OK):
        return found
    code, out = module.run_command([path, "-c", script, *wanted])[:2]
    if code == 0:
        found["version"], found["missing"] = json.loads(out)
    return found


def has_vxlan(module):
    """The driver is built in, loaded, or could be loaded."""
    if Path("/sys/module/vxlan").is_dir():
        return True
    release = os.uname().release
    for name in ("modules.builtin", "modules.dep"):
        if "/vxlan.ko" in read(f"/lib/modules/{release}/{name}"):
            return True
    modprobe = module.get_bin_path("modprobe")
    return bool(modprobe) and module.run_command([modprobe, "-n", "-q", "vxlan"])[0] == 0


def link_mtus():
    """Bytes that a packet may have, by interface."""
    return {
        place.parent.name: int(read(place))
        for place in Path("/sys/class/net").glob("*/mtu")
        if read(place).strip().isdigit()
    }


def fallback():
    """What the fallback that is there was told: provider, its routes, where it attaches."""
    found = {"provider": "", "routes": [], "attached": []}
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(read("/etc/slim/fallback.json", "{}"))
        found["routes"] = [str(entry["to"]) for entry in content.get("routes", [])]
        found["attached"] = [
            [str(entry["netns"]), str(entry["interface"])] for entry in content["endpoints"]
        ]
        found["provider"] = str(content["provider"])
    return found


def modes():
    """Permissions of what is there of ours, in octal."""
    found = {}
    for name in ("/etc/slim", "/etc/slim/tls", "/etc/slim/tls/host.key", "/var/lib/slim"):
        with contextlib.suppress(OSError):
            found[name] = f"{Path(name).stat().st_mode & 0o7777:04o}"
    return found


def wireguard():
    """Interfaces whose traffic is encrypted, so that Slim beside them would not be."""
    return sorted(
        place.parent.name
        for place in Path("/sys/class/net").glob("*/uevent")
        if "DEVTYPE=wireguard" in read(place)
    )


def fleet_map():
    """Revision and digest of the map that is there; an empty dict where none is."""
    try:
        content = json.loads(read("/etc/slim/map.json"))
        return {"revision": int(content["revision"]), "digest": _fleet.digest(content)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def secure_boot():
    """Does the firmware insist on signed kernels and modules? (efivarfs: 4 bytes of
    attributes, then the value.)"""
    for place in Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"):
        with contextlib.suppress(OSError):
            return place.read_bytes()[4:5] == b"\1"
    return False


def number(text):
    """An integer, or -1 for a text that is none."""
    return int(text) if text.strip().isdigit() else -1


def has_libbpf():
    """Is libbpf there, by the names under which slim-bpf looks for it?"""
    for name in ("libbpf.so.1", "libbpf.so.0"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False


def kernel_guard():
    """What secure mode needs to know: the kernel's own means, and the module if loaded."""
    release = os.uname().release
    stats = dict(
        line.split(None, 1) for line in read("/proc/slim_kmod/stats").splitlines() if " " in line
    )
    return {
        "lsm": [name for name in read("/sys/kernel/security/lsm").strip().split(",") if name],
        "btf": Path("/sys/kernel/btf/vmlinux").exists(),
        "libbpf": has_libbpf(),
        "modules": Path("/proc/modules").exists()
        and Path("/proc/sys/kernel/ftrace_enabled").exists(),
        # Those that a module can be built for, the running one's successor among them.
        "kernels": sorted(path.parts[3] for path in Path("/lib/modules").glob("*/build/Makefile")),
        "headers": Path(f"/lib/modules/{release}/build/Makefile").exists(),
        "secure_boot": secure_boot(),
        "loaded": Path("/sys/module/slim_kmod").is_dir(),
        "srcversion": read("/sys/module/slim_kmod/srcversion").strip(),
        "tags": number(stats.get("tags", "")),
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "python": {"type": "path", "default": "/usr/bin/python3"},
            "modules": {"type": "list", "elements": "str", "default": []},
            "namespaces": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    system = os.uname()
    name, family = distribution()
    local_ports = read("/proc/sys/net/ipv4/ip_local_port_range", "32768 60999").split()
    facts = {
        "kernel": system.release,
        "machine": system.machine,
        "distribution": name,
        "os_family": family,
        "libc": libc(),
        # sd_booted(3)
        "systemd": Path("/run/systemd/system").is_dir(),
        "root": os.geteuid() == 0,
        "python": interpreter(module, module.params["python"], module.params["modules"]),
        "addresses": addresses(),
        "default_address": default_address(),
        "routes": routes(read("/proc/net/route")),
        "routes_inside": [
            route for path in module.params["namespaces"] for route in routes_inside(module, path)
        ],
        "listeners": listeners(),
        "local_ports": [int(port) for port in local_ports],
        "ipv6_disabled": (
            not Path("/proc/net/if_inet6").exists()
            or read("/proc/sys/net/ipv6/conf/all/disable_ipv6").strip() == "1"
        ),
        "tcp_tw_reuse": read("/proc/sys/net/ipv4/tcp_tw_reuse").strip(),
        "vxlan": has_vxlan(module),
        "tools": {
            tool: shutil.which(tool) or ""
            for tool in ("bpftool", "cc", "dkms", "ip", "make", "musl-gcc", "nft", "nsenter")
        },
        "guard": kernel_guard(),
        "wireguard": wireguard(),
        "mtus": link_mtus(),
        "fallback": fallback(),
        "bird": {
            "program": module.get_bin_path("bird") or "",
            # Ours, not the site's.
            "configured": Path("/etc/slim/bird.conf").exists(),
        },
        "map": fleet_map(),
        # Public parts only: what decides whether a certificate has to be made.
        "certificate": read("/etc/slim/tls/host.pem"),
        "ca": read("/etc/slim/tls/ca.pem"),
        "has_key": Path("/etc/slim/tls/host.key").exists(),
        "modes": modes(),
        "releases": {
            part: Path(f"/opt/slim/{part}/current").resolve().name
            for part in ("router", "shim", "fallback", "qos")
            if Path(f"/opt/slim/{part}/current").exists()
        },
    }
    module.exit_json(changed=False, ansible_facts={"slim_host": facts})


if __name__ == "__main__":
    main()
