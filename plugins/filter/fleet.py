# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Turns the hosts' variables into one description of the fleet; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: fleet
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: The fleet as the inventory describes it
description:
  - Collects address, ports and endpoints of the given hosts from their variables.
  - Nothing is judged here. See P(slim.overlay.inventory_problems#filter) for that.
options:
  _input:
    description: The C(hostvars) of the play.
    type: dict
    required: true
  names:
    description: The hosts to look at, normally C(groups['slim_hosts']).
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Know the fleet
  ansible.builtin.set_fact:
    fleet: "{{ hostvars | slim.overlay.fleet(groups['slim_hosts']) }}"
  run_once: true
"""

RETURN = r"""
_value:
  description: The fleet, with the keys C(hosts) and C(endpoints).
  type: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"fleet": _fleet.build}
