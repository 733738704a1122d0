#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs in a guest (tools/guest, --load dummy): guest.sh open|kmod|bpf [VARIANTS [IDENTITIES [ATTEMPTS]]]
ip link set lo up
ip link set dummy0 up
ip addr add 198.18.0.1/24 dev dummy0
secure=1
case $1 in
open) secure=0 ;;
kmod) insmod slim_kmod.ko || exit 1 ;;
bpf)
	mkdir -p /usr/bin /usr/lib /lib /lib64 && tar xf /test/python.tar -C / || exit 2
	PATH=/bin:/usr/bin python3 -I /bpf/slim-bpf load || exit 1
	;;
esac
./escape-static guest --secure $secure --variants "${2:-all}" --identity "${3:-user,root,userns}" --attempts "${4:-all}"
