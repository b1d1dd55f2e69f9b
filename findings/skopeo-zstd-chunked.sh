#!/bin/sh
# skopeo of Debian 12: a layer that it writes as zstd:chunked is marked with annotations under io.containers.zstd-chunked, while what
# is documented today, and what current tools look for, is io.github.containers.zstd-chunked.
#
# Seen with skopeo 1.9.3 of Debian 12 (1.9.3+ds1-1+b10), copying an OCI layout with --dest-compress-format zstd:chunked:
#   * annotations of the layer: io.containers.zstd-chunked.manifest-checksum and .manifest-position, none with "github" in its name
#   * the checksum is of the table of contents as it is stored, compressed
#   * a file that is one chunk has neither chunkSize nor chunkDigest in the table, only the digest of the whole file
#   * a run of zeros is a chunk with chunkType "zeros", which has a digest and an offset like any other
# Expected: the documented names, a checksum of the JSON, and chunks that all say their own digest. A reader that looks for the
# documented annotations alone takes such an image for one without a table of contents and says nothing.
set -eu

VERSION=1.9.3+ds1-1+b10
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in "skopeo=$VERSION" umoci=0.4.7+ds-3+b7 zstd=1.5.4+dfsg2-5+deb12u1; do
    apt-get download -qq "$package" >/dev/null 2>&1 || { echo "$package cannot be had (apt-get update?)" >&2; exit 1; }
done
for deb in ./*.deb; do dpkg -x "$deb" root; done
PATH=$work/root/usr/bin:$PATH
skopeo --version

mkdir -p tree
seq 200000 >tree/lines
truncate -s 300K tree/gap
seq 50000 >>tree/gap
seq 100 >tree/small
tar --sort=name -C tree -cf layer.tar .
umoci init --layout made
umoci new --image made:x
umoci raw add-layer --image made:x layer.tar
skopeo copy -q --insecure-policy --dest-compress-format zstd:chunked oci:made:x oci:out:x

python3 - <<'PROGRAM' | tee seen
import hashlib, json, subprocess
blob = lambda digest: open("out/blobs/sha256/" + digest.split(":")[1], "rb").read()
index = json.load(open("out/index.json"))
layer = json.loads(blob(index["manifests"][0]["digest"]))["layers"][0]
notes = layer["annotations"]
print("annotations:", *sorted(notes))
prefix = next(iter(notes)).rsplit(".", 1)[0]
at, stored, plain, _ = map(int, notes[prefix + ".manifest-position"].split(":"))
table = blob(layer["digest"])[at:at + stored]
text = subprocess.run(["zstd", "-dc"], input=table, capture_output=True).stdout
wanted = notes[prefix + ".manifest-checksum"].split(":")[1]
print("checksum is of:", "the stored table" if hashlib.sha256(table).hexdigest() == wanted else "something else")
entries = json.loads(text)["entries"]
small = next(entry for entry in entries if entry["name"].endswith("small"))
print("a small file has:", *[key for key in ("chunkSize", "chunkDigest", "digest") if key in small])
zeros = [entry for entry in entries if entry.get("chunkType") == "zeros"]
print("chunks of zeros:", len(zeros), "with a digest:", sum("chunkDigest" in entry for entry in zeros))
PROGRAM

status=0
expect() { grep -qx "$1" seen || { echo "not seen any more: $1" >&2; status=1; }; }
expect 'annotations: io.containers.zstd-chunked.manifest-checksum io.containers.zstd-chunked.manifest-position'
expect 'checksum is of: the stored table'
expect 'a small file has: digest'
expect 'chunks of zeros: \([1-9][0-9]*\) with a digest: \1'
exit $status
