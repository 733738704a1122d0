#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# sparse over the module for each kernel's headers, then checkpatch.
#
# Debian's packages carry no checkpatch.pl (it stays in the kernel's source):
# CHECKPATCH names one, else it is looked for beside the headers of this host,
# and left out with a word where there is none.
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
checkpatch=${CHECKPATCH:-}
if [ -z "$checkpatch" ]; then
	checkpatch=$(ls /lib/modules/*/source/scripts/checkpatch.pl /usr/src/linux*/scripts/checkpatch.pl 2>/dev/null | head -n 1 || true)
fi
if [ -n "$checkpatch" ] && [ -f "$checkpatch" ]; then
	perl "$checkpatch" --no-tree --terse --strict --max-line-length=100 -q \
		--ignore FILE_PATH_CHANGES,LINUX_VERSION_CODE,SPDX_LICENSE_TAG \
		-f "$kmod"/*.c "$kmod"/*.h || failed="$failed checkpatch"
	[ -n "$failed" ] || echo "style: checkpatch: clean"
else
	echo "style: no checkpatch.pl here; CHECKPATCH=path/to/checkpatch.pl"
fi
[ -z "$failed" ] || {
	echo "FAILED:$failed" >&2
	exit 1
}
