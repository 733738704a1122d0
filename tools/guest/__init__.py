# SPDX-License-Identifier: Apache-2.0
"""Boots Debian's cloud kernels in QEMU with an initramfs made on the spot.

For what the development machines' own kernel refuses: kernel modules and BPF
LSM programs. Nothing is installed on the host; see `python3 -m guest --help`.
"""
