#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Gives the host connections of an endpoint a class of service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_qos
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Set the class of service of an endpoint's connections
description:
  - Sets priority and DSCP of the host connections of one endpoint, of all of them and of those
    of some services.
  - The priority orders packets where the collection shapes, which is the endpoint's own limit
    (M(slim.overlay.slim_rate_limit)) and the host's link (O(slim.overlay.slim_qos#role:main:slim_qos_link_rate)
    of the role), and is the sockets' C(SO_PRIORITY) for queues of the site.
  - Holds for connections that are made from then on. The router sets it before it hands a
    connection over; without secure mode the program that holds it can change DSCP and C(SO_PRIORITY),
    but not the class that the host's queues see.
  - Runs on the endpoint's own host, on which the role P(slim.overlay.slim_qos#role) has run.
options:
  endpoint:
    description: Name of the endpoint.
    type: str
    required: true
  tenant:
    description: Its tenant; needed where two of this host have an endpoint of that name.
    type: str
  state:
    description: With V(absent) the endpoint is V(normal) again, without services of their own.
    type: str
    choices: [present, absent]
    default: present
  qos_class:
    description: Priority and DSCP by name.
    type: str
    choices: [bulk, normal, interactive, realtime]
  priority:
    description: V(0) to V(7), V(7) goes first, in place of O(qos_class).
    type: int
  dscp:
    description:
      - V(0) to V(63), in place of the class's own, which for O(priority) is V(0). Alone, it leaves
        the priority that is there.
    type: int
  ports:
    description:
      - Services with a class of their own, on whichever side the endpoint is; the first that
        names a port wins. Left out, they stay; an empty list takes them away.
    type: list
    elements: dict
    suboptions:
      ports:
        description: Ports and ranges, such as V(80) and V(8000-8010).
        type: list
        elements: str
        required: true
      qos_class:
        description: As above.
        type: str
        choices: [bulk, normal, interactive, realtime]
      priority:
        description: As above.
        type: int
      dscp:
        description: As above.
        type: int
  python:
    description: Interpreter of the helper on the host, which has pyroute2.
    type: path
    default: /usr/bin/python3
  directory:
    description: Where the role has put the helper.
    type: path
    default: /opt/slim/qos/current
seealso:
  - module: slim.overlay.slim_rate_limit
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the classes before and after.
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Let the backup wait for everybody else
  slim.overlay.slim_qos:
    endpoint: backup
    qos_class: bulk

- name: Queries before exports
  slim.overlay.slim_qos:
    endpoint: db
    ports:
      - ports: ["5432"]
        qos_class: interactive
      - ports: ["8000-8010"]
        priority: 1
        dscp: 8
"""

RETURN = r"""
classes:
  description: The classes of new connections (or what they would be).
  returned: success
  type: dict
  sample: {default: {priority: 1, dscp: 10}, ports: []}
changes:
  description: What was (or would be) done, one line each.
  returned: success
  type: list
  elements: str
skipped_fallback:
  description: Endpoints whose fallback cannot be shaped now.
  returned: success
  type: list
  elements: dict
  contains:
    endpoint:
      description: Its name.
      type: str
    reason:
      description: What is wrong.
      type: str
router:
  description: What the router of the host said.
  returned: success
  type: str
kind:
  description:
    - Why it was not done. V(refused), what is asked cannot be and nothing was touched.
    - V(failed), kernel, disk or router did not take it, and what had been changed was taken back.
    - V(no-helper), nobody answers, because the role has not run here or the interpreter lacks something.
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _qos

NAMES = ["bulk", "normal", "interactive", "realtime"]
CLASS = {
    "qos_class": {"type": "str", "choices": NAMES},
    "priority": {"type": "int"},
    "dscp": {"type": "int"},
}


def wish(params):
    """A class as the helper wants it."""
    return {
        "class": params["qos_class"],
        "priority": params["priority"],
        "dscp": params["dscp"],
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ports": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "ports": {"type": "list", "elements": "str", "required": True},
                    **CLASS,
                },
                "mutually_exclusive": [("qos_class", "priority")],
            },
            **CLASS,
            **_qos.ARGUMENTS,
        },
        mutually_exclusive=[("qos_class", "priority")],
        required_if=[("state", "present", ("qos_class", "priority", "dscp", "ports"), True)],
        supports_check_mode=True,
    )
    params = module.params
    change = {"endpoint": params["endpoint"], "tenant": params["tenant"]}
    if params["state"] == "absent":
        if any(params[name] is not None for name in ("qos_class", "priority", "dscp", "ports")):
            _qos.refuse(module, "slim_qos: state absent takes no class; leave it out")
        change |= {"class": "normal", "ports": []}
    else:
        change |= wish(params)
        if params["ports"] is not None:
            change["ports"] = [{"ports": rule["ports"], **wish(rule)} for rule in params["ports"]]
    _qos.finish(module, _qos.ask(module, {"classes": [change]}), "classes")


if __name__ == "__main__":
    main()
