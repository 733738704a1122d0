# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sums up what a push did on the hosts of a play; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.plugin_utils import _results

DOCUMENTATION = r"""
name: policy_summary
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: What a push of the policy did
description:
  - Makes a row for each host, and one list of the revoked connections, out of results of
    P(slim.overlay.slim_acl#module).
options:
  _input:
    description: The registered results by host; empty where a host was not asked.
    type: dict
    required: true
  check:
    description: They are of a run in check mode.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Sum up
  ansible.builtin.debug:
    msg: "{{ dict(ansible_play_hosts_all | zip(results)) | slim.overlay.policy_summary }}"
  vars:
    results: "{{ ansible_play_hosts_all | map('extract', hostvars, 'pushed') }}"
"""

RETURN = r"""
_value:
  description: The summary.
  type: dict
  contains:
    hosts:
      description: Rows with C(host), C(state), C(revision), C(revoked), C(ms), C(problem).
      type: list
      elements: dict
    revoked:
      description:
        - Each connection once, with C(hosts) that cut it, C(src), C(sport), C(dst), C(dport), C(path), C(rule).
        - Between two hosts, the one that is first cuts it, and the other may find it gone.
      type: list
      elements: dict
    revoked_total:
      description: Their number, those included that a host counts and does not name.
      type: int
    failed:
      description: The hosts that do not have the list everywhere.
      type: list
      elements: str
"""


def policy_summary(answers, check=False):
    """Rows and connections."""
    return _results.policy(answers, check)


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"policy_summary": policy_summary}
