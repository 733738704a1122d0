# SPDX-License-Identifier: Apache-2.0
"""slim_cni: attaches containers to the router, as a CNI plugin and as an OCI hook.

Both are started for every container, and end before it runs: they import little.
"""

__version__ = "0.1.0"
