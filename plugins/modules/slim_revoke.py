#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ends live connections of the host by selector."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_revoke
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: End live connections of a host
description:
  - Every copy of the descriptor stops working, and the peer sees a reset. What the policy
    allows may be made again at once; P(slim.overlay.slim_acl#module) forbids it.
  - Only connections that fit every selector given are ended, and one is needed at least.
options:
  endpoint:
    description: Of this endpoint.
    type: str
  tenant:
    description: Of this tenant's endpoints.
    type: str
  src:
    description: Virtual address of the side that connected.
    type: str
  dst:
    description: Virtual address of the other side.
    type: str
  dport:
    description: To this port.
    type: int
  path:
    description: Over this path.
    type: str
    choices: [slim, overlay]
  cookie:
    description: The one with this number, from P(slim.overlay.slim_connections_info#module).
    type: int
  max_revoked:
    description: Do nothing and fail if there are more than this.
    type: int
extends_documentation_fragment:
  - slim.overlay.router
attributes:
  check_mode:
    description: Returns the connections that would be ended.
    support: full
  diff_mode:
    description: Lists the connections.
    support: full
seealso:
  - module: slim.overlay.slim_connections_info
"""

EXAMPLES = r"""
- name: Cut whatever reached the database from this address
  slim.overlay.slim_revoke:
    src: 10.44.1.17
    dst: 10.44.2.7
    dport: 5432

- name: Have the connections of one endpoint made anew
  slim.overlay.slim_revoke:
    endpoint: web
    path: overlay
    max_revoked: 50
"""

RETURN = r"""
revoked:
  description:
    - The connections that were ended, or in check mode would be; at most 100,000.
    - A failure for O(max_revoked) returns them in check mode only.
  returned: always, unless nothing could be asked
  type: list
  elements: dict
  contains:
    endpoint:
      description: The endpoint of this host that has it.
      type: str
    tenant:
      description: Its tenant.
      type: str
    direction:
      description: V(out) if the endpoint made it, V(in) if it accepted it.
      type: str
    src:
      description: Virtual address of the side that connected.
      type: str
    sport:
      description: Its port.
      type: int
    dst:
      description: Virtual address of the other side.
      type: str
    dport:
      description: Its port.
      type: int
    path:
      description: V(slim) or V(overlay).
      type: str
    rule:
      description: Null, as no rule decided it; for the form of P(slim.overlay.slim_acl#module).
      type: str
    cookie:
      description: The kernel's number of the socket.
      type: int
    age_s:
      description: Its age in seconds.
      type: float
    hsrc:
      description: Address of this host, where the path is V(slim).
      type: str
    hsport:
      description: Its port.
      type: int
    hdst:
      description: Address of the other host.
      type: str
    hdport:
      description: Its port.
      type: int
    why:
      description: Why it took the overlay, or an empty string.
      type: str
    state:
      description: The socket's state.
      type: str
    bytes_sent:
      description: Sent by the endpoint's side.
      type: int
    bytes_received:
      description: Received by it.
      type: int
revoked_total:
  description: Their number.
  returned: always, unless nothing could be asked
  type: int
incomplete:
  description: Endpoints that did not answer in time or could not do it all; the task fails then.
  returned: always, unless nothing could be asked
  type: list
  elements: dict
  contains:
    endpoint:
      description: Its name.
      type: str
    cause:
      description: What is wrong.
      type: str
kind:
  description: Why the router did not do it; see P(slim.overlay.slim_acl#module).
  returned: failure
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _router

SELECTORS = ("endpoint", "tenant", "src", "dst", "dport", "path", "cookie")


def line(row):
    """A connection for diff mode."""
    return f"{row['endpoint']} {row['src']}:{row['sport']} > {row['dst']}:{row['dport']} {row['path']}\n"


def main():
    module = AnsibleModule(
        argument_spec={
            "endpoint": {"type": "str"},
            "tenant": {"type": "str"},
            "src": {"type": "str"},
            "dst": {"type": "str"},
            "dport": {"type": "int"},
            "path": {"type": "str", "choices": ["slim", "overlay"]},
            "cookie": {"type": "int"},
            "max_revoked": {"type": "int"},
            **_router.ARGUMENTS,
        },
        required_one_of=[SELECTORS],
        supports_check_mode=True,
    )
    selectors = {name: module.params[name] for name in SELECTORS}
    selectors.update(src=_router.address(module, "src"), dst=_router.address(module, "dst"))
    router = _router.Router.of(module)
    try:
        answer = router.ask(
            "revoke",
            dry_run=module.check_mode or None,
            max_revoked=None if module.check_mode else module.params["max_revoked"],
            **selectors,
        )
        router.need("revoke", answer, revoked=list, revoked_total=int, incomplete=list)
    except _router.RouterError as error:
        _router.fail(module, error)
    if module.check_mode:
        _router.guard(module, answer)
    result = {
        "changed": answer["revoked_total"] > 0,
        "revoked": answer["revoked"],
        "revoked_total": answer["revoked_total"],
        "incomplete": answer["incomplete"],
    }
    if module._diff:
        result["diff"] = {"before": "".join(map(line, answer["revoked"])), "after": ""}
    left = _router.missing(answer["incomplete"])
    if left and module.check_mode:
        module.warn(f"the foresight is not whole: {left}")
    elif left:
        module.fail_json(
            msg=f"not every connection was ended: {left}; run the task again, or restart the router there",
            kind="incomplete",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
