#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lists live connections of the host; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_connections_info
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: The live connections of a host
description:
  - Returns the connections of this host's endpoints that fit every filter given.
options:
  endpoint:
    description: Of this endpoint. A host that does not have it returns none.
    type: str
  tenant:
    description: Of this tenant's endpoints.
    type: str
  src:
    description: Whose connecting side's virtual address lies in this prefix.
    type: str
  dst:
    description: Whose other side's virtual address lies in this prefix.
    type: str
  dport:
    description: To this port.
    type: int
  path:
    description: Over this path.
    type: str
    choices: [slim, overlay]
  direction:
    description: V(out) for those that the endpoints made, V(in) for those that they accepted.
    type: str
    choices: [in, out]
extends_documentation_fragment:
  - slim.overlay.router
  - slim.overlay.router.info
seealso:
  - module: slim.overlay.slim_revoke
"""

EXAMPLES = r"""
- name: Which connections of the web servers to the database are not on the host path?
  slim.overlay.slim_connections_info:
    src: 10.44.1.0/24
    dport: 5432
    path: overlay
"""

RETURN = r"""
connections:
  description:
    - The connections.
    - The router returns at most 100,000 before O(src), O(dst), O(dport) and O(direction) are looked at.
  returned: success
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
total:
  description: Their number.
  returned: success
  type: int
incomplete:
  description: Endpoints that gave no full answer in time.
  returned: success
  type: list
  elements: str
truncated:
  description: There are more than the router returns.
  returned: success
  type: bool
kind:
  description: Why there was no answer; see P(slim.overlay.slim_acl#module).
  returned: failure
  type: str
"""

import ipaddress

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _router


def network(module, name):
    """A prefix given; IPv4-mapped ones are those of the IPv4 addresses. None if not given."""
    text = module.params[name]
    if text is None:
        return None
    try:
        found = ipaddress.ip_network(text)
    except ValueError as error:
        module.fail_json(msg=f"{name}: {error}; write it as ADDRESS/LENGTH, as in 10.44.0.0/16")
    mapped = getattr(found.network_address, "ipv4_mapped", None)
    if mapped is not None and found.prefixlen >= 96:
        return ipaddress.ip_network(f"{mapped}/{found.prefixlen - 96}")
    return found


def inside(text, wanted):
    """Is this address of the router's in the prefix?"""
    if wanted is None:
        return True
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return found.version == wanted.version and found in wanted


def rows(module, router):
    """What the router has, filtered as far as it does that itself."""
    params = module.params
    try:
        answer = router.ask(
            "connections", endpoint=params["endpoint"], tenant=params["tenant"], path=params["path"]
        )
    except _router.RouterError as error:
        if error.kind == "refused" and f"endpoint {params['endpoint']}: not on host" in str(error):
            return {"connections": [], "incomplete": [], "truncated": False}
        raise
    return router.need("connections", answer, connections=list, incomplete=list, truncated=bool)


def main():
    module = AnsibleModule(
        argument_spec={
            "endpoint": {"type": "str"},
            "tenant": {"type": "str"},
            "src": {"type": "str"},
            "dst": {"type": "str"},
            "dport": {"type": "int"},
            "path": {"type": "str", "choices": ["slim", "overlay"]},
            "direction": {"type": "str", "choices": ["in", "out"]},
            **_router.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    params = module.params
    src, dst = network(module, "src"), network(module, "dst")
    router = _router.Router.of(module)
    try:
        found = rows(module, router)
    except _router.RouterError as error:
        _router.fail(module, error)
    kept = [
        row
        for row in found["connections"]
        if inside(row.get("src"), src)
        and inside(row.get("dst"), dst)
        and params["dport"] in (None, row.get("dport"))
        and params["direction"] in (None, row.get("direction"))
    ]
    if found["incomplete"]:
        module.warn(f"no full answer from {', '.join(found['incomplete'])}; ask again")
    if found["truncated"]:
        module.warn("there are more connections than one answer holds; filter by endpoint or path")
    module.exit_json(
        changed=False,
        connections=kept,
        total=len(kept),
        incomplete=found["incomplete"],
        truncated=found["truncated"],
    )


if __name__ == "__main__":
    main()
