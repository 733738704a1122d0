# SPDX-License-Identifier: Apache-2.0
"""Rates and classes of service of a host: one file, the kernel's queues made after it.

Installed by the role slim_qos, run by its unit at boot and by the modules
slim_rate_limit and slim_qos. Never on any set-up or data path itself.
"""
