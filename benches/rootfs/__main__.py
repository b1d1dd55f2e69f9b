"""`make bench-rootfs`: the root of a container machine beside the other ways to get a file tree into a guest.

    benches/rootfs ZMACHINE [--other ZMACHINE] [--rounds N] [--stacks A,B] [--workloads 'A;B'] [--memory MIB] [--kernel DIR] [--docs DIR]

Every stack (stacks.py) has a guest of its own with the same kernel, memory and CPU; all are there from the beginning and take
turns, workload by workload and round by round, so that whatever else the host does hits all of them. Before a cold workload
the guest drops its caches; the host's page cache and zmachine's block cache are warm. Each workload must have done the same on
every stack: files, bytes, and a sum of what was read. Figures are medians of the rounds. Needs root: FUSE, overlayfs and
virtiofsd do; the mounts are in a mount namespace of this process and end with it. See docs/performance/rootfs.md.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.dont_write_bytecode = True

import report
from stacks import DEFAULT, INSIDE, TITLES, UNMOUNT, Stacks
from tree import PROJECT, Tree

DROP = "sync; echo 3 > /proc/sys/vm/drop_caches"


class Workload:
    """`command` is timed; `before` is not. A cold one finds the guest's caches empty."""

    def __init__(self, name, command, cold=True, before="", after="", reads=True):
        self.name, self.command, self.cold, self.before, self.after, self.reads = name, command, cold, before, after, reads


def workloads(tree):
    python = "/usr/bin/python3 -c 'import json, http.client, asyncio, sqlite3, email.message'"
    git = f"/usr/bin/git -c safe.directory=* -C /{tree.repository} status --porcelain"
    index = f"/mnt/{tree.repository}/.git/index"
    made = "/mnt/tmp/bench"
    return [
        Workload("mount", "workload exec 1 / /bin/sh /mount", before=UNMOUNT, after=INSIDE, reads=False),
        Workload("walk", "workload walk /mnt"),
        Workload("read all", "workload readall /mnt", before=f"cp /index {index}"),
        Workload("random 4 KiB", "workload random /big 2000"),
        Workload("small files, cold", "workload small /small"),
        Workload("small files, warm", "workload small /small", cold=False, before="workload small /small"),
        Workload("python import, cold", f"workload exec 1 /mnt {python}"),
        Workload("python import, warm", f"workload exec 3 /mnt {python}", cold=False, before=f"workload exec 1 /mnt {python}"),
        Workload("exec x100, warm", "workload exec 100 /mnt /usr/bin/true", cold=False, before="workload exec 1 /mnt /usr/bin/true"),
        Workload("grep -r", f"workload exec 1 /mnt /bin/grep -rlF define /{tree.sources}"),
        Workload("git status, first", f"workload exec 1 /mnt {git}", before=f"cp /index {index}"),
        Workload("git status", f"workload exec 1 /mnt {git}"),
        Workload("write 32 MiB", f"workload write {made}.file 32", after=f"rm {made}.file; sync", reads=False),
        Workload("create 1000", f"workload create {made} 1000", reads=False),
        Workload("unlink 1000", f"workload unlink {made} 1000", cold=False, reads=False),
        Workload("fsync x100", f"workload fsync {made}.file 100", after=f"rm {made}.file; sync", reads=False),
    ]


def measured(guest, workload):
    """Requests, CPU seconds, those outside of the virtual CPU, wall seconds; and what was done."""
    if workload.before:
        guest.run(workload.before)
    if workload.cold:
        guest.run(DROP)
    requests, (cpu, serving) = guest.requests(), guest.cpu()
    said = guest.run(workload.command)
    (cpu_then, serving_then), requests_then = guest.cpu(), guest.requests()
    if workload.after:
        guest.run(workload.after)
    wall, *done = map(int, said.split())
    return [requests_then - requests, cpu_then - cpu, serving_then - serving, wall / 1e9], done


def check_git(guest, tree):
    """The status is clean, so that the workload does what it says on every stack."""
    said = guest.run(f"chroot /mnt /usr/bin/git -c safe.directory=* -C /{tree.repository} status --porcelain | head -n 5")
    if said.strip():
        sys.exit(f"bench-rootfs: git status is not clean: {said}")


def run(args, tree, work, say):
    stacks = Stacks(args, tree, work, say)
    made = {name: stacks for name in args.stacks}
    if "other" in args.stacks:
        folder = work.parent / "other/work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        kernel = str(stacks.home / "kernels/default")
        made["other"] = Stacks(argparse.Namespace(**{**vars(args), "program": args.other, "kernel": kernel}), tree, folder, say)
    guests, samples = {}, {}
    chosen = [w for w in workloads(tree) if not args.workloads or w.name in args.workloads]
    if unknown := set(args.workloads or []) - {w.name for w in chosen}:
        for each in set(made.values()):
            each.end()
        sys.exit(f"bench-rootfs: no such workload: {', '.join(unknown)}")
    try:
        for name in args.stacks:
            say(f"{name}: starting")
            guests[name] = guest = made[name].start(name)
            guest.run(f"cp /mnt/{tree.repository}/.git/index /index")
            check_git(guest, tree)
        for number in range(args.rounds):
            for workload in chosen:
                say(f"round {number + 1}: {workload.name}")
                done = {}
                # Another one begins each time: nobody is always the one who finds the host's caches cold.
                names = list(guests)
                for name in names[number % len(names):] + names[: number % len(names)]:
                    figures, done[name] = measured(guests[name], workload)
                    samples.setdefault(workload.name, {name: [] for name in names})[name].append(figures)
                    say(f"    {name}: {figures[0]} requests, {figures[1]:.2f} CPU s, {figures[3]:.2f} s")
                if len({tuple(what) for what in done.values()}) != 1:
                    sys.exit(f"bench-rootfs: {workload.name} did not do the same everywhere: {done}")
    except KeyboardInterrupt:
        say("interrupted; this is what was measured until now")
        samples = {name: of for name, of in samples.items() if all(of.values())}
    finally:
        for guest in guests.values():
            guest.end()
        for each in set(made.values()):
            each.end()
    if not samples:
        sys.exit("bench-rootfs: nothing was measured")
    reads = [w.name for w in chosen if w.reads]
    return {"samples": samples, "reads": reads, "facts": report.facts(stacks.plan, tree, args)}


def main():
    parser = argparse.ArgumentParser(prog="benches/rootfs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    parser.add_argument("--other", type=Path, help="the program of the stack `other`, with a home of its own: an earlier build")
    parser.add_argument("--rounds", type=int, default=3)
    words = lambda mark: lambda text: [word.strip() for word in text.split(mark)]
    parser.add_argument("--stacks", type=words(","), default=DEFAULT, help=f"of {', '.join(TITLES)}")
    parser.add_argument("--workloads", type=words(";"), help="names as in the table (default: all)")
    parser.add_argument("--memory", type=int, default=512, help="MiB of each guest")
    parser.add_argument("--kernel", help="folder of an installed kernel (default: the demo's, or one is installed)")
    parser.add_argument("--docs", type=Path, help="write table and plot for the documentation into this folder")
    args = parser.parse_args()
    args.program = args.program.resolve()
    if unknown := [name for name in args.stacks if name not in TITLES]:
        parser.error(f"no such stack: {', '.join(unknown)}")
    if ("other" in args.stacks) != bool(args.other):
        parser.error("--other and the stack `other` belong together")
    args.other = args.other and args.other.resolve()
    if os.getuid():
        sys.exit("bench-rootfs: this needs root, for FUSE, overlayfs and virtiofsd")
    if "BENCH_ROOTFS_NAMESPACE" not in os.environ:
        # The mounts of the FUSE stack vanish with the last process in here, however it ends.
        os.environ["BENCH_ROOTFS_NAMESPACE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", sys.executable, *sys.argv])
    # Also where a shell has this run in the background, and for `timeout`: what was measured is shown.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    say = lambda text: print(f"bench-rootfs: {text}", file=sys.stderr, flush=True)
    base = PROJECT / ".demo/rootfs"
    base.mkdir(parents=True, exist_ok=True)
    tree = Tree(base)
    say(f"{tree.files} files, {tree.bytes / 1e6:.0f} MB")
    work = base / "work"
    # Of a run that was interrupted; nothing is mounted there in this namespace.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        results = run(args, tree, work, say)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    (base / "results.json").write_text(json.dumps(results, indent=1))
    report.show(results)
    if args.docs:
        report.write(results, args.docs)


main()
