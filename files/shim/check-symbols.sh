#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A symbol newer than GLIBC_2.17 in a library of ld.so.preload ends every program
# of an older image: refuse to build one.
set -eu
library=$1
newer=$(objdump -T "$library" | grep -o 'GLIBC_[0-9.]*' | sort -uV | awk -F'[_.]' '$2 > 2 || ($2 == 2 && $3 > 17)')
if [ -n "$newer" ]; then
	echo "$library needs $newer; bind the symbols to an older version (.symver in libc.c)" >&2
	objdump -T "$library" | grep -F "$newer" >&2
	exit 1
fi
# grep's status 1 is the good case: none found
strange=$(nm -D --defined-only "$library" | awk '{print $3}' | grep '^slim_' || true)
if [ -n "$strange" ]; then
	echo "$library exports $strange; only the intercepted calls may be visible" >&2
	exit 1
fi
echo "$library: symbols up to $(objdump -T "$library" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1), $(nm -D --defined-only "$library" | wc -l) calls exported"
