# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes a policy of a table of rules; changes nothing."""

from __future__ import annotations

import csv
import io

from ansible.errors import AnsibleFilterError
from ansible_collections.slim.overlay.plugins.plugin_utils import _policy

DOCUMENTATION = r"""
name: acl_from_csv
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: A policy out of a CSV table
description:
  - The first line names the columns C(id), C(action), C(sources), C(destinations), C(ports),
    C(tenant), C(comment), in any order; only C(action) is needed. Several prefixes or ports in
    a cell are set apart by white space or semicolons; an empty cell, C(any) or C(*) means any.
  - A rule without id gets one of its line number.
  - Rows that a router would refuse are listed under C(not_imported) with the reason.
options:
  _input:
    description: The text of the table, with commas or semicolons between the columns.
    type: str
    required: true
  default:
    description: The policy's C(default).
    type: str
    choices: [allow, deny]
    default: deny
"""

EXAMPLES = r"""
- name: Read a table
  ansible.builtin.debug:
    msg: "{{ lookup('ansible.builtin.file', 'rules.csv') | slim.overlay.acl_from_csv('allow') }}"
"""

RETURN = r"""
_value:
  description: The keys C(default) and C(rules) of a policy, and C(not_imported).
  type: dict
  contains:
    default:
      description: As it was given.
      type: str
    rules:
      description: The rows in their order.
      type: list
      elements: dict
    not_imported:
      description:
        - The others, each with C(line), C(text), C(reason), and C(opens).
        - C(opens) is true where the policy may allow something that the row kept out.
      type: list
      elements: dict
"""

COLUMNS = ("id", "action", "sources", "destinations", "ports", "tenant", "comment")
LISTS = ("sources", "destinations", "ports")
ANY = ("", "any", "*")
ACTIONS = {"accept": "allow", "permit": "allow", "drop": "deny", "reject": "deny"}


def acl_from_csv(text, default="deny"):
    """The policy, and what is not in it."""
    if default not in ("allow", "deny"):
        raise AnsibleFilterError(f"acl_from_csv: default {default!r} is neither allow nor deny")
    lines = str(text).lstrip("\ufeff")
    head = lines.partition("\n")[0]
    rows = csv.reader(io.StringIO(lines), delimiter=";" if ";" in head and "," not in head else ",")
    columns = [name.strip().lower() for name in next(rows, [])]
    unknown = [name for name in columns if name not in COLUMNS]
    if unknown or "action" not in columns or len(set(columns)) != len(columns):
        raise AnsibleFilterError(
            f"acl_from_csv: the first line names the columns {', '.join(columns) or 'none'}; the known "
            f"ones are {', '.join(COLUMNS)}, each once, and action is needed"
        )
    rules, left, seen = [], [], {}
    for cells in rows:
        line = rows.line_num
        if not any(cell.strip() for cell in cells):
            continue
        rule = _rule(dict(zip(columns, cells, strict=False)), line)
        if len(cells) > len(columns):
            reason = f"it has {len(cells)} cells, and there are {len(columns)} columns"
        elif rule["id"] in seen:
            reason = f"id {rule['id']} is already that of line {seen[rule['id']]}"
        else:
            reason = _policy.rule_refused(rule)
        if reason:
            opens = rule["action"] != "allow"
            left.append({"line": line, "text": ",".join(cells), "reason": reason, "opens": opens})
        else:
            seen[rule["id"]] = line
            rules.append(rule)
    return {"default": default, "rules": rules, "not_imported": left}


def _rule(cells, line):
    """A row as a rule that has not been checked."""
    given = {name: cell.strip() for name, cell in cells.items()}
    action = given.get("action", "").lower()
    rule = {"id": given.get("id") or f"line-{line}", "action": ACTIONS.get(action, action)}
    for name in LISTS:
        if given.get(name, "").lower() not in ANY:
            rule[name] = given[name].replace(";", " ").split()
    if given.get("tenant", "").lower() not in ANY:
        rule["tenant"] = given["tenant"]
    if given.get("comment"):
        rule["comment"] = given["comment"]
    return rule


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"acl_from_csv": acl_from_csv}
