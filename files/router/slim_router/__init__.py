# SPDX-License-Identifier: Apache-2.0
"""SlimRouter: host connections for the containers of one host.

This file imports nothing: the zygote and its workers pay for every module.
"""

__version__ = "0.1.0"
