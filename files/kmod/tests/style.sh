#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# sparse over the module for each kernel's headers, then checkpatch.
#
# Debian's headers carry no checkpatch.pl, its linux-source packages do: CHECKPATCH
# names one, else tools/guest fetches one into .cache/guest. Without any this fails.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kmod=$(dirname "$here")
root=$(cd "$kmod/../.." && pwd)
KERNELS=${KERNELS:-6.1 6.12}
export PYTHONPATH="$root/tools"
failed=

command -v sparse >/dev/null || {
	echo "style: sparse is not installed; apt-get install sparse" >&2
	exit 1
}
for kernel in $KERNELS; do
	kdir=$(python3 -m guest --kernel "$kernel" --headers)
	out=$root/.cache/guest/kmod/style-$kernel
	rm -rf "$out"
	mkdir -p "$out"
	cp -p "$kmod"/*.c "$kmod"/*.h "$kmod/Kbuild" "$out/"
	make -s -C "$kdir" M="$out" C=2 SLIM_WERROR=y CONFIG_DEBUG_INFO_BTF_MODULES= modules >"$out/log" 2>&1 ||
		failed="$failed build-$kernel"
	# Sparse speaks of our files; what it says of the kernel's is the kernel's.
	if grep -E "^$out/.*(warning|error)" "$out/log"; then
		failed="$failed sparse-$kernel"
	else
		echo "style: sparse $kernel: clean"
	fi
done
checkpatch=${CHECKPATCH:-$(python3 -m guest --checkpatch || true)}
if [ -f "$checkpatch" ]; then
	# CONST_STRUCT: our proto_ops are copies, written once at load.
	check() {
		perl "$checkpatch" --no-tree --terse --strict --max-line-length=100 -q \
			--ignore "$1" -f "$2" >"$log" || {
			cat "$log"
			failed="$failed checkpatch-$(basename "$2")"
		}
	}
	log=$root/.cache/guest/kmod/checkpatch.log
	for file in "$kmod"/*.c "$kmod"/*.h "$here"/*/*.c; do
		case $(basename "$file") in
		# Lists as macros are what these are for.
		allow.h | check.c) check "COMPLEX_MACRO,MACRO_ARG_REUSE,MULTISTATEMENT_MACRO_USE_DO_WHILE,MACRO_WITH_FLOW_CONTROL,TRAILING_SEMICOLON,PREFER_DEFINED_ATTRIBUTE_MACRO" "$file" ;;
		*) check CONST_STRUCT "$file" ;;
		esac
	done
	[ -n "$failed" ] || echo "style: checkpatch: clean"
else
	echo "style: no checkpatch.pl at '$checkpatch': see above; or CHECKPATCH=path/to/checkpatch.pl" >&2
	failed="$failed checkpatch"
fi
[ -z "$failed" ] || {
	echo "FAILED:$failed" >&2
	exit 1
}
