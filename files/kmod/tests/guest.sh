#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Runs in the guest: guest.sh functions | stress SECONDS | cost
failed=0

fail() {
	echo "FAILED $*"
	failed=1
}

# One program: its output, and whether it went well.
program() {
	start=$(cut -d' ' -f1 /proc/uptime)
	if timeout "${limit:-240}" ./slimtest "$@"; then
		echo "ok     $* ($start to $(cut -d' ' -f1 /proc/uptime) s)"
	else
		fail "$*"
	fi
}

# Loading must fail, and the log must name the function.
refuses() {
	dmesg -c >/dev/null
	if insmod slim_kmod.ko 2>/dev/null; then
		fail "loaded without $1"
		rmmod slim_kmod
	elif ! dmesg | grep -q "slim_kmod: hook $1 cannot be attached"; then
		fail "refused without naming $1"
		dmesg | grep slim_kmod
	elif [ -e /proc/slim_kmod ]; then
		fail "files of a refused module ($1)"
	else
		echo "ok     refuses to load without $1"
	fi
}

# The last tag's record is freed a grace period after its socket.
unload() {
	for i in 1 2 3 4 5 6 7 8 9 10; do
		rmmod slim_kmod 2>/dev/null && break
		sleep 0.5
	done
	[ -e /proc/slim_kmod ] && fail "rmmod $1"
}

load_and_unload() {
	last=
	for i in 1 2 3; do
		insmod slim_kmod.ko || fail "load $i"
		version=$(cat /proc/slim_kmod/version)
		[ "$version" != "$last" ] || fail "two loads have one version: $version"
		last=$version
		for cache in slim_tag slim_closer; do
			# One that shares its memory with others is a symbolic link.
			[ -d /sys/kernel/slab/$cache ] && [ ! -L /sys/kernel/slab/$cache ] ||
				fail "no cache of its own for $cache"
		done
		rmmod slim_kmod || fail "unload $i"
		[ -e /sys/kernel/slab/slim_tag ] && fail "the cache stayed"
	done
	echo 0 >/proc/sys/kernel/ftrace_enabled
	refuses security_socket_setsockopt
	echo 1 >/proc/sys/kernel/ftrace_enabled
	for name in security_socket_setsockopt security_socket_getsockopt \
		security_file_ioctl security_file_ioctl_compat security_path_chown; do
		insmod steal.ko function=$name || fail "steal $name"
		refuses $name
		rmmod steal
	done
	insmod slim_kmod.ko || fail "load"
	if insmod steal.ko 2>/dev/null; then
		fail "a hook was taken from the module"
		rmmod steal
	fi
	(echo 0 >/proc/sys/kernel/ftrace_enabled) 2>/dev/null && fail "ftrace was switched off"
	[ "$(cat /proc/sys/kernel/ftrace_enabled)" = 1 ] || fail "ftrace is off"
	for state in live revoked; do
		mkfifo /tmp/end
		./slimtest hold $state </tmp/end >/tmp/holding &
		exec 3>/tmp/end
		for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
			grep -q holding /tmp/holding && break
			sleep 0.2
		done
		rmmod slim_kmod 2>/dev/null && fail "rmmod with a $state tag"
		[ "$(wc -l </proc/slim_kmod/tags)" = 2 ] || fail "tags with a $state tag"
		grep $state /proc/slim_kmod/tags || fail "no $state tag"
		exec 3>&-
		wait
		rm /tmp/end /tmp/holding
	done
	unload "after the last tag"
	echo "ok     load, unload, refuse"
}

case $1 in
functions)
	load_and_unload
	insmod slim_kmod.ko || fail "load"
	insmod worker.ko || fail "worker"
	program calls
	rmmod worker
	program control
	program revoked
	unload "at the end"
	;;
stress)
	insmod slim_kmod.ko || fail "load"
	limit=$(($2 + 120)) program stress "$2"
	limit=$(($2 / 2 + 120)) program reload $(($2 / 2))
	unload "at the end"
	;;
cost)
	./slimtest cost without || fail "without"
	insmod slim_kmod.ko || fail "load"
	./slimtest cost untagged || fail "untagged"
	./slimtest cost tagged || fail "tagged"
	;;
esac
exit $failed
