#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Limits what an endpoint of this host sends and receives."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_rate_limit
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Limit the rate of an endpoint and of its connections
description:
  - Limits what one endpoint sends and receives, whatever way it takes
    (host connections between hosts and inside of one, and the fallback overlay), and what each
    of its host connections sends.
  - A limit of the endpoint holds for live connections from the moment that the task returns.
    A limit of each connection holds for connections that are made from then on.
  - Host connections that were made before the role P(slim.overlay.slim_qos#role) first ran on the
    host carry no mark, so that no limit reaches them; M(slim.overlay.slim_revoke) ends them, and
    what their programs make instead is limited.
  - Runs on the endpoint's own host, on which the role P(slim.overlay.slim_qos#role) has run.
  - Kept on disk and made again at boot.
options:
  endpoint:
    description: Name of the endpoint.
    type: str
    required: true
  tenant:
    description: Its tenant; needed where two of this host have an endpoint of that name.
    type: str
  state:
    description: With V(absent) all three limits go.
    type: str
    choices: [present, absent]
    default: present
  egress:
    description:
      - What the endpoint may send, as bits per second or as text such as V(100mbit), counted
        in whole Ethernet frames.
      - V(0) is no limit. What is left out stays as it is.
    type: str
  ingress:
    description: What it may receive, in the same way.
    type: str
  connection:
    description:
      - What each of its host connections may send, in the same way. Set by pacing, for frames
        of 1514 bytes.
      - Without secure mode the program that holds the connection can lift it.
    type: str
  python:
    description: Interpreter of the helper on the host, which has pyroute2.
    type: path
    default: /usr/bin/python3
  directory:
    description: Where the role has put the helper.
    type: path
    default: /opt/slim/qos/current
seealso:
  - module: slim.overlay.slim_qos
  - module: slim.overlay.slim_revoke
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the limits before and after.
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Hold the backup to 100 Mbit/s each way
  slim.overlay.slim_rate_limit:
    endpoint: backup
    egress: 100mbit
    ingress: 100mbit

- name: No more than 10 Mbit/s for each download
  slim.overlay.slim_rate_limit:
    endpoint: mirror
    connection: 10mbit

- name: Lift all limits
  slim.overlay.slim_rate_limit:
    endpoint: backup
    state: absent
"""

RETURN = r"""
limits:
  description: The limits that hold (or would), bits per second; 0 is none.
  returned: success
  type: dict
  sample: {egress: 100000000, ingress: 0, connection: 0}
changes:
  description: What was (or would be) done, one line each.
  returned: success
  type: list
  elements: str
skipped_fallback:
  description: Endpoints whose fallback cannot be limited now.
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

RATES = ("egress", "ingress", "connection")


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "egress": {"type": "str"},
            "ingress": {"type": "str"},
            "connection": {"type": "str"},
            **_qos.ARGUMENTS,
        },
        required_if=[("state", "present", RATES, True)],
        supports_check_mode=True,
    )
    params = module.params
    if params["state"] == "absent":
        if any(params[name] is not None for name in RATES):
            _qos.refuse(module, "slim_rate_limit: state absent takes no rates; leave them out")
        rates = dict.fromkeys(RATES, "0")
    else:
        rates = {name: params[name] for name in RATES}
    change = {"endpoint": params["endpoint"], "tenant": params["tenant"], **rates}
    _qos.finish(module, _qos.ask(module, {"limits": [change]}), "limits")


if __name__ == "__main__":
    main()
