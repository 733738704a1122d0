# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says what is wrong with a policy; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.plugin_utils import _policy

DOCUMENTATION = r"""
name: policy_problems
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: What is wrong with a policy
description:
  - Lists every reason for which a router would refuse it, judged by the router's own
    code on the controller, each with the rule's number and id, the field, the cause and
    the next step.
options:
  _input:
    description:
      - The policy, with the keys C(default) and C(rules); the rules are those of
        P(slim.overlay.slim_acl#module).
    type: dict
    required: true
  name:
    description: What the sentences call it.
    type: str
    default: slim_policy
seealso:
  - plugin: slim.overlay.policy_warnings
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Stop on a wrong policy before any host is asked
  ansible.builtin.assert:
    that: found | length == 0
    fail_msg: "{{ found }}"
  vars:
    found: "{{ slim_policy | slim.overlay.policy_problems }}"
"""

RETURN = r"""
_value:
  description: One sentence for each problem, 200 at most.
  type: list
  elements: str
"""


def policy_problems(value, name="slim_policy"):
    """The problems as sentences."""
    return _policy.problems(value, name)


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"policy_problems": policy_problems}
