#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs in a guest (tools/guest): Python from the tar, then the cost measurement.
mkdir -p /usr/bin /usr/lib /lib /lib64 && tar xf /test/python.tar -C / || exit 2
export PATH=/bin:/usr/bin
exec python3 -I /bpf/tests/cost.py "$@"
