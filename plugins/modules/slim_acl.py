#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Pushes a policy to the router of the host: who may connect to whom.

The router judges, compares and revokes; this module only says what the list is to be.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_acl
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Put a policy in force on a host
description:
  - The policy is an ordered list of rules; the first one that matches a connection
    decides, else O(default) does. The router refuses new connections that it forbids and
    revokes live ones at once.
  - The list is compared in its normal form, so that another way to write the same
    prefixes and ports is no change.
  - The router has the list on disk before it says so; it is in force after a restart.
options:
  rules:
    description:
      - The rules, in their order. With O(state=absent) only their O(rules[].id) counts.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: "Its name, 1 to 64 of the characters C(A-Z a-z 0-9 . _ : -); no two rules share one."
        type: str
        required: true
      action:
        description: What becomes of a connection that it matches. Required with O(state=present).
        type: str
        choices: [allow, deny]
      sources:
        description: Prefixes (or addresses) of the side that connects; any if left out. At most 64.
        type: list
        elements: str
      destinations:
        description: Prefixes (or addresses) of the side that is connected to; any if left out. At most 64.
        type: list
        elements: str
      ports:
        description: Destination ports, each a number or a range such as V(8000-8080); any if left out. At most 64.
        type: list
        elements: str
      tenant:
        description: The tenant that it is about; any if left out.
        type: str
      comment:
        description: One plain line, at most 256 characters.
        type: str
  default:
    description:
      - What becomes of a connection that no rule matches.
      - Required where O(rules) are the whole list; otherwise the one in force stays.
    type: str
    choices: [allow, deny]
  state:
    description: V(absent) removes the rules of these ids, and knows of no O(purge).
    type: str
    choices: [present, absent]
    default: present
  purge:
    description:
      - With V(true) O(rules) are the whole list. With V(false) each replaces the rule of the
        same id in its place, or is new and goes to O(position); all others stay.
    type: bool
    default: true
  position:
    description: Where new rules go with O(purge=false), in front of all others or behind them.
    type: str
    choices: [begin, end]
    default: end
  expect:
    description:
      - The revision that must be in force, so that nobody's change is lost (compare-and-swap);
        P(slim.overlay.slim_acl_info#module) reads it. The task fails with any other.
    type: int
  max_revoked:
    description: Do nothing and fail if more live connections than this would be revoked.
    type: int
  wait:
    description:
      - Seconds, from 0 to 25, until every endpoint must have the list in force and have revoked
        what it forbids. The task fails if one has not, unless this is V(0).
    type: int
    default: 5
extends_documentation_fragment:
  - slim.overlay.router
attributes:
  check_mode:
    description: The router says what would change, and which connections would be revoked.
    support: full
  diff_mode:
    description: Shows both lists in their normal form.
    support: full
seealso:
  - module: slim.overlay.slim_acl_info
  - module: slim.overlay.slim_revoke
"""

EXAMPLES = r"""
- name: Let the web servers reach the database, and nobody else
  slim.overlay.slim_acl:
    default: allow
    rules:
      - id: web-to-db
        action: allow
        sources: [10.44.1.0/24]
        destinations: [10.44.2.7]
        ports: [5432]
      - id: db-closed
        action: deny
        destinations: [10.44.2.7]

- name: Block one client before anything else, but cut at most 100 connections
  slim.overlay.slim_acl:
    purge: false
    position: begin
    max_revoked: 100
    rules:
      - {id: block-17, action: deny, sources: [10.44.1.17], comment: abuse report}

- name: Unblock it
  slim.overlay.slim_acl:
    state: absent
    rules:
      - id: block-17

- name: Read the list
  slim.overlay.slim_acl_info:
  register: acl

- name: Change it only if nobody else has meanwhile
  slim.overlay.slim_acl:
    default: deny
    rules: "{{ acl.rules }}"
    expect: "{{ acl.revision }}"
"""

RETURN = r"""
revision:
  description: Of the list that is in force now, or in check mode would be.
  returned: success
  type: int
  sample: 8
revoked:
  description:
    - The connections that were revoked, or in check mode would be; at most 100,000.
    - Of a connection between two hosts, the one that is first cuts it and names it; the other
      names it only if it still finds it.
    - A failure for O(max_revoked) returns them in check mode only.
  returned: always, unless nothing could be asked
  type: list
  elements: dict
  contains:
    endpoint:
      description: The endpoint of this host that had it.
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
      description: Id of the rule that forbids it; null if the default does.
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
  description: Their number, those beyond the first 100,000 included.
  returned: always, unless nothing could be asked
  type: int
incomplete:
  description: Endpoints that did not answer in time or could not do it all.
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
findings:
  description: Rules that can never match, because an earlier one covers or contradicts them. Shown as warnings too.
  returned: success
  type: list
  elements: str
changes:
  description: What changes of the list, one line a rule.
  returned: success
  type: list
  elements: str
  sample: ["+ 1 block-17: deny 10.44.1.17/32 to any"]
seconds:
  description: What it took from the router's receipt of the list to the last endpoint's answer; 0 in check mode.
  returned: success
  type: float
kind:
  description:
    - Why the router did not do it, one of V(no-router), V(no-access), V(no-answer), V(old-router),
      V(bad-answer), V(refused), V(incomplete).
  returned: failure
  type: str
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _router

# How often a merge is made anew because somebody else's list came between.
TRIES = 5


def given_rules(module):
    """The rules as the router reads them: without what was left out."""
    return [
        {name: value for name, value in rule.items() if value is not None}
        for rule in module.params["rules"]
    ]


def wanted(params, rules, now):
    """The whole list that is to be in force, by what is.

    :returns: (default, rules)
    """
    default = params["default"] or now["default"]
    if params["state"] == "absent":
        gone = {rule["id"] for rule in rules}
        return default, [rule for rule in now["rules"] if rule["id"] not in gone]
    if params["purge"]:
        return default, rules
    ours = {rule["id"]: rule for rule in rules}
    there = {rule["id"] for rule in now["rules"]}
    # Twins among the new rules stay twins: the router says which.
    new = [rule for rule in rules if rule["id"] not in there]
    kept = [ours.get(rule["id"], rule) for rule in now["rules"]]
    return default, new + kept if params["position"] == "begin" else kept + new


def normal(default, rules, now, diff):
    """The new list in its normal form, out of the old one and what the router found changed."""
    of = {rule["id"]: rule for rule in now["rules"]}
    for rule in diff["added"]:
        of[rule["id"]] = {name: value for name, value in rule.items() if name != "number"}
    for change in diff["changed"]:
        of[change["id"]] = change["after"]
    return default, [of[rule["id"]] for rule in rules]


def text(default, rules):
    """A list for diff mode: one line a rule, so that a diff shows rules."""
    lines = [f"default: {default}", "rules:", *(f"- {json.dumps(rule)}" for rule in rules)]
    return "\n".join(lines) + "\n"


def read(router):
    """The policy in force."""
    return router.need("acl", router.ask("acl"), revision=int, default=str, rules=list, state=str)


def push(module, router, rules):
    """Have the list in force, or in check mode foresee it.

    :returns: (what was in force, default and rules that were sent, the router's answer)
    """
    params = module.params
    for attempt in range(TRIES):
        now = read(router)
        whole = params["state"] == "present" and params["purge"]
        if now["state"] != "in-force" and not whole:
            module.fail_json(
                msg=f"the policy of this host cannot be read ({now.get('cause')}), so that nothing can be "
                "added to it or taken away; push the whole list (purge: true)",
                kind="refused",
            )
        default, listed = wanted(params, rules, now)
        try:
            answer = router.ask(
                "acl-set",
                default=default,
                rules=listed,
                # So that diff mode and a merge are about the list that was read.
                expect=now["revision"] if params["expect"] is None else params["expect"],
                dry_run=module.check_mode or None,
                max_revoked=None if module.check_mode else params["max_revoked"],
                wait=params["wait"],
            )
        except _router.RouterError as error:
            overtaken = (
                error.kind == "refused"
                and params["expect"] is None
                and attempt < TRIES - 1
                and read(router)["revision"] != now["revision"]
            )
            if overtaken:
                continue
            raise
        router.need(
            "acl-set", answer, revision=int, changed=bool, diff=dict, lines=list, warnings=list,
            revoked=list, revoked_total=int, incomplete=list, seconds=(int, float),
        )  # fmt: skip
        return now, default, listed, answer
    raise AssertionError("the last attempt returns or raises")


def check(module, rules):
    """End the module on options that do not fit together."""
    params = module.params
    if not 0 <= params["wait"] <= 25:
        module.fail_json(msg=f"wait: {params['wait']} s is not from 0 to 25; correct it")
    if params["state"] == "absent":
        return
    for number, rule in enumerate(rules, 1):
        if "action" not in rule:
            module.fail_json(
                msg=f"rule {number} ({rule['id']}): action: missing; add it, one of allow, deny"
            )
    if params["purge"] and params["default"] is None:
        module.fail_json(
            msg="default: missing, and the rules are the whole list; add it, or set purge: false"
        )


def main():
    strings = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "rules": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "id": {"type": "str", "required": True},
                    "action": {"type": "str", "choices": ["allow", "deny"]},
                    "sources": strings,
                    "destinations": strings,
                    "ports": strings,
                    "tenant": {"type": "str"},
                    "comment": {"type": "str"},
                },
            },
            "default": {"type": "str", "choices": ["allow", "deny"]},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "purge": {"type": "bool", "default": True},
            "position": {"type": "str", "choices": ["begin", "end"], "default": "end"},
            "expect": {"type": "int"},
            "max_revoked": {"type": "int"},
            "wait": {"type": "int", "default": 5},
            **_router.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    rules = given_rules(module)
    check(module, rules)
    router = _router.Router.of(module)
    try:
        now, default, listed, answer = push(module, router, rules)
    except _router.RouterError as error:
        _router.fail(module, error)
    found = answer["warnings"]
    for sentence in found[: _router.WARNINGS_MAX]:
        module.warn(sentence)
    if len(found) > _router.WARNINGS_MAX:
        module.warn(f"{len(found) - _router.WARNINGS_MAX} more rules like these: see findings")
    result = {
        "changed": answer["changed"],
        "revision": answer["revision"],
        "incomplete": answer["incomplete"],
        "findings": found,
        "changes": answer["lines"],
        "seconds": answer["seconds"],
    }
    if module._diff:
        result["diff"] = {
            "before_header": f"policy, revision {now['revision']}",
            "after_header": f"policy, revision {answer['revision']}",
            "before": text(now["default"], now["rules"]),
            "after": text(*normal(default, listed, now, answer["diff"])),
        }
    if module.check_mode:
        _router.guard(module, answer, **result)
    result.update(revoked=answer["revoked"], revoked_total=answer["revoked_total"])
    left = _router.missing(answer["incomplete"])
    if left and module.check_mode:
        module.warn(f"the foresight is not whole: {left}")
    elif left and module.params["wait"] > 0:
        module.fail_json(
            msg=f"revision {answer['revision']} is in force, but not everywhere: {left}; run the task "
            "again, which pushes it again, or restart the router there",
            kind="incomplete",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
