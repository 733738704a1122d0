# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds rules that never match; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.plugin_utils import _policy

DOCUMENTATION = r"""
name: policy_warnings
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Rules of a policy that never match
description:
  - Lists the rules that one earlier rule covers wholly, and whether that one says the
    same or the opposite. The search is bounded in time.
  - Says nothing of a policy that a router would refuse.
options:
  _input:
    description: The policy, with the keys C(default) and C(rules).
    type: dict
    required: true
  name:
    description: What the sentences call it.
    type: str
    default: slim_policy
seealso:
  - plugin: slim.overlay.policy_problems
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Show them
  ansible.builtin.debug:
    msg: "{{ slim_policy | slim.overlay.policy_warnings }}"
"""

RETURN = r"""
_value:
  description: One sentence for each rule that never matches.
  type: list
  elements: str
"""


def policy_warnings(value, name="slim_policy"):
    """The findings as sentences."""
    return _policy.warnings(value, name)


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"policy_warnings": policy_warnings}
