# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lays rows out in columns; changes nothing."""

from __future__ import annotations

DOCUMENTATION = r"""
name: table
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Rows as lines of text in columns
description:
  - Makes the columns as wide as their contents; numbers stand to the right.
options:
  _input:
    description: The rows.
    type: list
    elements: dict
    required: true
  columns:
    description: The keys to show, in this order; default are those of the first row.
    type: list
    elements: str
"""

EXAMPLES = r"""
- name: Print revoked connections
  ansible.builtin.debug:
    msg: "{{ acl.revoked | slim.overlay.table(['endpoint', 'src', 'dst', 'dport', 'rule']) }}"
"""

RETURN = r"""
_value:
  description: The head and a line for each row.
  type: list
  elements: str
"""


def _text(value):
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    if value is None or value == "":
        return "-"
    return " ".join(str(value).split())


def table(rows, columns=None):
    """Lines of text."""
    rows = list(rows)
    names = list(columns or (rows[0] if rows else ()))
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    head = [str(name).upper() for name in names]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(row.get(name), (int, float)) for row in rows)
        for name in names
    ]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in (head, *cells)
    ]


class FilterModule:
    """Ansible's way to the filter."""

    def filters(self):
        return {"table": table}
