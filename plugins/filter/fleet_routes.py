# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parts of the overlay by the host that has them; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: fleet_routes
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Parts of the overlay by the host that has them
description:
  - Lists the networks of the overlay that lie on the host, and those behind the other hosts with
    the address of the host that has them. A host's prefixes are one route each, and so is every
    vip that lies in none of them.
options:
  _input:
    description: The fleet, from P(slim.overlay.fleet#filter).
    type: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Show what lies where
  ansible.builtin.debug:
    msg: "{{ fleet | slim.overlay.fleet_routes(inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: A dict with C(own), a list of networks, and C(others), a list of dicts with C(to) and C(via).
  type: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"fleet_routes": _fleet.routes}
