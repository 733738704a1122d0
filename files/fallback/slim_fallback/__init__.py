# SPDX-License-Identifier: Apache-2.0
"""The fallback overlay of a host: builds it, compares it, takes it away.

Run by the role slim_fallback and, on systemd hosts, at every boot. Touches only
links that it made itself.
"""

__version__ = "0.1.0"
