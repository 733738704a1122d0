#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Opens the host's firewall for the other hosts' routers, or says that it is closed.

Touches only rules that carry its own comment, in chains that would otherwise
drop; a host without a closing rule gets nothing.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_firewall
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Ports of Slim in the host's firewall
description:
  - Walks the rules of nftables and iptables for a first packet from each of
    O(sources) to each of the ports in O(rules).
  - Where one would be dropped, puts an accepting rule with a comment of its own
    at the head of the chain that drops it. In check mode it only says so.
  - Where firewalld runs, rich rules in its permanent and its running
    configuration take the place of that.
  - Reboots are survived through RV(commands), which a role writes into a unit.
options:
  state:
    description: V(absent) takes away every rule that this module put in.
    type: str
    choices: [present, absent]
    default: present
  rules:
    description: What must be reachable.
    type: list
    elements: dict
    default: []
    suboptions:
      protocol:
        description: Transport protocol.
        type: str
        choices: [tcp, udp]
        default: tcp
      ports:
        description: Ports, or ranges as C(FIRST-LAST).
        type: list
        elements: str
        required: true
  sources:
    description: Addresses of the other hosts.
    type: list
    elements: str
    default: []
  address:
    description: Address of this host, for rules that look at the destination or the interface.
    type: str
    default: ""
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the commands.
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Admit the other hosts' routers
  slim.overlay.slim_firewall:
    rules:
      - ports: ["6790", "20000-20999"]
    sources: [192.0.2.2, 192.0.2.3]
    address: 192.0.2.1
"""

RETURN = r"""
closed:
  description: What was closed before, at most ten examples, each with what closes it.
  returned: always
  type: list
  elements: str
commands:
  description: Commands that open the ports after a reboot; empty where nothing is closed.
  returned: always
  type: list
  elements: str
backend:
  description: What the rules were put in by.
  returned: always
  type: str
  sample: nftables
"""

import json
import shlex
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _firewall
from ansible_collections.slim.overlay.plugins.module_utils._hostnet import device_of

EXAMPLES_MAX = 10
# What we gave to firewalld, whose rules carry no comment.
RECORD = Path("/var/lib/slim/firewalld.json")


class Firewall:
    """The rules of this host, as they are now."""

    def __init__(self, module):
        self.module = module
        self.nft = module.get_bin_path("nft")
        self.iptables = module.get_bin_path("iptables")
        self.firewall_cmd = module.get_bin_path("firewall-cmd")
        self.read()

    def run(self, *words):
        """Output of a command that must work."""
        code, out, err = self.module.run_command([str(word) for word in words])
        if code:
            self.module.fail_json(
                msg=f"slim_firewall: {shlex.join(words)} failed: {err.strip() or out.strip()}; "
                "see to the host's firewall or set slim_host_firewall: ignored"
            )
        return out

    def read(self):
        """Read the rules again."""
        self.in_iptables = None
        self.in_nft = None
        compat = False
        if self.iptables:
            compat = "nf_tables" in self.module.run_command([self.iptables, "--version"])[1]
            code, out = self.module.run_command([self.iptables, "-w", "5", "-S"])[:2]
            # A kernel without the old tables answers with an error: nothing there then.
            if code == 0:
                self.in_iptables = _firewall.IptablesRules(out)
        if self.nft:
            document = json.loads(self.run(self.nft, "-j", "list", "ruleset") or "{}")
            self.in_nft = _firewall.NftRules(document, skip_compat=compat and bool(self.iptables))

    def firewalld(self):
        """Whether firewalld is in charge."""
        return (
            bool(self.firewall_cmd)
            and self.module.run_command([self.firewall_cmd, "--state"])[0] == 0
        )

    def blocks(self, packet):
        """List of (backend, chain, why) that stop the packet."""
        found = []
        if self.in_iptables:
            stop = self.in_iptables.verdict(packet)
            if stop:
                found.append(("iptables", stop[0], stop[1]))
        if self.in_nft:
            stop = self.in_nft.verdict(packet)
            if stop:
                found.append(("nftables", stop[0], stop[1]))
        return found


def survey(firewall, packets):
    """(chains that must be opened, examples of what is closed)."""
    chains = []
    examples = []
    for packet in packets:
        for backend, chain, why in firewall.blocks(packet):
            if (backend, chain) not in chains:
                chains.append((backend, chain))
            if len(examples) < EXAMPLES_MAX:
                name = chain if isinstance(chain, str) else " ".join(chain)
                examples.append(f"{packet.text()} is stopped by {why} ({backend}, {name})")
    return chains, examples


def removals(firewall):
    """Commands that take our rules away."""
    found = []
    if firewall.in_iptables:
        found += [
            [firewall.iptables, "-w", "5", "-D", *words] for words in firewall.in_iptables.ours()
        ]
    if firewall.in_nft:
        found += [
            [firewall.nft, "delete", "rule", *key, "handle", str(handle)]
            for key, handle, _comment in firewall.in_nft.ours()
        ]
    return found


def current(firewall):
    """(chains that hold rules of ours, their comments)."""
    chains = []
    comments = set()
    if firewall.in_iptables:
        for words in firewall.in_iptables.ours():
            chains.append(("iptables", words[0]))
            comments.add(words[words.index("--comment") + 1])
    if firewall.in_nft:
        for key, _handle, comment in firewall.in_nft.ours():
            chains.append(("nftables", key))
            comments.add(comment)
    return list(dict.fromkeys(chains)), comments


def additions(firewall, chains, rules, sources):
    """Commands that open the ports in these chains."""
    found = []
    for backend, chain in chains:
        if backend == "iptables":
            found += [
                [firewall.iptables, "-w", "5", *words]
                for words in _firewall.iptables_commands(rules, sources)
            ]
        else:
            found += [
                [firewall.nft, *words] for words in _firewall.nft_commands(chain, rules, sources)
            ]
    return found


def with_firewalld(module, firewall, wanted):
    """Rich rules of ours in the zone of the host's interface; returns commands that are needed."""
    device = device_of(module.params["address"]) or ""
    ask = [firewall.firewall_cmd, f"--get-zone-of-interface={device}"]
    zone = module.run_command(ask)[1].strip()
    if not zone:
        zone = firewall.run(firewall.firewall_cmd, "--get-default-zone").strip()
    before = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    commands = []
    for permanent in (["--permanent"], []):
        there = firewall.run(
            firewall.firewall_cmd, *permanent, f"--zone={zone}", "--list-rich-rules"
        ).splitlines()
        commands += [
            [firewall.firewall_cmd, *permanent, f"--zone={zone}", f"--remove-rich-rule={rule}"]
            for rule in before
            if rule in there and rule not in wanted
        ]
        commands += [
            [firewall.firewall_cmd, *permanent, f"--zone={zone}", f"--add-rich-rule={rule}"]
            for rule in wanted
            if rule not in there
        ]
    if not module.check_mode:
        for command in commands:
            firewall.run(*command)
        if commands or before != wanted:
            RECORD.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh = RECORD.with_suffix(".new")
            fresh.write_text(json.dumps(wanted), encoding="utf-8")
            fresh.replace(RECORD)
    return commands


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "rules": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "protocol": {"type": "str", "choices": ["tcp", "udp"], "default": "tcp"},
                    "ports": {"type": "list", "elements": "str", "required": True},
                },
            },
            "sources": {"type": "list", "elements": "str", "default": []},
            "address": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    params = module.params
    rules, sources = params["rules"], params["sources"]
    firewall = Firewall(module)
    here, comments = current(firewall)
    if params["state"] == "absent":
        if firewall.firewalld():
            steps = with_firewalld(module, firewall, [])
        else:
            steps = removals(firewall)
            if not module.check_mode:
                for step in steps:
                    firewall.run(*step)
        finish(module, steps, [], [], "")
    packets = list(
        _firewall.packets(rules, sources, device_of(params["address"]) or "", params["address"])
    )
    closed, examples = survey(firewall, packets)
    if firewall.firewalld():
        steps = []
        if closed or RECORD.exists():
            steps = with_firewalld(module, firewall, _firewall.firewalld_rules(rules, sources))
        finish(module, steps, examples, [], "firewalld")
    wanted = {_firewall.digest(rules, sources)} if sources else set()
    fresh = not closed and (not here or comments == wanted)
    chains = list(dict.fromkeys(here + closed)) if sources else []
    adds = additions(firewall, chains, rules, sources)
    steps = [] if fresh else removals(firewall) + adds
    if not module.check_mode:
        for step in steps:
            firewall.run(*step)
        if steps:
            firewall.read()
            closed, rest = survey(firewall, packets)
            if closed:
                module.fail_json(
                    msg=f"slim_firewall: still closed after opening: {rest[0]}; open it in the "
                    "tool that manages this host's firewall and set slim_host_firewall: checked"
                )
    backend = "+".join(sorted({backend for backend, _chain in chains}))
    finish(module, steps, examples, [shlex.join(add) for add in adds], backend)


def finish(module, steps, closed, commands, backend):
    """Answer: steps are what was (or would be) run."""
    module.exit_json(
        changed=bool(steps),
        closed=closed,
        commands=commands,
        backend=backend,
        diff={"before": "", "after": "".join(shlex.join(step) + "\n" for step in steps)},
    )


if __name__ == "__main__":
    main()
