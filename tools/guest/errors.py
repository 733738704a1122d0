# SPDX-License-Identifier: Apache-2.0
"""What can go wrong before a guest has anything to say."""


class GuestError(Exception):
    """Names the thing, the cause and the next step."""
