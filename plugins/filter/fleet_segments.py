# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tenants' networks that a host is part of; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet

DOCUMENTATION = r"""
name: fleet_segments
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: The tenants' networks that a host is part of
description:
  - Lists the tenants that have endpoints on the host, with the identifier of their
    network and the hosts that it leads to.
  - The tenant C(default) is not among them. Its network is on every host.
options:
  _input:
    description: The fleet, from P(slim.overlay.fleet#filter).
    type: dict
    required: true
  tenants:
    description: The fleet's tenants, each with C(name), C(vni) and perhaps C(cidr).
    type: list
    elements: dict
    required: true
  host:
    description: Name of the host.
    type: str
    required: true
"""

EXAMPLES = r"""
- name: Know the networks of this host
  ansible.builtin.debug:
    msg: "{{ fleet | slim.overlay.fleet_segments(slim_tenants, inventory_hostname) }}"
"""

RETURN = r"""
_value:
  description: A dict for each tenant, with C(name), C(vni), C(overlay) and C(peers).
  type: list
  elements: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"fleet_segments": _fleet.segments}
