# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes a policy of a site's iptables rules; changes nothing."""

from __future__ import annotations

from ansible.errors import AnsibleFilterError
from ansible_collections.slim.overlay.plugins.plugin_utils import _iptables

DOCUMENTATION = r"""
name: acl_from_iptables
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: A policy out of the FORWARD chain of iptables
description:
  - Reads the chain C(FORWARD) of the table C(filter), its policy as C(default), and of its
    rules those with the target C(ACCEPT), C(DROP) or C(REJECT) that say nothing but
    source and destination prefixes, TCP destination ports (also by C(multiport)), a
    comment, and a state that includes C(NEW).
  - Every other rule of the chain is listed under C(not_imported) with the reason; none is
    left out in silence. Rules of chains that C(FORWARD) jumps to are not read, the jump is
    listed.
  - A filter of packets that knows no states also stops the answers to connections of the
    other direction; a policy judges connections. Look at the list before it is pushed.
options:
  _input:
    description: The output of C(iptables-save), C(ip6tables-save) or C(iptables -S).
    type: str
    required: true
  prefix:
    description: The ids are this, a hyphen, and the rule's number in the chain.
    type: str
    default: forward
"""

EXAMPLES = r"""
- name: Read the filter of a host
  ansible.builtin.command: iptables-save
  register: saved
  changed_when: false

- name: Show what it would be as a policy
  ansible.builtin.debug:
    msg: "{{ saved.stdout | slim.overlay.acl_from_iptables }}"
"""

RETURN = r"""
_value:
  description: The keys C(default) and C(rules) of a policy, and C(not_imported).
  type: dict
  contains:
    default:
      description: Of the chain's policy.
      type: str
    rules:
      description: What was understood, in the chain's order.
      type: list
      elements: dict
    not_imported:
      description:
        - The others, each with C(line) (number in the text), C(text), C(reason), and C(opens).
        - C(opens) is true where the policy may allow something that the rule kept out.
      type: list
      elements: dict
"""


def acl_from_iptables(text, prefix="forward"):
    """The policy, and what is not in it."""
    try:
        return _iptables.parse(text, prefix)
    except ValueError as error:
        raise AnsibleFilterError(f"acl_from_iptables: {error}") from error


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"acl_from_iptables": acl_from_iptables}
