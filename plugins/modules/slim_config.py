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
  - The slim.overlay authors
version_added: 0.1.0
short_description: Write files that are valid together or not at all
description:
  - Writes JSON files of root whose content differs from what is there.
  - Before any of them is put into place, O(validate) runs on the new ones.
options:
  files:
    description: Path to content.
    type: dict
    required: true
  mode:
    description: Permissions of every file, in octal.
    type: str
    default: "0600"
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
    files:
      /etc/slim/router.json: "{{ router }}"
      /etc/slim/map.json: "{{ map }}"
    validate: [slim-router, validate, --config, "@/etc/slim/router.json"]
"""

RETURN = r"""
changed_files:
  description: Paths of the files that were (or would be) changed.
  returned: success
  type: list
  elements: str
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule


def text_of(content):
    """The content as the file has it; the same for the same content."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def read(path):
    """What the file has now; an empty text where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


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
        words = err.strip() or out.strip()
        for place, real in ((str(value), key[1:]) for key, value in places.items()):
            words = words.replace(place, real)
        module.fail_json(
            msg=f"slim_config: the new content is refused, the old one stays in use: {words}"
        )


def put(path, text, mode):
    """Replace the file, so that a reader sees the old or the new one."""
    fresh = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(str(fresh), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.chmod(mode)
    fresh.replace(path)


def main():
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "dict", "required": True},
            "mode": {"type": "str", "default": "0600"},
            "validate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    mode = int(module.params["mode"], 8)
    texts = {Path(path): text_of(content) for path, content in module.params["files"].items()}
    changed = []
    diff = []
    for path, text in texts.items():
        before = read(path)
        wrong_mode = bool(before) and path.stat().st_mode & 0o7777 != mode
        if before != text or wrong_mode:
            changed.append(path)
            diff.append(
                {
                    "before_header": str(path),
                    "after_header": str(path),
                    "before": before,
                    "after": text,
                }
            )
    if changed:
        check(module, texts)
    if not module.check_mode:
        for path in changed:
            try:
                put(path, texts[path], mode)
            except OSError as error:
                module.fail_json(
                    msg=f"slim_config: {path} cannot be written: {error.strerror}; "
                    "check space and permissions there and run again"
                )
    names = [str(path) for path in changed]
    module.exit_json(changed=bool(changed), changed_files=names, diff=diff)


if __name__ == "__main__":
    main()
