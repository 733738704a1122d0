# SPDX-License-Identifier: Apache-2.0
"""The gate: everything that has to hold before a change is good. See tools/test."""
