#!/usr/bin/env python3
"""Packing and unpacking of one real tree, beside what everybody has: tar with zstd, and mkfs.erofs.

    flist.py ZMACHINE [--tree DIR] [--work DIR] [--rounds N]

Without --tree the tree is a set of unpacked Debian packages (720 MB, 27,000 files), fetched once into .demo/packages. Each row
is a command from start to end. CPU is that of the process and its children, user and system; the rate is the bytes of the
tree's files per second of CPU, which other work on the host moves far less than the wall clock. Rows take turns, round by round;
figures are medians. `one CPU` is the same command held to one core: its wall time over that of `pack` is the scaling.
Everything that is read is in the page cache after the first round, which is thrown away. Each round writes to a folder of its own in
.demo, or in --work (one in memory shows the programs without the disk), and nothing is removed until the end (2.5 GB a round):
ext4 searches for minutes' worth of CPU when it makes files where others were removed within the last seconds.
"""

import argparse
import os
import shutil
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ["cpp-12", "g++-12", "gcc-12", "libboost1.74-dev", "libllvm14", "libpython3.11-stdlib", "llvm-14-dev", "perl-modules-5.36"]
HEADERS = r"linux-headers-6\.1\.0-[0-9]*-common$"


def debian_tree():
    """The packages above and the headers of one kernel, unpacked."""
    tree = PROJECT / ".demo/packages"
    if not tree.exists():
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            search = ["apt-cache", "search", "--names-only", f"^{HEADERS}"]
            found = subprocess.run(search, check=True, capture_output=True, text=True).stdout
            headers = sorted(line.split()[0] for line in found.splitlines())[-1:]
            subprocess.run(["apt-get", "-q", "download", *PACKAGES, *headers], cwd=folder, check=True, stdout=sys.stderr)
            part = tree.with_name("packages.part")
            shutil.rmtree(part, ignore_errors=True)
            for package in sorted(Path(folder).glob("*.deb")):
                subprocess.run(["dpkg-deb", "-x", package, part], check=True)
            part.rename(tree)
    return tree


def measured(command, one_cpu=False):
    """Wall seconds, CPU seconds and peak memory in MB of a command that must succeed."""
    def hold():
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    begin = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             preexec_fn=hold if one_cpu else None)
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    wall = time.monotonic() - begin
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{command}: {said.decode(errors='replace')}")
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def rows(args, tree, work):
    """Each row's name and command, and whether it is held to one CPU. `work` is an empty folder."""
    program = args.program
    pack = lambda name: [program, "flist", "pack", tree, "-o", work / f"{name}.fl", "--store", f"dir://{work / name}"]
    shell = lambda text: ["sh", "-euc", text]
    return [
        ("pack", pack("both"), False),
        ("pack again, nothing changed", pack("both"), False),
        ("pack, one CPU", pack("one"), True),
        ("unpack", [program, "flist", "unpack", work / "both.fl", work / "unpacked"], False),
        ("tar | zstd -1 -T0", shell(f"tar -C {tree} -c . | zstd -q -1 -T0 -o {work}/tar.zst"), False),
        ("zstd -d | tar -x", shell(f"mkdir {work}/tar; zstd -q -dc {work}/tar.zst | tar -C {work}/tar -x"), False),
        ("mkfs.erofs", ["mkfs.erofs", "--quiet", work / "plain.erofs", tree], False),
        ("mkfs.erofs -zlz4", ["mkfs.erofs", "--quiet", "-zlz4", work / "lz4.erofs", tree], False),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--tree", type=Path)
    parser.add_argument("--work", type=Path, help="where to write (default: .demo in the project)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.program = Path(args.program).resolve()
    tree = (args.tree or debian_tree()).resolve()
    count, size = 0, 0
    # One by one: a child's peak of memory is never told as less than this process has when it starts it.
    for folder, _, names in os.walk(tree):
        for name in names:
            facts = os.lstat(os.path.join(folder, name))
            if stat.S_ISREG(facts.st_mode):
                count, size = count + 1, size + facts.st_size / 1e6
    print(f"# {tree.name}: {count} files, {size:.0f} MB; {len(os.sched_getaffinity(0))} CPUs, {args.rounds} rounds")

    # Unless told where: beside the tree, the same file system for everything, and not one in memory.
    with tempfile.TemporaryDirectory(dir=args.work or PROJECT / ".demo") as folder:
        work = Path(folder)
        samples = {}
        for number in range(args.rounds + 1):
            room = work / f"round{number}"
            room.mkdir()
            os.environ["ZMACHINE_HOME"] = str(room / "home")
            for name, command, one_cpu in rows(args, tree, room):
                result = measured(command, one_cpu)
                if number:
                    samples.setdefault(name, []).append(result)
        print(f"{'':<30} {'wall s':>8} {'CPU s':>8} {'MB/CPU-s':>9} {'to pack':>8} {'peak MB':>8}")
        middle = {name: [statistics.median(column) for column in zip(*rounds)] for name, rounds in samples.items()}
        for name, (wall, cpu, peak) in middle.items():
            print(f"{name:<30} {wall:8.2f} {cpu:8.2f} {size / cpu:9.0f} {wall / middle['pack'][0]:8.2f} {peak:8.0f}")
        print(f"scaling from one CPU: {middle['pack, one CPU'][0] / middle['pack'][0]:.2f}")

        many = work / "many"
        many.mkdir()
        for number in range(5000):
            (many / str(number)).write_text(str(number))
        pack = lambda number: [args.program, "flist", "pack", many, "-o", work / f"many{number}.fl",
                               "--store", f"dir://{work}/many-store{number}"]
        walls = sorted(measured(pack(number))[0] for number in range(args.rounds))
        print(f"a directory of 5,000 files, packed: {statistics.median(walls):.2f} s (from {walls[0]:.2f} to {walls[-1]:.2f})")


main()
