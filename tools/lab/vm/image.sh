#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the disk of a node and, for each kernel, what QEMU boots it with:
#
#     image.sh TARGET DOWNLOADS MIRROR SPARE_MB 'PACKAGE...' KERNEL:IMAGE:HEADERS...
#
# TARGET gets base.ext4, vmlinuz-KERNEL, initrd-KERNEL, packages. It holds key.pub,
# host_key, host_key.pub and agent already. Runs in a mount namespace of its own
# (unshare --mount), so that nothing stays mounted whatever happens to it.
set -eu
target=$1 downloads=$2 mirror=$3 spare=$4 packages=$5
shift 5
here=$(dirname -- "$0")
root=$target/root
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
say() { echo "image: $*" >&2; }

say "getting a minimal Debian 12"
mkdir -p "$downloads"
debootstrap --variant=minbase --cache-dir="$downloads" bookworm "$root" "$mirror" >"$target/debootstrap.log" 2>&1 || {
    tail -n 20 "$target/debootstrap.log" >&2
    exit 1
}

say "installing kernels, headers and what site.yml needs"
cat >"$root/etc/apt/sources.list" <<LIST
deb $mirror bookworm main
deb $mirror bookworm-updates main
deb $mirror-security bookworm-security main
LIST
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$downloads/partial"
mount --bind "$downloads" "$root/var/cache/apt/archives"
wanted=$packages
for kernel in "$@"; do
    names=${kernel#*:}
    wanted="$wanted ${names%%:*} ${names#*:}"
done
# INITRD=No: the kernels' packages need not make an initrd that nobody boots.
# shellcheck disable=SC2086
{
    chroot "$root" apt-get -q update &&
        chroot "$root" env INITRD=No apt-get -q -y -o APT::Keep-Downloaded-Packages=true \
            -o DPkg::Options::=--force-unsafe-io install --no-install-recommends $wanted
} >"$target/apt.log" 2>&1 || {
    tail -n 20 "$target/apt.log" >&2
    exit 1
}
chroot "$root" dpkg-query -W >"$target/packages"

say "configuring"
cp -a "$here/rootfs/." "$root/"
chown -R 0:0 "$root/etc/systemd" "$root/etc/ssh"
rm -f "$root"/etc/ssh/ssh_host_*
install -m 0600 "$target/host_key" "$root/etc/ssh/ssh_host_ed25519_key"
install -m 0644 "$target/host_key.pub" "$root/etc/ssh/ssh_host_ed25519_key.pub"
install -d -m 0700 "$root/root/.ssh"
install -m 0600 "$target/key.pub" "$root/root/.ssh/authorized_keys"
install -D -m 0755 "$target/agent" "$root/usr/local/lib/lab/agent"
echo node >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
: >"$root/etc/resolv.conf"
# The initrd has mounted the disk already; systemd need not wait for it.
: >"$root/etc/fstab"
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/usr/sbin/policy-rc.d"
mkdir -p "$root/var/log/journal"
chroot "$root" usermod -s /bin/sh root
# Nobody waits for these, and in an emulator they take seconds.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer getty@tty1.service \
    serial-getty@ttyS0.service systemd-logind.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service systemd-pstore.service modprobe@efi_pstore.service
chroot "$root" systemctl -q set-default multi-user.target
chroot "$root" systemctl -q disable haproxy.service memcached.service nginx.service \
    postgresql.service redis-server.service nftables.service ssh.socket 2>/dev/null || true
chroot "$root" systemctl -q enable systemd-networkd.service ssh.service
umount "$root/var/cache/apt/archives"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/*

for kernel in "$@"; do
    name=${kernel%%:*}
    # What the meta package depends on carries the release in its own name.
    release=$(basename -- "$(ls -d "$root/boot/vmlinuz-$name."*)")
    release=${release#vmlinuz-}
    say "kernel $name is $release"
    echo "$release" >"$target/release-$name"
    cp "$root/boot/vmlinuz-$release" "$target/vmlinuz-$name"
    tree=$target/initrd-tree
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$root/bin/busybox" "$tree/bin/busybox"
    sed '1s|.*|#!/bin/busybox sh|' "$here/initrd-init.sh" >"$tree/init"
    chmod 0755 "$tree/init"
    for module in virtio_pci virtio_blk crc32c_generic ext4; do
        # A driver that is built in has nothing to show, or is unknown by name.
        chroot "$root" modprobe -S "$release" --show-depends "$module" || true
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r path; do
        plain=$(basename -- "$path" .xz)
        case $path in
        *.xz) xz -dc "$root$path" >"$tree/modules/$plain" ;;
        *) cp "$root$path" "$tree/modules/$plain" ;;
        esac
        echo "$plain" >>"$tree/modules/order"
    done
    (cd "$tree" && find . | cpio --quiet -o -H newc) | gzip -1 >"$target/initrd-$name"
    rm -rf "$tree"
done
umount "$root/proc" "$root/tmp" "$root/run"

say "making the disk"
size=$(($(du -sm --apparent-size "$root" | cut -f1) * 5 / 4 + spare))
mke2fs -q -t ext4 -E root_owner=0:0,lazy_itable_init=1 -d "$root" "$target/base.ext4" "${size}M"
rm -rf "$root"
