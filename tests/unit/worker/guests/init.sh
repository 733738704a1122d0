#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs in a guest (tools/guest): Python from the tar, the backend, then attempts.py.
mkdir -p /usr/bin /usr/lib /lib /lib64 && tar xf /test/python.tar -C / || exit 2
export PATH=/bin:/usr/bin
ifconfig lo up
case $1 in
kmod)
	insmod slim_kmod.ko || exit 3
	;;
bpf)
	mount -t bpf bpf /sys/fs/bpf 2>/dev/null
	python3 -I /bpf/slim-bpf load || exit 4
	;;
esac
exec python3 -I /test/attempts.py "$1"
