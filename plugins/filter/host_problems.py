# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Says why Slim cannot go onto a host; changes nothing."""

from __future__ import annotations

from ansible_collections.slim.overlay.plugins.module_utils import _fleet, _host

DOCUMENTATION = r"""
name: host_problems
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Why Slim cannot go onto a host
description:
  - Judges the facts of M(slim.overlay.slim_host_facts) against the settings.
options:
  _input:
    description: The facts, C(ansible_facts.slim_host).
    type: dict
    required: true
  settings:
    description: The settings of the host. The role slim_preflight lists them.
    type: dict
    required: true
  kind:
    description: What stops the deployment, or what is only worth a word.
    type: str
    choices:
      - problems
      - notes
    default: problems
"""

EXAMPLES = r"""
- name: Say what is worth a word
  ansible.builtin.debug:
    msg: "{{ ansible_facts.slim_host | slim.overlay.host_problems(settings, 'notes') }}"
"""

RETURN = r"""
_value:
  description: One sentence for each problem or note.
  type: list
  elements: str
"""


def host_problems(facts, settings, kind="problems"):
    """The problems, or the notes, as sentences."""
    if kind == "notes":
        return _host.notes(facts, settings)
    return [_fleet.sentence(entry) for entry in _host.problems(facts, settings)]


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"host_problems": host_problems}
