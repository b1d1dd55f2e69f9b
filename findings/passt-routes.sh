#!/bin/sh
# passt: it takes its outside interface and gateway from one plain default route of the main table alone. A host that reaches
# everything by a multipath default route, or by two halves of the address space, has "no external routable interface" for
# it; and naming the interface is not enough: without --gateway it is "not usable".
#
# Seen with passt 0.0~git20230309.7c7625d of Debian 12, in a network namespace with one veth that has an address and
#   * default via 198.51.100.1                       starts, starts, starts
#   * default nexthop ... nexthop ... (multipath)    No external routable interface; External interface not usable; starts
#   * 0.0.0.0/1 and 128.0.0.0/1, as VPNs set them    No external routable interface; External interface not usable; starts
# without options, with --interface, and with --interface and --gateway; 'ip route get' names the interface in all three.
# Expected: the kernel's answer for a destination outside decides, as for every other program.
# Needs root, for a namespace of its own; nothing is sent anywhere.
set -eu

VERSION=0.0~git20230309.7c7625d-1
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 1; }
work=$(mktemp -d)
name=finding-passt-$$
trap 'ip netns del "$name" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "passt=$VERSION" >/dev/null 2>&1 || { echo "passt $VERSION cannot be had (apt-get update?)" >&2; exit 1; }
dpkg -x ./*.deb root
# As root it becomes nobody, and makes its socket and file as that one.
chmod 777 "$work"
inside() { ip netns exec "$name" "$@"; }

ip netns add "$name"
inside ip link set lo up
inside ip link add out type veth peer name far
inside ip link set out up
inside ip link set far up
inside ip address add 198.51.100.2/24 dev out

try() { # [PASST'S OPTIONS]: whether it starts, in a word
    rm -f pid
    # It is ready when its process id is written; then it is ended.
    inside "$work/root/usr/bin/passt" --foreground --stderr --ipv4-only --socket "$work/socket" --pid "$work/pid" "$@" >log 2>&1 &
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -s pid ] && break
        sleep 0.2
    done
    if [ -s pid ]; then
        kill "$(cat pid)" 2>/dev/null || true
        echo starts
    else
        grep -oE 'No external routable interface|External interface not usable' log | head -n 1
    fi
    wait 2>/dev/null || true
    rm -f socket
}

seen=
case_of() { # what the routes are
    inside ip route get 203.0.113.9 | grep -q 'dev out' || { echo "the kernel has no way out" >&2; exit 1; }
    plain=$(try); named=$(try --interface out); told=$(try --interface out --gateway 198.51.100.1)
    echo "$1: $plain; with --interface: $named; with --gateway too: $told"
    seen="$seen$plain/$named/$told, "
}
inside ip route add default via 198.51.100.1
case_of "a plain default route"
inside ip route replace default nexthop via 198.51.100.1 nexthop via 198.51.100.3
case_of "a multipath default route"
inside ip route del default
inside ip route add 0.0.0.0/1 via 198.51.100.1
inside ip route add 128.0.0.0/1 via 198.51.100.1
case_of "two halves"

none='No external routable interface/External interface not usable/starts'
[ "$seen" = "starts/starts/starts, $none, $none, " ] || { echo "this has changed: $seen" >&2; exit 1; }
