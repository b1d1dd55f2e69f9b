#!/usr/bin/env python3
"""Forks and warm starts beside cold ones, in one run.

    fork.py ZMACHINE [--other COLD] [--rounds N] [--image FLIST]

Each round, in turns, without a network: a cold start (`run -d` until it is ready, then `exec true`) by COLD, ZMACHINE unless another build is
named; the same with `--snapshots` (its root over NBD, the snapshot's and the forks' side); a fork of a snapshot until it is ready, and until
`exec true` has ended, as the first one in a minute, which reads the memory, and as a later one; a foreground run of one echo, cold and warm, until its first byte; the first two once more from a pool (`--pool 1`), where
what the guest did while it waited is not counted. Then ten forks by one command, and what each takes.

Printed are medians of seconds and of CPU seconds, of all processes of the machine and of the command together, and their ratios to the cold start. CPU is
read from /proc/PID/schedstat of every thread before the machine is removed. The snapshot is made once; the tables say how long its machine stood still.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class Home:
    """A zmachine with a home of its own, whose processes are known by it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        self.env = dict(os.environ, ZMACHINE_HOME=str(folder))

    def __call__(self, *words, check=True):
        return subprocess.run([self.program, *words], env=self.env, check=check, capture_output=True, text=True).stdout

    def timed(self, *words):
        """Seconds and CPU seconds of a command alone; what it leaves behind is a machine's."""
        before, began = os.times(), time.monotonic()
        self(*words)
        took, after = time.monotonic() - began, os.times()
        return took, (after.children_user - before.children_user) + (after.children_system - before.children_system)

    def machine_cpu(self, name):
        """CPU seconds of the processes of a machine so far."""
        machine = json.loads(self("inspect", name))[0]
        return sum(cpu_of(pid) for pid in family(machine["state"]["monitor"]["pid"]))


def family(pid):
    """A process and all below it."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parent = int(text.rsplit(")", 1)[1].split()[1])
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_of(pid):
    total = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total += int(thread.read_text().split()[0])
        except OSError:
            pass
    return total / 1e9


def private_bytes(pid):
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) << 10
    except OSError:
        pass
    return total


def forget_memory(home):
    """Ends the processes that keep memory for the next start: that reads it, as the first one in a minute does."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            is_keeper = (entry / "comm").read_text() == "zm-memory\n" and str(home.folder) in (entry / "cmdline").read_text()
        except OSError:
            continue
        if is_keeper:
            os.kill(int(entry.name), signal.SIGKILL)


def started(home, make, name):
    """(seconds, CPU) until the machine is ready, and until `exec true` in it has ended."""
    took, own = home.timed(*make)
    ready = took, own + home.machine_cpu(name)
    more, command = home.timed("exec", name, "true")
    ended = took + more, own + command + home.machine_cpu(name)
    home("rm", "-f", name)
    return ready, ended


def standing_by(home):
    """The machine that stands by, once there is one, and the CPU time that it has taken so far."""
    for _ in range(600):
        for name in home("ps", "-a", "-q").split():
            if name.startswith("standby-"):
                machine = json.loads(home("inspect", name, check=False) or "[{}]")[0]
                if (home.folder / "run" / machine.get("id", "-") / "standby").exists():
                    # What was made for it is not what is measured.
                    time.sleep(1)
                    return sum(cpu_of(pid) for pid in family(machine["state"]["monitor"]["pid"]))
        time.sleep(0.1)
    sys.exit("no machine stands by")


def from_pool(home, *words):
    """As `started`, of a machine that stood by."""
    before = standing_by(home)
    took, own = home.timed("run", "-d", "--name", "pooled", "--pool", "1", *words, "sleep", "100000")
    ready = took, own + home.machine_cpu("pooled") - before
    more, command = home.timed("exec", "pooled", "true")
    ended = took + more, own + command + home.machine_cpu("pooled") - before
    home("rm", "-f", "pooled")
    return ready, ended


def first_byte(home, *words):
    """Seconds until a foreground run has printed something."""
    began = time.monotonic()
    with subprocess.Popen([home.program, "run", "--rm", *words], env=home.env, stdout=subprocess.PIPE) as run:
        run.stdout.read(1)
        took = time.monotonic() - began
    return took


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--other")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--image")
    parser.add_argument("--kernels", default=os.environ.get("ZMACHINE_KERNELS"), help="a folder of installed guest kernels to copy")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="zmachine-fork-"))
    new = Home(args.program, folder / "home")
    old = Home(args.other or args.program, folder / "other")
    samples = {}

    def note(name, *figures):
        samples.setdefault(name, []).append(figures)

    try:
        image = args.image
        if image is None:
            tree = folder / "tree" / "bin"
            tree.mkdir(parents=True)
            shutil.copy(shutil.which("busybox"), tree / "busybox")
            for name in ("sh", "true", "echo", "sleep"):
                (tree / name).symlink_to("busybox")
            image = str(folder / "box.fl")
            new("flist", "pack", str(tree.parent), "-o", image, "--store", f"dir://{folder}/store")
        for home in (new, old):
            if args.kernels:
                shutil.copytree(args.kernels, home.folder / "kernels", symlinks=True)
        lone = ("--network", "none", image)
        # Blocks, initramfs and the template are there before anything is measured.
        old("run", "--rm", *lone, "true")
        new("run", "--rm", "--warm", *lone, "true")
        new("run", "--rm", "--pool", "1", *lone, "true")
        new("run", "-d", "--name", "base", "--snapshots", *lone, "sleep", "100000")
        new("exec", "base", "true")
        new("snapshot", "create", "base@b")
        paused = json.loads(new("snapshot", "inspect", "base@b"))[0]
        for _ in range(args.rounds):
            ready, ended = started(old, ("run", "-d", "--name", "cold", *lone, "sleep", "100000"), "cold")
            note("cold: ready", *ready)
            note("cold: exec true", *ended)
            ready, ended = started(new, ("run", "-d", "--name", "nbd", "--snapshots", *lone, "sleep", "100000"), "nbd")
            note("cold, NBD root: exec true", *ended)
            forget_memory(new)
            ready, ended = started(new, ("fork", "base@b", "--name", "base-fork1"), "base-fork1")
            note("fork, the first: ready", *ready)
            note("fork, the first: exec true", *ended)
            ready, ended = started(new, ("fork", "base@b", "--name", "base-fork1"), "base-fork1")
            note("fork: ready", *ready)
            note("fork: exec true", *ended)
            ready, ended = from_pool(new, *lone)
            note("pool: ready", *ready)
            note("pool: exec true", *ended)
            standing_by(new)
            note("run, pool: first byte", first_byte(new, "--pool", "1", *lone, "echo", "x"), 0)
            note("run, cold: first byte", first_byte(old, *lone, "echo", "x"), 0)
            note("run, warm: first byte", first_byte(new, "--warm", *lone, "echo", "x"), 0)
        new("rm", "-f", *[name for name in new("ps", "-a", "-q").split() if name.startswith("standby-")], check=False)
        took, _ = new.timed("fork", "base@b", "-n", "10", "--name", "ten")
        time.sleep(5)
        each = []
        for number in range(1, 11):
            machine = json.loads(new("inspect", f"ten-{number}"))[0]
            each.append(private_bytes(machine["state"]["hypervisor"]["pid"]))
    finally:
        for home in (new, old):
            names = home("ps", "-a", "-q", check=False).split()
            if names:
                home("rm", "-f", *names, check=False)
        shutil.rmtree(folder, ignore_errors=True)
    medians = {name: [statistics.median(column) for column in zip(*rows)] for name, rows in samples.items()}
    print(f"{'':28} {'seconds':>8} {'CPU s':>8} {'of cold':>8} {'CPU':>6}")
    for name, (wall, cpu) in medians.items():
        # Both are held against the same cold start: until `exec true` has ended, but for a first byte.
        base = medians["run, cold: first byte" if name.startswith("run") else "cold: exec true"]
        ratio = f"{cpu / base[1]:6.3f}" if base[1] else ""
        print(f"{name:28} {wall:8.3f} {cpu:8.3f} {wall / base[0]:8.3f} {ratio:>6}")
    print(f"snapshot: stood still for {paused['paused_us'] / 1000:.0f} ms, takes {paused['used_bytes'] / 2**20:.1f} MiB")
    print(f"ten forks: {took:.2f} s, private memory of each QEMU {statistics.median(each) / 2**20:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
