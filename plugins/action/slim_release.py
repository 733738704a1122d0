# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The controller's half of slim_release: names the release, sends it where it is missing."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.slim.overlay.plugins.module_utils import _bundle

MODULE = "slim.overlay.slim_release"
# The defaults of the module's options of the same names.
INCLUDE = ["*"]
EXCLUDE = ["__pycache__", "*.pyc", ".*", "tests"]


class ActionModule(ActionBase):
    """One round trip where the release is there already, else two and one file."""

    TRANSFERS_FILES = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        for key in ("bundle", "release"):
            args.pop(key, None)
        if args.get("remote_src"):
            result.update(self._execute_module(MODULE, module_args=args, task_vars=task_vars))
            return result
        source = str(Path(str(args.get("src", ""))).expanduser())
        try:
            files = _bundle.listing(
                source, args.get("include", INCLUDE), args.get("exclude", EXCLUDE)
            )
            args["release"] = _bundle.release_name(args.get("version", "0"), source, files)
        except (OSError, ValueError) as error:
            raise AnsibleActionFail(
                f"slim_release: {args.get('name')}: {source} on the controller cannot be "
                f"packed: {error}; build it first"
            ) from error
        answer = self._execute_module(MODULE, module_args=args, task_vars=task_vars)
        if answer.pop("needs_bundle", False):
            with tempfile.TemporaryDirectory(prefix="slim-release-") as work:
                bundle = str(Path(work) / "bundle.tar.gz")
                _bundle.pack(source, files, bundle)
                if self._connection._shell.tmpdir is None:
                    self._make_tmp_path()
                shell = self._connection._shell
                args["bundle"] = shell.join_path(shell.tmpdir, "bundle.tar.gz")
                self._transfer_file(bundle, args["bundle"])
                self._fixup_perms2((shell.tmpdir, args["bundle"]))
            answer = self._execute_module(MODULE, module_args=args, task_vars=task_vars)
        self._remove_tmp_path(self._connection._shell.tmpdir)
        result.update(answer)
        return result
