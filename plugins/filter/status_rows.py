# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes the fleet's table out of what its routers say; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.plugin_utils import _results

DOCUMENTATION = r"""
name: status_rows
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: A row for each host of a fleet
description:
  - Makes it of results of P(slim.overlay.slim_router_info#module), run with C(connections=true).
options:
  _input:
    description: The registered results by host; empty where a host was not asked.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Show the fleet
  ansible.builtin.debug:
    msg: "{{ dict(ansible_play_hosts_all | zip(results)) | slim.overlay.status_rows | slim.overlay.table }}"
  vars:
    results: "{{ ansible_play_hosts_all | map('extract', hostvars, 'router') }}"
"""

RETURN = r"""
_value:
  description:
    - Rows with C(host), C(state) (V(up), V(FAILED), V(UNREACHABLE), V(NOT ASKED)), C(problem), C(version),
      C(endpoints) and C(peers) (up of all), C(slim) and C(overlay) (live connections), C(policy) (revision),
      C(default), C(rules), C(incomplete) (endpoints that the last list or this question did not reach).
  type: list
  elements: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"status_rows": _results.status}
