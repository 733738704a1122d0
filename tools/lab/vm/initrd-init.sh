#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# First program of a node: loads what the disk needs and hands over to systemd.
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do
    insmod "/modules/$module" || echo "initrd: $module does not load"
done </modules/order
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "initrd: no disk"; sleep 3600; }
    sleep 0.1
done
mount -t ext4 -o rw,noatime /dev/vda /root || { echo "initrd: the disk does not mount"; sleep 3600; }
mount --move /dev /root/dev
umount /proc /sys
exec switch_root /root /sbin/init
