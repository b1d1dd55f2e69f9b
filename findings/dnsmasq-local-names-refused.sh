#!/bin/sh
# dnsmasq: 'server=//' (names without a dot are answered here alone) answers them only while some other server is configured;
# without one they are REFUSED, like everything else.
#
# Seen with dnsmasq 2.90 of Debian 12 (dnsmasq-base 2.90-4~deb12u2), asked on the loopback for A and AAAA of 'web', which has
# an A record, and of 'nobody', which has none:
#   * server=//                     AAAA of 'web': REFUSED   AAAA of 'nobody': REFUSED
#   * server=// and one upstream    AAAA of 'web': no data   AAAA of 'nobody': no such name
#   * server=/#/                    AAAA of 'web': no data   AAAA of 'nobody': no such name
# Expected: what is to be answered here alone is answered the same whether or not there is somebody else to ask. It matters
# on networks without a way out: glibc goes on after REFUSED, musl's resolver fails the whole look-up of a name whose A
# record it was given.
set -eu

VERSION=2.90-4~deb12u2
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "dnsmasq-base=$VERSION" >/dev/null 2>&1 || { echo "dnsmasq-base $VERSION cannot be had (apt-get update?)" >&2; exit 1; }
dpkg -x ./*.deb root
# Its libraries are those of the installed package or of any Debian 12 with it.
program=$work/root/usr/sbin/dnsmasq
"$program" --version | head -n 1
echo "192.0.2.7 web" > hosts

ask() { # NAME: what the answer to AAAA is, in words
    python3 - "$1" <<'EOF'
import socket, struct, sys
question = b"".join(bytes([len(part)]) + part.encode() for part in sys.argv[1].split(".")) + b"\0"
query = struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + struct.pack(">HH", 28, 1)
for _ in range(50):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.2)
        try:
            client.sendto(query, ("127.0.0.1", 15353))
            answer = client.recv(512)
        except OSError:
            continue
    code, records = answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
    print({0: "no data" if records == 0 else "an address", 3: "no such name", 5: "REFUSED"}.get(code, f"code {code}"))
    break
else:
    print("no answer")
EOF
}

seen=
with() { # a configuration, in lines
    { printf '%s\n' "$@"; echo no-resolv; echo no-hosts; echo "addn-hosts=$work/hosts"; } > conf
    "$program" --keep-in-foreground --conf-file="$work/conf" --port=15353 --listen-address=127.0.0.1 --bind-interfaces \
        --user=root --pid-file= 2>log &
    server=$!
    web=$(ask web); nobody=$(ask nobody)
    echo "$*: AAAA of 'web': $web; AAAA of 'nobody': $nobody"
    seen="$seen$web/$nobody "
    kill "$server"; wait "$server" 2>/dev/null || true; server=
}
with server=//
# Nobody is asked there: the address is for documentation, and names without a dot stay here.
with server=// server=192.0.2.53
with server=/#/

[ "$seen" = "REFUSED/REFUSED no data/no such name no data/no such name " ] || { echo "this has changed: $seen" >&2; exit 1; }
