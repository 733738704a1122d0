# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The content of map.json for one host; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: fleet_map
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: The map that every router reads
description:
  - Renders the whole fleet in the format of C(map.json).
  - The revision stays as it is where the host has this content already, and
    otherwise becomes one more than the highest that any host of the run has.
options:
  _input:
    description: The fleet, from P(slim.overlay.fleet#filter).
    type: dict
    required: true
  installed:
    description: C(revision) and C(digest) of the map that the host has, from its facts.
    type: dict
  seen:
    description: The same of the other hosts of this run.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Render the map of a host that has none
  ansible.builtin.debug:
    msg: "{{ hostvars | slim.overlay.fleet(groups['slim_hosts']) | slim.overlay.fleet_map }}"
"""

RETURN = r"""
_value:
  description: The map, ready to be written as JSON.
  type: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"fleet_map": _fleet.fleet_map}
