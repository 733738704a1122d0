# SPDX-License-Identifier: Apache-2.0
"""Benchmarks of Slim: the same load over the host's stack, the overlay and Slim.

``python -m bench`` measures, ``python -m bench.demo`` shows. Both need a lab that
is up (``tools/slimlab``). Speed never changes the exit status; failed connects
and wrong data do.
"""

SCHEMA = 1
"""Version of the JSON that the benchmarks write."""
