#!/usr/bin/env python3
"""What a user waits for and pays for, each figure beside a floor measured in the same run.

    bench.py start  ZMACHINE FLIST [--rounds N] [--network NAME ...] [--other ZMACHINE HOME]   exec to the entrypoint's first byte, against bare QEMU
    bench.py cold   ZMACHINE FLIST STORE [--rounds N]                  the same with no block in the cache
    bench.py memory ZMACHINE FLIST COMMAND...                          memory of the processes of one machine
    bench.py jail   ZMACHINE FLIST BUSYBOX [--rounds N]                what the jail costs: start and memory, with it and without
    bench.py pack   ZMACHINE TREE STORE [--rounds N]               packing a tree whose blocks are in the store already
    bench.py command ZMACHINE FLIST [--rounds N] -- COMMAND...     a whole run of a command that prints nothing
    bench.py list   ZMACHINE [--machines N] [--rounds N]               CPU time of `ps -a` with N stopped machines

ZMACHINE_HOME names the state to work on. The variants of a figure take turns, round by round, so that whatever else the
host does hits all of them; ratios are of medians (and of minima), never of single runs.

`start` has two floors, both the same kernel with an initramfs whose init prints at once (floor.c). *Bare QEMU* is what a
user would type: the machine, the accelerator, the memory, no device, a serial console, nothing tuned. *Tuned* is the
command line that the program under test gives its own QEMU, read from a running machine, less every device: firmware, kernel
flags and all, so it shows what is spent beyond the guest kernel's own start.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def spawn_until(command, marker):
    """Runs `command`; seconds to the first byte (or to `marker`) on its standard output, and to its end."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    seen = b""
    while marker not in seen if marker else not seen:
        chunk = os.read(child.stdout.fileno(), 65536)
        if not chunk:
            sys.exit(f"bench: no output from {command}: {child.stderr.read().decode()}")
        seen += chunk
    first = time.monotonic() - start
    child.stdout.read()
    child.wait()
    end = time.monotonic() - start
    child.stdout.close()
    child.stderr.close()
    return first, end


def report(name, samples, *floors):
    """One line of a table: median and minimum in milliseconds, ratios to each floor."""
    median, least = statistics.median(samples), min(samples)
    line = f"{name:<34} {median * 1000:8.0f} {least * 1000:8.0f}"
    for floor in floors:
        line += f" {median / statistics.median(floor):8.2f} {least / min(floor):8.2f}"
    print(line, flush=True)


def heading(floors=1):
    print(f"{'':<34} {'median':>8} {'min':>8}" + f" {'ratio':>8} {'of min':>8}" * floors + "   (ms)")


def zmachine(program, *args):
    return subprocess.run([program, *args], check=True, capture_output=True, text=True).stdout


def processes(program, name):
    """Process ids of a running machine: its monitor, its rootfs server, its hypervisor."""
    state = json.loads(zmachine(program, "inspect", name))[0]["state"]
    return {role: state[role]["pid"] for role in ("monitor", "rootfs", "hypervisor")}


def flags_of_a_machine(program, flist):
    """The command line of the hypervisor of a machine of `flist`."""
    machine = subprocess.Popen(
        [program, "run", "--rm", "--network", "none", "--name", "bench-flags", flist], stdout=subprocess.PIPE
    )
    try:
        while True:
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
                except OSError:
                    continue
                # Before it is QEMU, it is a process of ours that locks itself in.
                is_qemu = words and "qemu" in os.path.basename(words[0])
                if is_qemu and any(word.startswith("guest=bench-flags,") for word in words):
                    return words
            if machine.poll() is not None:
                sys.exit("bench: no hypervisor was seen")
            time.sleep(0.01)
    finally:
        machine.communicate()


def bare(words, initramfs):
    """The same command line without its devices and channels, on another initramfs, with the console on stdout."""
    kept, skip = [], {"-chardev", "-mon", "-device", "-serial", "-netdev", "-blockdev", "-add-fd", "-initrd",
                      "-no-shutdown"}
    it = iter(words)
    for word in it:
        if word in skip:
            if word != "-no-shutdown":
                next(it)
        else:
            kept.append(word)
    return [*kept, "-serial", "stdio", "-initrd", str(initramfs)]


def plain(words, initramfs):
    """QEMU as a user would type it, with the kernel, accelerator and memory of `words`."""
    value = {flag: words[words.index(flag) + 1] for flag in ("-accel", "-m", "-kernel")}
    accelerator = value["-accel"].split(",")[0]
    command = [words[0], "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]
    command += ["-accel", accelerator, "-cpu", "max", "-m", value["-m"], "-serial", "stdio"]
    # Without no_timer_check a loaded host makes an emulated kernel panic; quiet, because nobody pays for its messages.
    append = "console=ttyS0 quiet panic=-1 no_timer_check"
    return [*command, "-kernel", value["-kernel"], "-initrd", str(initramfs), "-append", append]


def cpio(entries):
    """A newc archive of (name, mode, device, content)."""
    out = b""
    for number, (name, mode, device, content) in enumerate([*entries, ("TRAILER!!!", 0, (0, 0), b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return out + b"\0" * (-len(out) % 512)


def floor_initramfs(folder):
    init = folder / "init"
    flags = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-s"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", init, HERE / "floor.c"], check=True)
    archive = folder / "floor.cpio"
    entries = [("dev", 0o040755, (0, 0), b""), ("dev/console", 0o020600, (5, 1), b"")]
    archive.write_bytes(cpio([*entries, ("init", 0o100755, (0, 0), init.read_bytes())]))
    return archive


def start(args):
    folder = Path(tempfile.mkdtemp())
    try:
        words, initramfs = flags_of_a_machine(args.program, args.flist), floor_initramfs(folder)
        runs = {"bare QEMU": (plain(words, initramfs), b"floor"), "bare QEMU, tuned": (bare(words, initramfs), b"floor")}
        for network in args.network or ["none", "default"]:
            runs[f"zmachine run --network {network}"] = (
                [args.program, "run", "--rm", "--network", network, args.flist],
                None,
            )
            if args.other:
                other, home = args.other
                runs[f"other run --network {network}"] = (
                    ["env", f"ZMACHINE_HOME={home}", other, "run", "--rm", "--network", network, args.flist],
                    None,
                )
        first = {name: [] for name in runs}
        end = {name: [] for name in runs}
        for command, marker in runs.values():  # warm: the host's page cache, the block cache
            spawn_until(command, marker)
        for _ in range(args.rounds):
            for name, (command, marker) in runs.items():
                to_first, to_end = spawn_until(command, marker)
                first[name].append(to_first)
                end[name].append(to_end)
        for title, samples in (("exec to first byte", first), ("exec to end", end)):
            print(f"# {title}, {args.rounds} rounds")
            heading(2)
            for name in runs:
                report(name, samples[name], samples["bare QEMU"], samples["bare QEMU, tuned"])
    finally:
        shutil.rmtree(folder)


def cold(args):
    blocks = Path(os.environ["ZMACHINE_HOME"]) / "blocks"
    command = [args.program, "run", "--rm", "--network", "none", "--store", args.store, args.flist]
    samples = {"no block in the cache": [], "all blocks in the cache": []}
    spawn_until(command, None)
    for _ in range(args.rounds):
        shutil.rmtree(blocks, ignore_errors=True)
        samples["no block in the cache"].append(spawn_until(command, None)[0])
        samples["all blocks in the cache"].append(spawn_until(command, None)[0])
    print(f"# exec to first byte, {args.rounds} rounds")
    heading()
    for name, values in samples.items():
        report(name, values, samples["all blocks in the cache"])


def timed(title, command, rounds):
    samples = []
    for _ in range(rounds):
        begin = time.monotonic()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        samples.append(time.monotonic() - begin)
    print(f"# {title}, {rounds} rounds")
    heading()
    report("wall", samples)


def pack(args):
    with tempfile.TemporaryDirectory() as folder:
        target = os.path.join(folder, "packed.fl")
        command = [args.program, "flist", "pack", args.tree, "-o", target, "--store", args.store]
        timed(f"zmachine flist pack {args.tree}", command, args.rounds)


def whole_run(args):
    command = [args.program, "run", "--rm", "--network", "none", args.flist, *args.command]
    timed(f"zmachine run {' '.join(args.command)}", command, args.rounds)


def status(pid, key):
    for file in ("status", "smaps_rollup"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1])
    return 0


def memory(args):
    name = "bench-memory"
    zmachine(args.program, "run", "-d", "--name", name, "--network", "none", args.flist, *args.command)
    try:
        time.sleep(1)
        ids = processes(args.program, name)
        keys = ["VmRSS", "RssAnon", "RssFile", "RssShmem", "Pss"]
        print("# memory of one machine (kB)")
        print(f"{'':<34}" + "".join(f" {key:>9}" for key in keys))
        rows = {role: [status(pid, key) for key in keys] for role, pid in ids.items()}
        rows["monitor + rootfs"] = [a + b for a, b in zip(rows["monitor"], rows["rootfs"])]
        for role, values in rows.items():
            print(f"{role:<34}" + "".join(f" {value:>9}" for value in values))
    finally:
        zmachine(args.program, "rm", "-f", name)


def family(pid):
    """A process and all that come from it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(pid)] + [one for child in children for one in family(child)]


def memory_of_start(program, flist, command, name, words):
    """Kilobytes of all processes of a machine but what its guest uses, and of the kernel's slabs and page tables for it."""
    def kernel():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(lines[key].split()[0]) for key in ("SUnreclaim", "PageTables", "KernelStack", "Percpu"))

    before = kernel()
    zmachine(program, "run", "-d", "--name", name, "--network", "none", *words, flist, *command)
    try:
        time.sleep(1)
        ids = processes(program, name)
        others = [pid for pid in family(ids["monitor"]) if pid != ids["hypervisor"]]
        small = sum(status(pid, "Pss") for pid in others)
        return small, small + status(ids["hypervisor"], "RssAnon"), kernel() - before
    finally:
        zmachine(program, "rm", "-f", name)


def jail(args):
    variants = {"--jail off": ["--jail", "off"], "jail": []}
    first, end = ({name: [] for name in variants} for _ in range(2))
    run = lambda words: [args.program, "run", "--rm", "--network", "none", *words, args.flist, args.busybox, "echo", "first"]
    for words in variants.values():
        spawn_until(run(words), None)
    for _ in range(args.rounds):
        for name, words in variants.items():
            to_first, to_end = spawn_until(run(words), None)
            first[name].append(to_first)
            end[name].append(to_end)
    for title, samples in (("exec to first byte", first), ("exec to end", end)):
        print(f"# {title}, {args.rounds} rounds")
        heading()
        for name in variants:
            report(name, samples[name], samples["--jail off"])
    sizes = {name: [] for name in variants}
    for _ in range(max(3, args.rounds // 3)):
        for name, words in variants.items():
            sizes[name].append(memory_of_start(args.program, args.flist, [args.busybox, "sleep", "100"], "bench-jail", words))
    print("# memory of one machine (kB, medians): processes beside the hypervisor (PSS), with its own (RssAnon), the kernel's")
    for name, values in sizes.items():
        print(f"{name:<34}" + "".join(f" {statistics.median(column):>9.0f}" for column in zip(*values)))


def list_machines(args):
    home = Path(os.environ["ZMACHINE_HOME"])
    zmachine(args.program, "create", "--name", "bench-list", "--network", "none", args.flist)
    machines = home / "machines"
    model = machines / json.loads(zmachine(args.program, "inspect", "bench-list"))[0]["id"]
    made = [f"{number:012x}" for number in range(0xbe0000000000, 0xbe0000000000 + args.machines - 1)]
    try:
        for number, machine_id in enumerate(made):
            shutil.copytree(model, machines / machine_id)
            spec = json.loads((model / "spec.json").read_text())
            spec["name"] = f"bench-list-{number}"
            (machines / machine_id / "spec.json").write_text(json.dumps(spec))
            (machines / "by-name" / spec["name"]).symlink_to(f"../{machine_id}")
        cpu, wall = [], []
        for _ in range(args.rounds):
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
            lines = zmachine(args.program, "ps", "-a").count("\n")
            wall.append(time.monotonic() - start)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            assert lines >= args.machines, f"{lines} lines for {args.machines} machines"
        print(f"# zmachine ps -a with {args.machines} machines, {args.rounds} rounds")
        heading()
        report("CPU (user + sys)", cpu)
        report("wall", wall)
    finally:
        for number, machine_id in enumerate(made):
            shutil.rmtree(machines / machine_id, ignore_errors=True)
            (machines / "by-name" / f"bench-list-{number}").unlink(missing_ok=True)
        zmachine(args.program, "rm", "bench-list")


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, function, *positional):
        sub = commands.add_parser(name)
        sub.set_defaults(function=function)
        for word in positional:
            sub.add_argument(word, nargs="+" if word == "command" else None)
        sub.add_argument("--rounds", type=int, default=7)
        return sub

    starts = command("start", start, "program", "flist")
    starts.add_argument("--network", action="append")
    starts.add_argument("--other", nargs=2, metavar=("ZMACHINE", "HOME"), help="another build, with a home of its own")
    command("cold", cold, "program", "flist", "store")
    command("pack", pack, "program", "tree", "store")
    command("command", whole_run, "program", "flist", "command")
    command("memory", memory, "program", "flist", "command")
    command("jail", jail, "program", "flist", "busybox")
    command("list", list_machines, "program", "flist").add_argument("--machines", type=int, default=1000)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    main()
