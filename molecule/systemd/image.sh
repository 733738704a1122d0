#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A small Debian 12 that boots systemd: image.sh ARCHIVE MIRROR
# As bare as a fresh host may be: no package lists, no python3-apt.
set -eu
archive=$1
mirror=$2
mkdir -p "$(dirname "$archive")"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,iproute2,procps,ca-certificates \
    bookworm "$root" "$mirror" >/dev/null
: >"$root/etc/machine-id"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb
# systemd does this on a booted host and leaves it to the manager in a container:
# without it no service sees a namespace that is made after it started.
cat >"$root/etc/systemd/system/shared-root.service" <<'UNIT'
[Unit]
Description=Mounts propagate, as on a booted host
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
ExecStart=/usr/bin/mount --make-rshared /

[Install]
WantedBy=sysinit.target
UNIT
mkdir -p "$root/etc/systemd/system/sysinit.target.wants"
ln -s ../shared-root.service "$root/etc/systemd/system/sysinit.target.wants/"
tar -C "$root" -c . >"$archive.new"
mv "$archive.new" "$archive"
