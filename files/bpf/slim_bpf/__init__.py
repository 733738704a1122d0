# SPDX-License-Identifier: Apache-2.0
"""Loads, checks and drives the BPF programs of secure mode; standard library and libbpf only."""
