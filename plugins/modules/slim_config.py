#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Puts configuration files that belong together into place, after a check of all of them.

A validator that looks at one file at a time cannot tell whether two of them fit;
so the new ones are written beside the old, checked together, and renamed.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_config
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Write files that are valid together or not at all
description:
  - Makes directories, and writes files whose content differs from what is there.
  - Before any of them is put into place, O(validate) runs on the new ones.
options:
  directories:
    description: Directories to have, in this order.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory.
        type: path
        required: true
      mode:
        description: Its permissions, in octal.
        type: str
        default: "0755"
  files:
    description: Files to have.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      content:
        description: Text, taken as it is, or anything else, written as JSON.
        type: raw
        required: true
      mode:
        description: Its permissions, in octal.
        type: str
        default: "0600"
      group:
        description: The group that the file belongs to, by name; the one of the process unless given.
        type: str
      once:
        description: A file that is there stays as it is.
        type: bool
        default: false
  validate:
    description:
      - The words of a command that succeeds when the files are good. A word
        C(@PATH) stands for the new content of that path.
      - Left out where the command's program is not there, which in check mode
        on a clean host is so.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Checks the new content and puts nothing into place.
    support: full
  diff_mode:
    description: Shows both contents.
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Configure the router
  slim.overlay.slim_config:
    directories:
      - path: /etc/slim
    files:
      - path: /etc/slim/router.json
        content: "{{ router }}"
    validate: [slim-router, validate, --config, "@/etc/slim/router.json"]
"""

RETURN = r"""
changed_files:
  description: Paths that were (or would be) made or changed.
  returned: success
  type: list
  elements: str
"""

import grp
import shutil
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _files


def mode_of(path):
    """Permissions of what is there."""
    return path.stat().st_mode & 0o7777


def group_of(module, name):
    """Number of a group; None where none is wanted, -1 where in check mode it is not there yet."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if module.check_mode:
            return -1
        return module.fail_json(
            msg=f"slim_config: the group {name} is not there; install what brings it and run again"
        )


def check(module, texts):
    """Run the validator on the new texts; ends the module where it refuses them."""
    words = module.params["validate"]
    if not words or not shutil.which(words[0]):
        return
    with tempfile.TemporaryDirectory(prefix="slim-config-") as work:
        places = {}
        for number, (path, text) in enumerate(texts.items()):
            places[f"@{path}"] = place = Path(work) / f"{number}-{path.name}"
            place.write_text(text, encoding="utf-8")
        code, out, err = module.run_command([str(places.get(word, word)) for word in words])
    if code:
        cause = err.strip() or out.strip()
        for word, place in places.items():
            cause = cause.replace(str(place), word[1:])
        module.fail_json(
            msg=f"slim_config: the new content is refused, the old one stays in use: {cause}"
        )


def main():
    place = {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": place, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": place,
                    "mode": {"type": "str", "default": "0600"},
                    "content": {"type": "raw", "required": True},
                    "group": {"type": "str"},
                    "once": {"type": "bool", "default": False},
                },
            },
            "validate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    changed = []
    diff = []
    steps = []
    for wanted in module.params["directories"]:
        path, mode = Path(wanted["path"]), int(wanted["mode"], 8)
        if not path.is_dir() or mode_of(path) != mode:
            changed.append(str(path))
            diff.append({"before": "", "after": f"{path} {mode:04o}\n"})
            steps.append((make, path, mode))
    texts = {}
    for wanted in module.params["files"]:
        path, mode = Path(wanted["path"]), int(wanted["mode"], 8)
        texts[path] = text = _files.text_of(wanted["content"])
        before = _files.read(path)
        if before is not None and wanted["once"]:
            continue
        group = group_of(module, wanted["group"])
        if before != text or mode_of(path) != mode or group not in (None, path.stat().st_gid):
            changed.append(str(path))
            names = {"before_header": str(path), "after_header": str(path)}
            diff.append(dict(names, before=before or "", after=text))
            steps.append((_files.put, path, text, mode, group))
    if changed:
        check(module, texts)
    if not module.check_mode:
        for action, path, *rest in steps:
            try:
                action(path, *rest)
            except OSError as error:
                module.fail_json(
                    msg=f"slim_config: {path} cannot be written: {error.strerror}; "
                    "check space and permissions there and run again"
                )
    module.exit_json(changed=bool(changed), changed_files=changed, diff=diff)


def make(path, mode):
    """Have the directory with these permissions."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)


if __name__ == "__main__":
    main()
