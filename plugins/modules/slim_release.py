#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installs one release of a part beside the others and switches to it.

Never writes into a release that exists: a library that programs have mapped
and a package that a process imports from stay as they are.
"""

from __future__ import annotations

DOCUMENTATION = r"""
module: slim_release
author:
  - The slim.overlay authors (@slim-overlay)
version_added: 0.1.0
short_description: Install a release of a part of Slim
description:
  - Packs a directory of the controller, installs it on the host as
    C(ROOT/NAME/RELEASE) and points the link C(ROOT/NAME/current) at it.
  - C(RELEASE) is O(version), a hyphen and a digest of the content, so other
    content always goes into another directory.
  - The directory appears under its name only when it is complete, and the link
    is switched by a rename.
options:
  name:
    description: The part, for example V(router).
    type: str
    required: true
  root:
    description: The directory that holds the parts.
    type: path
    default: /opt/slim
  version:
    description: The version to show in the release's name.
    type: str
    required: true
  src:
    description: The directory to install, on the controller unless O(remote_src=true).
    type: path
    required: true
  remote_src:
    description: O(src) is a directory of the host.
    type: bool
    default: false
  include:
    description: Patterns of the files to install, relative to O(src).
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Patterns of files, relative to O(src), and names of directories to leave out.
    type: list
    elements: str
    default: [__pycache__, "*.pyc", ".*", tests]
  bundle:
    description: Set by the action plugin, never by a playbook.
    type: path
  release:
    description: Set by the action plugin, never by a playbook.
    type: str
attributes:
  check_mode:
    description: Says what it would do and does nothing.
    support: full
  diff_mode:
    description: Shows the release before and after.
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

EXAMPLES = r"""
- name: Install the router
  slim.overlay.slim_release:
    name: router
    version: 0.1.0
    src: "{{ role_path }}/../../files/router"
    include: [slim_router/*]
"""

RETURN = r"""
release:
  description: Name of the release that is in use now.
  returned: success
  type: str
  sample: 0.1.0-3f2a9c0d11e8
previous:
  description: Name of the release that was in use before, or an empty string.
  returned: success
  type: str
path:
  description: The release's directory.
  returned: success
  type: str
"""

import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.slim.overlay.plugins.module_utils import _bundle


def install(module, top, release):
    """Put the release's directory into place.

    :param top: the part's directory, which exists.
    :raises OSError, tarfile.TarError: the bundle or the disk is bad.
    """
    params = module.params
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=str(top)))
    try:
        if params["bundle"]:
            _bundle.unpack(params["bundle"], work)
        else:
            files = _bundle.listing(params["src"], params["include"], params["exclude"])
            _bundle.copy(params["src"], files, work)
        work.chmod(0o755)
        work.rename(top / release)
    finally:
        shutil.rmtree(str(work), ignore_errors=True)


def switch(top, release):
    """Point current at the release, so that at every moment it points at one."""
    fresh = top / ".current.new"
    if fresh.is_symlink():
        fresh.unlink()
    fresh.symlink_to(release)
    fresh.rename(top / "current")


def main():
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "root": {"type": "path", "default": "/opt/slim"},
            "version": {"type": "str", "required": True},
            "src": {"type": "path", "required": True},
            "remote_src": {"type": "bool", "default": False},
            "include": {"type": "list", "elements": "str", "default": ["*"]},
            "exclude": {
                "type": "list",
                "elements": "str",
                "default": ["__pycache__", "*.pyc", ".*", "tests"],
            },
            "bundle": {"type": "path"},
            "release": {"type": "str"},
        },
        supports_check_mode=True,
    )
    params = module.params
    release = params["release"]
    if not release:
        try:
            files = _bundle.listing(params["src"], params["include"], params["exclude"])
            release = _bundle.release_name(params["version"], params["src"], files)
        except (OSError, ValueError) as error:
            module.fail_json(
                msg=f"slim_release: {params['name']}: {params['src']} cannot be read: {error}; "
                "build it first"
            )
    # Endpoints read the library whatever umask the login shell of root has.
    os.umask(0o022)
    top = Path(params["root"]) / params["name"]
    place = top / release
    link = top / "current"
    previous = os.readlink(str(link)) if link.is_symlink() else ""  # noqa: PTH115 - Python 3.8
    missing = not place.is_dir()
    changed = missing or previous != release
    result = {"changed": changed, "release": release, "previous": previous, "path": str(place)}
    result["diff"] = {"before": f"{link} -> {previous}\n", "after": f"{link} -> {release}\n"}
    if module.check_mode or not changed:
        module.exit_json(**result)
    if missing and not params["bundle"] and not params["remote_src"]:
        # The action plugin sends the bundle on this answer and calls again.
        module.exit_json(needs_bundle=True, **result)
    try:
        top.mkdir(mode=0o755, parents=True, exist_ok=True)
        if missing:
            install(module, top, release)
        switch(top, release)
    except (OSError, tarfile.TarError) as error:
        module.fail_json(
            msg=f"slim_release: {params['name']}: {place} cannot be installed: {error}; "
            "check space and permissions there and run again"
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
