#!/bin/sh
# umoci: a layer with a sparse file as GNU tar writes it by default cannot be unpacked; the same file in the POSIX form can,
# and comes out without its holes.
#
# Seen with umoci 0.4.7 of Debian 12 (0.4.7+ds-3+b7) and GNU tar 1.34, for a file of 1 MiB with one byte of data:
#   * tar --sparse                  (type flag 'S')        unpack fails: "unknown typeflag '\x53'"
#   * tar --sparse --format=posix   (type flag '0', PAX)   unpack succeeds; the file takes its whole length on disk
# Expected: the library below reads both forms to the same content and hands the old one's type flag on as it stands, so
# a program that switches over type flags has to know 'S' although nothing else of sparseness reaches it. It matters to
# whoever writes layers: --sparse without --format=posix makes an image that skopeo copies and umoci refuses.
set -eu

VERSION=0.4.7+ds-3+b7
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "umoci=$VERSION" >/dev/null 2>&1 || { echo "umoci $VERSION cannot be had (apt-get update?)" >&2; exit 1; }
dpkg -x ./*.deb root
umoci=$work/root/usr/bin/umoci
"$umoci" --version
tar --version | head -n 1

truncate -s 1M file
printf x | dd of=file bs=1 seek=600000 conv=notrunc status=none
"$umoci" init --layout image
status=0
for format in gnu posix; do
    tar --sparse --format="$format" -cf "$format.tar" file
    "$umoci" new --image "image:$format"
    "$umoci" raw add-layer --image "image:$format" "$format.tar"
    if "$umoci" unpack --rootless --image "image:$format" "out-$format" 2>"$format.err"; then
        same=differs
        cmp -s file "out-$format/rootfs/file" && same=same
        echo "$format: unpacked, content $same, $(stat -c %b "out-$format/rootfs/file") blocks of 512 bytes"
    else
        echo "$format: refused: $(tr -d '\n' <"$format.err" | grep -o 'unknown typeflag.*')"
    fi
done | tee seen

grep -q "^gnu: refused: unknown typeflag '.x53'" seen || { echo "the old form is not refused any more" >&2; status=1; }
grep -q '^posix: unpacked, content same, 20[0-9][0-9] blocks' seen || { echo "the POSIX form is not unpacked as it was" >&2; status=1; }
exit $status
