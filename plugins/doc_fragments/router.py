# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright (c) The slim.overlay authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every module that asks the router has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """slim.overlay.router."""

    DOCUMENTATION = r"""
options:
  socket:
    description: The router's admin socket, C(admin.sock) in its runtime directory.
    type: path
    default: /run/slim/admin.sock
  timeout:
    description: Seconds to wait for the router's answer, from 1 to 600.
    type: int
    default: 35
requirements:
  - Python 3.11 or later on the host
  - a running slim-router there, and root's rights
attributes:
  action_group:
    description: Use C(group/slim.overlay.slim) in C(module_defaults) to set O(socket) once.
    membership:
      - slim.overlay.slim
    support: full
  platform:
    description: Hosts that it works on.
    platforms: linux
    support: full
"""

    # Modules that only look.
    INFO = r"""
options: {}
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
  diff_mode:
    description: Has nothing to show.
    support: none
"""
