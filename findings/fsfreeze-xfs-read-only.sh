#!/bin/sh
# A frozen file system (fsfreeze, FIFREEZE) is taken for one that is as after an unmount. A copy of a frozen ext4 or btrfs is; a
# copy of a frozen XFS is not: the kernel leaves a record in its log on purpose, so that whoever mounts it writes. Such a copy cannot
# be mounted from a read-only device (a snapshot, a read-only loop or virtio disk) without "norecovery", and "xfs_repair -n", the
# check that changes nothing, calls it damaged.
#
# Seen with xfsprogs 6.1.0-1, e2fsprogs 1.47.0-2+b2 and btrfs-progs 6.2-1+deb12u2 of Debian 12, on Linux 6.18: five files written, one of them
# removed, then fsfreeze, a copy of the image file, and thaw.
#   ext4    checked: 0, read-only: mounted
#   btrfs   checked: 0, read-only: mounted
#   xfs     checked: 1, read-only: refused, with norecovery: mounted, all files there
# Expected: the same of all three, as fsfreeze(8) is there to "create stable images".
# Needs root and loop devices; mounts are in a namespace of its own.
set -eu

[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
if [ -z "${FINDING_INSIDE:-}" ]; then
    export FINDING_INSIDE=1
    exec unshare --mount --propagation private sh "$0" "$@"
fi
work=$(mktemp -d)
trap 'umount -q "$work/mounted" 2>/dev/null || true; rm -rf "$work"' EXIT
cd "$work"
for package in xfsprogs=6.1.0-1 e2fsprogs=1.47.0-2+b2 btrfs-progs=6.2-1+deb12u2 libinih1 liburcu8; do
    apt-get download -qq "$package" >/dev/null 2>&1 || { echo "$package cannot be had (apt-get update?)" >&2; exit 1; }
done
for package in ./*.deb; do dpkg -x "$package" root; done
PATH=$work/root/sbin:$work/root/usr/sbin:$work/root/bin:$PATH
LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
export PATH LD_LIBRARY_PATH
mkdir mounted

attempt() { # [OPTION]: whether the copy can be mounted from a read-only device
    if mount -o "ro,loop${1:+,$1}" copy mounted 2>/dev/null; then
        names=$(ls mounted | grep -c '^f')
        umount mounted
        echo "mounted, $names files"
    else
        echo refused
    fi
}

seen=
for kind in ext4 btrfs xfs; do
    rm -f image copy
    truncate -s 400M image
    "mkfs.$kind" -q image >/dev/null 2>&1
    mount -o loop image mounted
    for number in 1 2 3 4 5; do echo "$number" >"mounted/f$number"; done
    rm mounted/f1
    fsfreeze --freeze mounted
    cp image copy
    fsfreeze --unfreeze mounted
    umount mounted
    checked=0
    case $kind in
        ext4) e2fsck -fn copy >/dev/null 2>&1 || checked=$? ;;
        btrfs) btrfs check --readonly copy >/dev/null 2>&1 || checked=$? ;;
        xfs) xfs_repair -n copy >/dev/null 2>&1 || checked=$? ;;
    esac
    told="$kind: checked $checked, read-only $(attempt)"
    [ "$kind" != xfs ] || told="$told, norecovery $(attempt norecovery)"
    echo "$told"
    seen="$seen$told; "
done
want="ext4: checked 0, read-only mounted, 4 files; btrfs: checked 0, read-only mounted, 4 files; "
want="${want}xfs: checked 1, read-only refused, norecovery mounted, 4 files; "
[ "$seen" = "$want" ] || { echo "this has changed" >&2; exit 1; }
