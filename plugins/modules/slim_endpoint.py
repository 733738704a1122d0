#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Has one endpoint in the host's fleet map, or takes it out, and tells the router."""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_endpoint
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: One endpoint of the fleet map
description:
  - Changes one entry of C(map.json) on a host and has the router read it again; if the router
    refuses, the old map is put back. Live connections of other endpoints are not touched.
  - Every host has a map of its own, so run this on all hosts of the fleet that are to reach
    the endpoint, its own host among them.
  - The playbook C(slim.overlay.site) renders the map from the inventory. An endpoint that
    is to stay belongs into C(slim_endpoints) there; the next run removes what is not.
  - The fallback's interface is not made here; use an endpoint that has one.
options:
  name:
    description: The endpoint's name, one of its own on its tenant.
    type: str
    required: true
  tenant:
    description: Its tenant.
    type: str
    default: default
  vip:
    description: Its virtual address. Required with O(state=present).
    type: str
  host:
    description: The host that it is on, as the inventory calls it. Required with O(state=present).
    type: str
  netns:
    description: Path of its network namespace, needed on its own host.
    type: str
  state:
    description: Whether it is to be there.
    type: str
    choices: [present, absent]
    default: present
  map:
    description: The fleet map.
    type: path
    default: /etc/slim/map.json
  config:
    description: The router's configuration, which the new map must fit.
    type: path
    default: /etc/slim/router.json
  validate:
    description:
      - The words of a command that succeeds when the map C(@MAP) fits the configuration C(@CONFIG).
        Left out where its program is not there.
    type: list
    elements: str
    default: [/opt/slim/router/current/slimctl, validate, --config, "@CONFIG", --map, "@MAP"]
extends_documentation_fragment:
  - slim.overlay.router
attributes:
  check_mode:
    description: Checks the new map and puts nothing into place.
    support: full
  diff_mode:
    description: Shows the endpoint's entry.
    support: full
"""

EXAMPLES = r"""
- name: Let the whole fleet know a container that has just been started on node1
  slim.overlay.slim_endpoint:
    name: job-17
    vip: 10.44.1.17
    host: node1
    netns: /run/netns/job-17

- name: Forget it
  slim.overlay.slim_endpoint:
    name: job-17
    state: absent
"""

RETURN = r"""
endpoint:
  description: The entry that is there now, or in check mode would be; empty if there is none.
  returned: success
  type: dict
  contains:
    name:
      description: Its name.
      type: str
    tenant:
      description: Its tenant.
      type: str
    vip:
      description: Its virtual address.
      type: str
    host:
      description: Its host.
      type: str
    netns:
      description: Path of its network namespace, or null.
      type: str
revision:
  description: Of the map.
  returned: success
  type: int
reloaded:
  description: The router has read it. Without a running router it will when it starts.
  returned: success
  type: bool
kind:
  description: Why the router did not read it; see P(slim.overlay.slim_acl#module).
  returned: failure, where the router was asked
  type: str
"""

import ipaddress
import json
import shutil
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _files, _router

KEYS = ("name", "tenant", "vip", "host", "netns")
# A fleet of 100,000 endpoints.
MAP_MAX = 64 * 1024 * 1024


def load(module, path):
    """The map that is there; ends the module where it is none."""
    try:
        if path.stat().st_size > MAP_MAX:
            raise ValueError(f"larger than {MAP_MAX} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        fits = (
            isinstance(content, dict)
            and content.get("version") == 1
            and isinstance(content.get("revision"), int)
            and isinstance(content.get("endpoints"), list)
            and all(isinstance(entry, dict) for entry in content["endpoints"])
        )
        if not fits:
            raise ValueError("not a fleet map of version 1")
    except (OSError, ValueError, RecursionError) as error:
        cause = getattr(error, "strerror", None) or error
        module.fail_json(
            msg=f"{path}: {cause}; deploy the host with the playbook slim.overlay.site first"
        )
    return content


def wanted(params):
    """The entry as the map has it, or None."""
    if params["state"] == "absent":
        return None
    entry = {key: params[key] for key in KEYS}
    try:
        entry["vip"] = str(ipaddress.ip_address(params["vip"]))
    except ValueError:
        pass  # the router says what is wrong with it
    return entry


def is_it(entry, params):
    """Is this the endpoint?"""
    return (entry.get("tenant", "default"), entry.get("name")) == (params["tenant"], params["name"])


def order(entry):
    """The order in which the playbook site renders them."""
    return tuple(str(entry.get(key, "")) for key in ("tenant", "host", "name"))


def check(module, text):
    """Have the new map judged by the router's own program; ends the module where it is refused."""
    words = module.params["validate"]
    if not words or not shutil.which(words[0]):
        return
    with tempfile.TemporaryDirectory(prefix="slim-endpoint-") as work:
        place = Path(work) / "map.json"
        place.write_text(text, encoding="utf-8")
        names = {"@MAP": str(place), "@CONFIG": module.params["config"]}
        code, out, err = module.run_command(
            [names.get(word, word) for word in words],
            environ_update={"PYTHONDONTWRITEBYTECODE": "1"},
        )
    if code:
        cause = (err.strip() or out.strip()).replace(names["@MAP"], module.params["map"])
        module.fail_json(msg=f"the new map is refused, the old one stays in use: {cause}")


def apply(module, router, path, before, text):
    """Put the map into place and tell the router; the old one is put back where it refuses.

    :returns: whether the router has read it.
    """
    mode = path.stat().st_mode & 0o7777
    try:
        _files.put(path, text, mode)
    except OSError as error:
        module.fail_json(
            msg=f"{path} cannot be written: {error.strerror}; check space and permissions there"
        )
    try:
        router.ask("reload")
    except _router.RouterError as error:
        if error.kind == "no-router":
            module.warn(f"{error}; the map is in place, and is read when the router starts")
            return False
        _files.put(path, before, mode)
        _router.fail(module, error)
    return True


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "tenant": {"type": "str", "default": "default"},
            "vip": {"type": "str"},
            "host": {"type": "str"},
            "netns": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "map": {"type": "path", "default": "/etc/slim/map.json"},
            "config": {"type": "path", "default": "/etc/slim/router.json"},
            "validate": {
                "type": "list",
                "elements": "str",
                "default": [
                    "/opt/slim/router/current/slimctl",
                    "validate",
                    "--config",
                    "@CONFIG",
                    "--map",
                    "@MAP",
                ],
            },
            **_router.ARGUMENTS,
        },
        required_if=[("state", "present", ["vip", "host"])],
        supports_check_mode=True,
    )
    params = module.params
    router = _router.Router.of(module)
    path = Path(params["map"])
    content = load(module, path)
    before = path.read_text(encoding="utf-8")
    now = [entry for entry in content["endpoints"] if is_it(entry, params)]
    entry = wanted(params)
    to_be = [] if entry is None else [entry]
    result = {"changed": now != to_be, "endpoint": entry or {}, "revision": content["revision"]}
    if module._diff:
        result["diff"] = {
            "before_header": f"{path}, revision {content['revision']}",
            "after_header": f"{path}",
            "before": "".join(json.dumps(each, sort_keys=True) + "\n" for each in now),
            "after": "".join(json.dumps(each, sort_keys=True) + "\n" for each in to_be),
        }
    if not result["changed"]:
        module.exit_json(reloaded=False, **result)
    others = [each for each in content["endpoints"] if not is_it(each, params)]
    content["endpoints"] = sorted(others + to_be, key=order)
    result["revision"] = content["revision"] = content["revision"] + 1
    text = _files.text_of(content)
    check(module, text)
    reloaded = False if module.check_mode else apply(module, router, path, before, text)
    module.exit_json(reloaded=reloaded, **result)


if __name__ == "__main__":
    main()
