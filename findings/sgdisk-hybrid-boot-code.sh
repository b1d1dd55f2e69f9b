#!/bin/sh
# sgdisk: '--hybrid' zeroes the boot code of the MBR; every other change of the partition table keeps it.
#
# Seen with GPT fdisk (sgdisk) 1.0.9 of Debian 12 (gdisk 1.0.9-2.1), on a valid GPT with a protective MBR and boot code:
#   * adding a partition (-n) and changing a type (-t) leave the 440 bytes of boot code as they are;
#   * --hybrid=1, which is said to add entries to the MBR, writes a fresh MBR: the boot code is zeros afterwards.
# Expected: a hybrid MBR differs from the protective one in its four entries alone. Whoever makes a BIOS-bootable disk hybrid
# must save the first 440 bytes and put them back.
set -eu

VERSION=1.0.9-2.1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "gdisk=$VERSION" libpopt0 >/dev/null 2>&1 || { echo "gdisk $VERSION cannot be had (apt-get update?)" >&2; exit 1; }
for package in ./*.deb; do dpkg -x "$package" root; done
libraries=$(find "$work/root" -name 'libpopt.so.0' -printf '%h\n' | head -n 1)
sgdisk() { LD_LIBRARY_PATH=$libraries "$work/root/sbin/sgdisk" "$@"; }
[ -x "$work/root/sbin/sgdisk" ] || ln -s ../usr/sbin/sgdisk "$work/root/sbin/sgdisk"
sgdisk --version | head -n 1

truncate -s 64M disk.img
sgdisk -n 1:2048:+8M -t 1:8300 disk.img >/dev/null
i=0; while [ $i -lt 55 ]; do printf BOOTCODE; i=$((i + 1)); done | dd of=disk.img conv=notrunc bs=440 count=1 iflag=fullblock 2>/dev/null

boot_code() { # how many of its 440 bytes are not zero
    head -c 440 disk.img | tr -d '\0' | wc -c
}
echo "boot code as written:       $(boot_code) bytes that are not zero"
sgdisk -n 2:0:+8M -t 2:ef00 disk.img >/dev/null
kept=$(boot_code)
echo "after -n 2 -t 2:            $kept"
sgdisk --hybrid=1 disk.img >/dev/null
left=$(boot_code)
echo "after --hybrid=1:           $left"
sgdisk -v disk.img | grep -q 'No problems found' && echo "sgdisk -v finds no problem with the disk"

[ "$kept" = 440 ] && [ "$left" = 0 ] || { echo "this has changed" >&2; exit 1; }
