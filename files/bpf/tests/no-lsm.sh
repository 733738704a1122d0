#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A kernel that has BPF LSM but does not list it: attaching would succeed and
# nothing would be refused. Nothing may be loaded, and the message must say why.
mkdir -p /usr/bin /usr/lib /lib /lib64 && tar xf /test/python.tar -C / || exit 2
export PATH=/bin:/usr/bin
for command in preflight load check; do
	if message=$(/bpf/slim-bpf $command 2>&1); then
		echo "FAIL $command passed: $message"
		exit 1
	fi
	case $message in
	*"lacks bpf"*"boot with lsm="*",bpf "*) echo "ok $command: $message" ;;
	*) echo "FAIL $command: $message"; exit 1 ;;
	esac
done
[ ! -e /sys/fs/bpf/slim ] && [ ! -e /sys/fs/bpf/slim_staging ]
