# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says what is wrong with an inventory; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: inventory_problems
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: What is wrong with an inventory
description:
  - Lists overlapping vips, vips outside the overlay, hosts without an address,
    unknown settings and the like, each with its cause and the next step.
options:
  _input:
    description: The fleet, from P(slim.overlay.fleet#filter).
    type: dict
    required: true
  settings:
    description:
      - The fleet's settings, with the keys C(overlay_networks),
        C(fallback_provider), C(secure_mode), C(service_manager),
        C(host_firewall) and C(socket_paths).
      - C(tenants) and C(fallback_vni) where tenants have networks of their own.
    type: dict
    required: true
  complete:
    description: Facts of all hosts are known, so a host without an address is reported.
    type: bool
    default: true
"""

EXAMPLES = r"""
- name: Stop on a wrong inventory
  ansible.builtin.assert:
    that: found | length == 0
    fail_msg: "{{ found }}"
  vars:
    found: "{{ fleet | slim.overlay.inventory_problems(settings) }}"
"""

RETURN = r"""
_value:
  description: One sentence for each problem.
  type: list
  elements: str
"""


def inventory_problems(fleet, settings, complete=True):
    """The problems as sentences."""
    return [_fleet.sentence(entry) for entry in _fleet.problems(fleet, settings, complete)]


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"inventory_problems": inventory_problems}
