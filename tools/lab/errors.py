# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in the lab, as the user should read it."""

from __future__ import annotations


class LabError(Exception):
    """Something failed; the message names it, the cause and the next step."""

    status = 1


class Refused(LabError):
    """The command line asks for something that is wrong or not built."""

    status = 2
