#!/bin/sh
# containerd 1.6: a file that config.toml imports does not add to a plugin's section, it takes the section's place; what config.toml
# itself says in it is gone, the defaults come back, and maps such as the runtimes have what the imported file has alone.
#
# Seen with containerd 1.6.20 of Debian 12 (1.6.20~ds1-1+deb12u3), by `containerd -c FILE config dump`. config.toml sets sandbox_image in
# the section of the CRI plugin and imports a file that adds a runtime to that plugin:
#   * without the import    sandbox_image is the one that was set, the runtimes are runc
#   * with it               sandbox_image is the default again, the runtimes are the imported one, without runc
# Expected: as with drop-in files elsewhere, and with containerd 2, the sections are merged. So on 1.x a package cannot add a runtime to
# a node by a file of its own: the node would lose its registry settings, its pause image and its default runtime.
set -eu

VERSION=1.6.20~ds1-1+deb12u3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "containerd=$VERSION" >/dev/null 2>&1 || { echo "containerd $VERSION cannot be had (apt-get update?)" >&2; exit 1; }
dpkg -x ./*.deb root
program=$work/root/usr/bin/containerd
"$program" --version

cri='plugins."io.containerd.grpc.v1.cri"'
mkdir conf.d
cat > conf.d/sandbox.toml <<EOF
version = 2
[$cri.containerd.runtimes.sandboxed]
  runtime_type = "io.containerd.sandboxed.v2"
EOF
config() { # IMPORTS: the image and the runtimes of the configuration that comes of it
    cat > config.toml <<EOF
version = 2
root = "$work/lib"
state = "$work/run"
imports = [$1]
[$cri]
  sandbox_image = "registry.example/pause:1"
EOF
    "$program" -c "$work/config.toml" config dump | python3 -c '
import sys
text = sys.stdin.read()
image = text.split("sandbox_image = ")[1].split("\n")[0]
names = sorted({line.split("runtimes.")[1].split("]")[0].split(".")[0] for line in text.splitlines() if "containerd.runtimes." in line})
print("sandbox_image", image, "runtimes", ",".join(names) or "-")'
}
alone=$(config '')
imported=$(config "\"$work/conf.d/*.toml\"")
echo "without an import:  $alone"
echo "with the import:    $imported"
case $alone in *'"registry.example/pause:1"'*) ;; *) echo "the setting alone is not kept" >&2; exit 1 ;; esac
case $imported in
*'"registry.example/pause:1"'*) echo "the sections are merged now" >&2; exit 1 ;;
*'runtimes sandboxed') ;;
*) echo "something else comes of it now" >&2; exit 1 ;;
esac
echo "as seen: an imported file takes the place of the section"
