# SPDX-License-Identifier: Apache-2.0
"""The lab's second kind of node: virtual machines, for what needs a kernel of its own.

    127.0.0.1:PORT1                                127.0.0.1:PORT2
         | user mode network, restricted                |
      mgmt0 10.0.2.15                                mgmt0 10.0.2.15
         node1  ---- lan0 198.18.0.1   198.18.0.2 lan0 ---- node2
       c1 (10.44.0.1)   |                        |     c2 (10.44.0.2)
                        +--- Unix datagrams -----+
                     (three nodes and more, or a delay: through a switch)

Debian 12 with systemd under QEMU's emulator (no hardware virtualisation wanted).
The disk image is made once (image.py), booted once for each kernel and kept as a
snapshot (template.py); a node is a copy of that snapshot, made a host of its own
in a second or two (guest.py). Everything else goes over SSH, as on a fleet.
"""
