# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whom the routing daemon of a host talks to; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: fleet_neighbours
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Whom the routing daemon of a host talks to
description:
  - Lists the BGP neighbours of a host. They are all others, or the route reflectors where there are some.
options:
  _input:
    description: The fleet, from P(slim.overlay.fleet#filter).
    type: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
  reflectors:
    description: Hosts of the fleet, or addresses of other routers, that pass routes on.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show whom the host talks to
  ansible.builtin.debug:
    msg: "{{ fleet | slim.overlay.fleet_neighbours(inventory_hostname, ['node1']) }}"
"""

RETURN = r"""
_value:
  description: A dict for each neighbour, with C(name), C(address) and C(client).
  type: list
  elements: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"fleet_neighbours": _fleet.neighbours}
