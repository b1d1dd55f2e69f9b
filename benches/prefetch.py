#!/usr/bin/env python3
"""What a first start costs when the store is far away, and what knowing the image's hints saves.

    prefetch.py ZMACHINE [--rounds N] [--delay MILLISECONDS] [TREE [-- COMMAND...]]

TREE is a directory with COMMAND in it (default: python3 -c 'import json'); without one it is that of `make bench-rootfs`, real
Debian packages of 480 MB. It is packed, and its blocks are served by a web server of this program that waits DELAY milliseconds
(default 20) before each answer. The state is in .demo/prefetch; the demo's guest kernel serves, or one is installed. Each
round measures, in turns and from a fresh list of hints:

    first    no block in the cache, nothing known of the image
    second   no block in the cache, the hints known that the first one left
    warm     every block in the cache

`whole` is exec to end; `command` is the command alone, from its own start in the guest to its end, without the boot. Under
emulation the boot is most of the whole, and the same in all three. Ratios are of medians.
"""

import argparse
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "benches/rootfs"))
sys.dont_write_bytecode = True


def default_tree():
    from tree import Tree

    base = PROJECT / ".demo/rootfs"
    base.mkdir(parents=True, exist_ok=True)
    return Tree(base).path


def fresh_home(program):
    """A home with nothing but a guest kernel in it, by ZMACHINE_HOME for all that is started from now on."""
    home, kernels = PROJECT / ".demo/prefetch/home", PROJECT / ".demo/home/kernels"
    shutil.rmtree(home.parent, ignore_errors=True)
    home.mkdir(parents=True)
    os.environ["ZMACHINE_HOME"] = str(home)
    if kernels.is_dir():
        (home / "kernels").symlink_to(kernels)
    else:
        subprocess.run([program, "kernel", "install"], check=True, stdout=sys.stderr)
    return home


def serve(root, delay):
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def do_GET(self):
            time.sleep(delay)
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("tree", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--delay", type=float, default=20)
    parser.add_argument("command", nargs="*", default=["python3", "-c", "import json"])
    # Options may stand before TREE, which plain parsing does not allow where it may be missing.
    args = parser.parse_intermixed_args()
    tree = args.tree or default_tree()
    home = fresh_home(args.program)
    work = home.parent
    flist = work / "image.fl"
    pack = [args.program, "flist", "pack", tree, "-o", flist, "--store", f"dir://{work}/store"]
    subprocess.run(pack, check=True)
    store = serve(work / "store", args.delay / 1000)

    # The command's own time by the guest's clock, in hundredths of a second.
    script = 'read -r a b < /proc/uptime; "$@"; read -r c d < /proc/uptime; echo "$a $c"'
    run = [args.program, "run", "--name", "bench-prefetch", "--network", "none", "--store", store, str(flist)]
    run += ["sh", "-c", script, "sh", *args.command]

    def once(label):
        start = time.monotonic()
        done = subprocess.run(run, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        whole = time.monotonic() - start
        if done.returncode:
            sys.exit(f"prefetch: {label}: {done.stderr}")
        begin, end = done.stdout.split()[-2:]
        state = subprocess.run([args.program, "inspect", "bench-prefetch"], check=True, capture_output=True, text=True)
        counters = json.loads(state.stdout)[0]["state"]["rootfs_counters"]
        subprocess.run([args.program, "rm", "bench-prefetch"], check=True, capture_output=True)
        return whole, float(end) - float(begin), counters["blocks_fetched"], counters.get("blocks_prefetched", 0)

    once("before all")
    figures = {name: [] for name in ("first", "second", "warm")}
    for _ in range(args.rounds):
        for hints in home.glob("images/*/prefetch.json"):
            hints.unlink()
        for name in figures:
            if name != "warm":
                shutil.rmtree(home / "blocks")
            figures[name].append(once(name))
    print(f"# {' '.join(args.command)}, {args.delay:g} ms per block, {args.rounds} rounds; seconds, medians")
    print(f"{'':<10} {'whole':>8} {'command':>8} {'fetched':>8} {'ahead':>8}   of first: whole command   of warm: whole command")
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in figures.items()}
    for name, (whole, command, fetched, ahead) in medians.items():
        ratios = [f"{value / medians[base][at]:7.2f}" for base in ("first", "warm") for at, value in ((0, whole), (1, command))]
        print(f"{name:<10} {whole:8.2f} {command:8.2f} {fetched:8.0f} {ahead:8.0f}   {'':9}" + f"{ratios[0]} {ratios[1]}   {'':8}{ratios[2]} {ratios[3]}")
    shutil.rmtree(work)


main()
