#!/usr/bin/env python3
"""How fast a machine's network is, against bare QEMU with the same tap.

    net.py ZMACHINE FLIST [--rounds N] [--window SECONDS]     FLIST has busybox; as root, ZMACHINE_HOME names the state

Two machines send as fast as they can, one to the other and then to the host. What zmachine adds to QEMU and its tap are the rules
against forged frames, for NAT and for forwarding; so the floor is the very same transfer, processes, taps and bridge with
these rules taken away. Windows with and without them take turns within one connection, so whatever else the host does hits both; the
ratio is of medians. Bytes are counted at the sender's tap.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time


def run(*command, text=None, check=True):
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if check and done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)}: {done.stderr}")
    return done.stdout


def sent_by(tap):
    """Bytes that came out of the machine: received by the host's end."""
    for line in open("/proc/net/dev"):
        name, _, rest = line.strip().partition(":")
        if name == tap:
            return int(rest.split()[0])
    sys.exit(f"bench: no interface {tap}")


def rate(tap, seconds):
    """Megabits per second through a tap."""
    before, start = sent_by(tap), time.monotonic()
    time.sleep(seconds)
    sent = sent_by(tap) - before
    if sent == 0:
        sys.exit(f"bench: nothing came through {tap}: the connection was not made, or is gone")
    return sent * 8 / (time.monotonic() - start) / 1e6


def sink():
    """A server that reads what it gets; its port."""
    listener = socket.create_server(("0.0.0.0", 0))

    def serve():
        while True:
            client, _ = listener.accept()
            threading.Thread(target=lambda: drain(client), daemon=True).start()

    def drain(client):
        while client.recv(1 << 20):
            pass

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


class Rules:
    """The nftables tables of one network, to take away and put back."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.text = "".join(run("nft", "list", "table", family, bridge) for family in ("inet", "bridge"))

    def away(self):
        for family in ("inet", "bridge"):
            run("nft", "delete", "table", family, self.bridge)

    def back(self):
        run("nft", "-f", "-", text=self.text)


def measure(name, zmachine, tap, rules, send, args):
    """One line: medians with and without rules, and their ratio."""
    # The other side may not listen yet.
    again = f"while :; do {send}; sleep 1; done"
    sender = subprocess.Popen([zmachine, "exec", "a", "/bin/busybox", "sh", "-c", again], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while rate(tap, 1) < 1:
        if time.monotonic() > deadline:
            sys.exit(f"bench: nothing is sent {name}")
    time.sleep(2)
    ours, bare = [], []
    for _ in range(args.rounds):
        ours.append(rate(tap, args.window))
        rules.away()
        bare.append(rate(tap, args.window))
        rules.back()
    sender.kill()
    sender.wait()
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"{name:<18} {statistics.median(ours):10.1f} {statistics.median(bare):10.1f} {ratio:8.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zmachine")
    parser.add_argument("flist")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--window", type=float, default=2.0)
    args = parser.parse_args()
    zmachine = args.zmachine
    receive = "while :; do busybox sleep 100000 | busybox nc -l -p 5001 > /dev/null; done"
    try:
        for name, script in (("a", "sleep 100000"), ("b", receive)):
            run(zmachine, "run", "-d", "--name", name, args.flist, "/bin/busybox", "sh", "-c", script)
        plan = {m["name"]: m for m in json.loads(run(zmachine, "ps", "-o", "json"))}
        inspected = {name: json.loads(run(zmachine, "inspect", name))[0] for name in plan}
        attachments = {name: facts["plan"]["attachments"][0] for name, facts in inspected.items()}
        tap = attachments["a"]["tap"]
        bridge = json.loads(run("ip", "-j", "link", "show", tap))[0]["master"]
        rules = Rules(bridge)
        print(f"{'Mbit/s':<18} {'zmachine':>10} {'bare':>10} {'ratio':>8}")
        target = attachments["b"]["addresses"][0].split("/")[0]
        zeros = "busybox dd if=/dev/zero bs=64k 2>/dev/null"
        measure("guest to guest", zmachine, tap, rules, f"{zeros} | busybox nc {target} 5001", args)
        gateway = attachments["a"]["gateway4"]
        measure("guest to host", zmachine, tap, rules, f"{zeros} | busybox nc {gateway} {sink()}", args)
    finally:
        for name in ("a", "b"):
            run(zmachine, "rm", "-f", name, check=False)


if __name__ == "__main__":
    main()
