#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the router of the host does; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_router_info
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: What the router of a host does
description:
  - Returns its status, its endpoints with their listeners, the trunks to other hosts, and counters.
options:
  connections:
    description: Count the live connections by path, which asks every endpoint for its table.
    type: bool
    default: false
extends_documentation_fragment:
  - slim.overlay.router
  - slim.overlay.router.info
"""

EXAMPLES = r"""
- name: Look at the routers
  slim.overlay.slim_router_info:
  register: router

- name: Stop where an endpoint is not served
  ansible.builtin.assert:
    that: router.endpoints | rejectattr('state', 'equalto', 'up') | length == 0
"""

RETURN = r"""
status:
  description: The router as a whole, as C(slimctl status --json) prints it, without its trunks.
  returned: success
  type: dict
  contains:
    version:
      description: The router's version.
      type: str
    revision:
      description: Of the fleet map.
      type: int
    secure_state:
      description: The secure mode, and whether it is in force.
      type: dict
    policy:
      description: C(revision), C(default), number of C(rules), C(state) and C(cause), C(revoked) in all.
      type: dict
endpoints:
  description: The endpoints of this host with C(name), C(tenant), C(vip), C(state), C(listeners), C(counters).
  returned: success
  type: list
  elements: dict
peers:
  description:
    - The other hosts, with C(host), C(address), C(rtt_us).
    - C(state) is that of the trunk, V(up), V(dialling) or V(idle).
  returned: success
  type: list
  elements: dict
counters:
  description: C(events) and C(reloads) of the router.
  returned: success
  type: dict
connections:
  description: Numbers of live connections by path.
  returned: O(connections=true)
  type: dict
  contains:
    slim:
      description: On the host path.
      type: int
    overlay:
      description: On the overlay.
      type: int
    incomplete:
      description: Endpoints that gave no full answer in time.
      type: list
      elements: str
kind:
  description: Why there was no answer; see P(slim.overlay.slim_acl#module).
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _router


def counted(router):
    """Live connections by path."""
    found = router.need("connections", router.ask("connections"), connections=list, incomplete=list)
    paths = [row.get("path") for row in found["connections"]]
    return {
        "slim": paths.count("slim"),
        "overlay": paths.count("overlay"),
        "incomplete": found["incomplete"],
    }


def main():
    module = AnsibleModule(
        argument_spec={"connections": {"type": "bool", "default": False}, **_router.ARGUMENTS},
        supports_check_mode=True,
    )
    router = _router.Router.of(module)
    try:
        status = router.need("status", router.ask("status"), version=str, trunks=list)
        endpoints = router.need("endpoints", router.ask("endpoints"), endpoints=list)
        counters = router.need("metrics", router.ask("metrics"), events=dict, reloads=dict)
        result = {
            "endpoints": endpoints["endpoints"],
            "peers": status.pop("trunks"),
            "status": status,
            "counters": {name: counters[name] for name in ("events", "reloads")},
        }
        if module.params["connections"]:
            result["connections"] = counted(router)
    except _router.RouterError as error:
        _router.fail(module, error)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
