# SPDX-License-Identifier: Apache-2.0
"""The lab: hosts and endpoints as network namespaces of one machine.

                    switch (bridge, or the delay relay)
                    /               |              \\
        eth0 198.18.0.1      eth0 198.18.0.2       ...
             node1                node2
          c1 (10.44.0.1)       c2 (10.44.0.2)

A *node* has its own network, mount and UTS namespaces, its own /run and its own
copies of the directories that the collection writes; all else is the machine's.
An *endpoint* has a network namespace of its own, below its node. Every namespace
is kept alive by a bind mount (a *pin*) in the state directory, so a lab survives
the command that made it, and nothing here ever acts on a remembered pid alone.
"""
