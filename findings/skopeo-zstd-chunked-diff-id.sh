#!/bin/sh
# skopeo of Debian 12: a layer that it compresses as zstd:chunked need not be the layer any more that the image's configuration names.
#
# Seen with skopeo 1.9.3 of Debian 12 (1.9.3+ds1-1+b10), copying an image with --dest-compress-format zstd:chunked, whose one layer is a
# tar of GNU tar with one small file in it:
#   * the tar as tar makes it (10240 bytes, of which the last are zeros up to a whole record): what the blob decompresses to is shorter,
#     2048 bytes; its SHA-256 is not the diff_id of the configuration, which is copied as it was
#   * the same tar in records of 512 bytes, without that padding: what comes out is what went in, and the diff_id is right
# skopeo ends with 0 both times. Expected: compression keeps the layer's bytes, or the configuration gets the digest of the new ones. Who
# unpacks such a layer and holds it against its diff_id, as the image specification says, refuses an image that was valid before.
set -eu

VERSION=1.9.3+ds1-1+b10
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for package in "skopeo=$VERSION" zstd=1.5.4+dfsg2-5+deb12u1; do
    apt-get download -qq "$package" >/dev/null 2>&1 || { echo "$package cannot be had (apt-get update?)" >&2; exit 1; }
done
for package in ./*.deb; do dpkg -x "$package" root; done
PATH=$work/root/usr/bin:$PATH
skopeo --version
cat > policy.json <<'EOF'
{"default": [{"type": "insecureAcceptAnything"}]}
EOF
echo hello > file

copied() { # BLOCKING: lengths and digests of a layer that is tarred so, before and after
    rm -rf image out layer.tar
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -b "$1" -cf layer.tar file
    diff_id=$(sha256sum layer.tar | cut -d' ' -f1)
    python3 - "$diff_id" <<'EOF'
import hashlib, json, os, shutil, sys
os.makedirs("image/blobs/sha256")
def blob(data):
    digest = hashlib.sha256(data).hexdigest()
    open(f"image/blobs/sha256/{digest}", "wb").write(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}
layer = blob(open("layer.tar", "rb").read())
config = blob(json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sys.argv[1]}"]}}).encode())
oci = "application/vnd.oci.image."
manifest = blob(json.dumps({"schemaVersion": 2, "mediaType": oci + "manifest.v1+json", "config": {"mediaType": oci + "config.v1+json", **config},
    "layers": [{"mediaType": oci + "layer.v1.tar", **layer}]}).encode())
json.dump({"schemaVersion": 2, "manifests": [{"mediaType": oci + "manifest.v1+json", "annotations": {"org.opencontainers.image.ref.name": "x"}, **manifest}]},
    open("image/index.json", "w"))
json.dump({"imageLayoutVersion": "1.0.0"}, open("image/oci-layout", "w"))
EOF
    skopeo --policy policy.json copy --quiet --dest-compress-format zstd:chunked oci:image:x oci:out:x >/dev/null 2>&1
    python3 - <<'EOF' > parts
import json
def of(digest): return "out/blobs/" + digest.replace(":", "/")
manifest = json.load(open(of(json.load(open("out/index.json"))["manifests"][0]["digest"])))
config = json.load(open(of(manifest["config"]["digest"])))
print(of(manifest["layers"][0]["digest"]), config["rootfs"]["diff_ids"][0].split(":")[1])
EOF
    read -r layer named < parts
    zstd -dcq "$layer" > after.tar
    same=no; [ "$named" != "$(sha256sum after.tar | cut -d' ' -f1)" ] || same=yes
    kept=no; [ "$named" != "$diff_id" ] || kept=yes
    echo "$(stat -c %s layer.tar) bytes became $(stat -c %s after.tar), diff_id kept: $kept, and right: $same"
}
padded=$(copied 20)
plain=$(copied 1)
echo "padded: $padded"
echo "plain:  $plain"
[ "$padded" = "10240 bytes became 2048, diff_id kept: yes, and right: no" ] &&
    [ "$plain" = "2048 bytes became 2048, diff_id kept: yes, and right: yes" ] || { echo "it is otherwise now" >&2; exit 1; }
