#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Builds the module and the test program for Debian's cloud kernels and runs
# them in guests. KERNELS, LONG and PARTS choose; exits non-zero on a failure.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kmod=$(dirname "$here")
root=$(cd "$kmod/../.." && pwd)
KERNELS=${KERNELS:-6.1 6.12}
PARTS=${PARTS:-functions stress cost}
seconds=60
[ -n "${LONG:-}" ] && seconds=600
build=$root/.cache/guest/kmod
mkdir -p "$build"
export PYTHONPATH="$root/tools"

guest() {
	python3 -m guest "$@"
}

echo "== test program"
${CC:-gcc} -O1 -Wall -Wextra -Werror -static -pthread -o "$build/slimtest" "$here"/*.c

failed=
for kernel in $KERNELS; do
	echo "== $kernel: build"
	kdir=$(guest --kernel "$kernel" --headers)
	out=$build/$kernel
	mkdir -p "$out"
	cp -pu "$kmod"/*.c "$kmod"/*.h "$kmod/Kbuild" "$out/"
	cp -pur "$here/steal" "$here/worker" "$out/"
	# Without pahole there is no BTF; nothing here needs it.
	make -s -C "$kdir" M="$out" SLIM_WERROR=y CONFIG_DEBUG_INFO_BTF_MODULES= modules
	for helper in steal worker; do
		make -s -C "$kdir" M="$out/$helper" CONFIG_DEBUG_INFO_BTF_MODULES= modules
	done
	strip --strip-debug "$out/slim_kmod.ko" "$out/steal/steal.ko" "$out/worker/worker.ko"
	for part in $PARTS; do
		echo "== $kernel: $part"
		case $part in
		functions) options="--smp 2 --deadline 600" argument= ;;
		stress) options="--smp 2 --append slub_debug=FZPU --deadline $((seconds * 3 + 360))" argument=$seconds ;;
		cost) options="--icount --deadline 400" argument= ;;
		esac
		# shellcheck disable=SC2086
		if guest --kernel "$kernel" $options --init "$here/guest.sh" \
			--argument "$part" --argument "$argument" "$build/slimtest" \
			"$out/slim_kmod.ko" "$out/steal/steal.ko" "$out/worker/worker.ko" \
			>"$out/$part.log" 2>&1; then
			grep -E "^(ok|calls|revoked|stress|cost|no )" "$out/$part.log" || true
		else
			failed="$failed $kernel/$part"
			cat "$out/$part.log"
		fi
		if [ "$part" = cost ]; then
			python3 "$here/ratios.py" "$out/cost.log" || failed="$failed $kernel/ratios"
		fi
	done
done
if [ -n "$failed" ]; then
	echo "FAILED:$failed" >&2
	exit 1
fi
echo "all passed"
