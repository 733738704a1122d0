#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reads the policy of the host; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_acl_info
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: The policy in force on a host
description:
  - Returns the list in its normal form, ready for P(slim.overlay.slim_acl#module).
extends_documentation_fragment:
  - slim.overlay.router
  - slim.overlay.router.info
seealso:
  - module: slim.overlay.slim_acl
"""

EXAMPLES = r"""
- name: Read the policy
  slim.overlay.slim_acl_info:
  register: acl

- name: Take it over as it is
  slim.overlay.slim_acl:
    default: "{{ acl.default }}"
    rules: "{{ acl.rules }}"
"""

RETURN = r"""
revision:
  description: Of the list in force; 0 where none was ever pushed.
  returned: success
  type: int
default:
  description: V(allow) or V(deny), for connections that no rule matches.
  returned: success
  type: str
rules:
  description: The rules in their order, with the options of P(slim.overlay.slim_acl#module).
  returned: success
  type: list
  elements: dict
state:
  description: V(in-force), or V(unreadable) where the list on disk cannot be used and everything new is denied.
  returned: success
  type: str
cause:
  description: Why it is unreadable, or an empty string.
  returned: success
  type: str
kind:
  description: Why there was no answer; see P(slim.overlay.slim_acl#module).
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _router


def main():
    module = AnsibleModule(argument_spec=dict(_router.ARGUMENTS), supports_check_mode=True)
    router = _router.Router.of(module)
    try:
        found = router.need(
            "acl", router.ask("acl"), revision=int, default=str, rules=list, state=str, cause=str
        )
    except _router.RouterError as error:
        _router.fail(module, error)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
