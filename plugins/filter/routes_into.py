# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Finds the routes of a host that lead into given networks; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _host

DOCUMENTATION = r"""
name: routes_into
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Routes that lead into given networks
description:
  - Picks those routes of a host and of its endpoints' namespaces that overlap one
    of the networks. The default route overlaps every one.
options:
  _input:
    description: The facts, C(ansible_facts.slim_host).
    type: dict
    required: true
  networks:
    description: The networks to reach.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: See how the overlay is reached
  ansible.builtin.debug:
    msg: "{{ ansible_facts.slim_host | slim.overlay.routes_into(['10.44.0.0/16']) }}"
"""

RETURN = r"""
_value:
  description: Network and device of each such route.
  type: list
  elements: dict
"""


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"routes_into": _host.routes_into}
