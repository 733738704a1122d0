#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs in a guest (tools/guest): warm.py with the module, then with the BPF programs.
mkdir -p /usr/bin /usr/lib /lib /lib64 || exit 2
tar xf /test/python.tar -C / && tar xf /test/programs.tar -C / || exit 2
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
insmod slim_kmod.ko || exit 3
python3 -I /test/warm.py none kmod || exit 4
# The last tag's record is freed a grace period after its socket.
for _ in 1 2 3 4 5 6 7 8 9 10; do
	rmmod slim_kmod && break
	sleep 0.5
done
[ -e /proc/slim_kmod ] && exit 5
python3 -I /bpf/slim-bpf load || exit 6
exec python3 -I /test/warm.py bpf
