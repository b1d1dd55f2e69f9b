"""The table, the aims, the facts of the machine and the plot of `make bench-rootfs`."""

import math
import os
import re
import statistics
import subprocess
import time
from pathlib import Path

from stacks import TITLES, virtiofsd

MEASURES = ("requests", "host CPU s", "of it serving", "wall s")
BEGIN, END = "<!-- written by make bench-rootfs: begin -->\n", "<!-- end -->\n"
COLOURS = {"zmachine": "#1b7837", "erofs": "#7fbf7b", "ext4": "#555555", "ext4-128": "#999999", "virtiofs-always": "#2166ac",
           "virtiofs-auto": "#92c5de", "classic": "#b2182b"}


def _said(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().split("\n")[0]


def facts(plan, tree, args):
    """What was measured where."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    server = virtiofsd("/", 0, "auto")[0]
    return {
        "date": time.strftime("%-d %B %Y"),
        "host": f"{os.cpu_count()} CPUs ({cpu[1] if cpu else 'unknown'}), Linux {os.uname().release}, "
                f"load {os.getloadavg()[2]:.1f}",
        "hypervisor": f"{_said('qemu-system-x86_64', '--version')}, {plan['vm']['accel'].upper()}, "
                      f"{plan['vm']['cpus']} CPU, {args.memory} MiB",
        "virtiofsd": f"{server}: {_said(server, '--version')}",
        "guest": f"kernel {plan['kernel']['name']}, read_ahead_kb {plan['boot']['read_ahead_kib']} for zmachine and ext4",
        "tree": f"{tree.files} files, {tree.bytes / 1e6:.0f} MB; grep -r reads {tree.source_files} files, git status looks at "
                f"{sum(name.startswith(str(tree.repository)) and '/.git/' not in name for name in tree.sizes)}",
        "rounds": args.rounds,
    }


def reduced(results, reduce=statistics.median):
    """Workload to stack to each measure over the rounds, reduced to one figure."""
    return {name: {stack: [reduce(column) for column in zip(*rounds)] for stack, rounds in stacks.items()}
            for name, stacks in results["samples"].items()}


def _cell(measure, value):
    return f"{value:.0f}" if measure == "requests" else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def rows(results):
    """Workload, measure and one cell per stack; the last measure is the wall time over that of ext4."""
    for name, stacks in reduced(results).items():
        for index, measure in enumerate(MEASURES):
            yield name, measure, [_cell(measure, figures[index]) for figures in stacks.values()]
        if "ext4" in stacks:
            base = stacks["ext4"][3]
            yield name, "wall to ext4", [f"{figures[3] / base:.2f}" for figures in stacks.values()]


def _ratio(mine, other):
    return mine / other if other else (0.0 if not mine else float("inf"))


def _aims(results, reduce):
    """Each aim as (what, figure, limit, whether more is better)."""
    middle = reduced(results, reduce)

    def against(name, other, measure):
        stacks = middle.get(name, {})
        if "zmachine" in stacks and other in stacks:
            return _ratio(stacks["zmachine"][measure], stacks[other][measure])
        return None

    wanted = [("walk", 0.35), ("small files, cold", 1.0)]
    found = [(f"requests of {name}, to ext4", against(name, "ext4", 0), limit, False) for name, limit in wanted]
    if "zmachine" in (warm := middle.get("exec x100, warm", {})):
        found.append(("requests of exec x100, warm", warm["zmachine"][0], 0, False))
    for name in results["reads"]:
        found.append((f"host CPU of {name}, to ext4", against(name, "ext4", 1), 1.0, False))
    for name in results["reads"]:
        found.append((f"requests of {name}, to virtio-fs always", against(name, "virtiofs-always", 0), 0.3, False))
    for name in ("grep -r", "git status, first", "git status"):
        speed = against(name, "ext4", 3)
        found.append((f"speed of {name}, to ext4", speed and 1 / speed, 0.9, True))
    return [aim for aim in found if aim[1] is not None]


def aims(results):
    """Each aim as (what, its figure of medians, of minima, limit in words, whether the medians reach it)."""
    for (what, figure, limit, more), (_, least, *_) in zip(_aims(results, statistics.median), _aims(results, min)):
        reached = round(figure, 2) >= limit if more else round(figure, 2) <= limit
        yield what, figure, least, f"{'at least' if more else 'at most'} {limit}", reached


def show(results):
    """The table on standard output."""
    for key, value in results["facts"].items():
        print(f"# {key}: {value}")
    stacks = list(next(iter(results["samples"].values())))
    print(f"{'':<20} {'':<14}" + "".join(f" {TITLES[stack]:>23}" for stack in stacks))
    last = None
    for name, measure, cells in rows(results):
        print(f"{name if name != last else '':<20} {measure:<14}" + "".join(f" {cell:>23}" for cell in cells))
        last = name
    print("\n# aims")
    print(f"{'':<52} {'medians':>8} {'minima':>8}")
    for what, figure, least, limit, reached in aims(results):
        print(f"{what:<52} {figure:8.2f} {least:8.2f}   {limit:<13} {'reached' if reached else 'MISSED'}")


def write(results, folder):
    """The plot, and the part of the page that is generated, into the folder `docs/performance`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rootfs.svg").write_text(plot(results))
    stacks = list(next(iter(results["samples"].values())))
    lines = [f"* {key}: {value}" for key, value in results["facts"].items()]
    lines += ["", "| | | " + " | ".join(TITLES[stack] for stack in stacks) + " |", "|---|---|" + "---|" * len(stacks)]
    last = None
    for name, measure, cells in rows(results):
        lines.append(f"| {name if name != last else ''} | {measure} | " + " | ".join(cells) + " |")
        last = name
    lines += ["", "| aim | of medians | of minima | limit | |", "|---|---|---|---|---|"]
    for what, figure, least, limit, reached in aims(results):
        lines.append(f"| {what} | {figure:.2f} | {least:.2f} | {limit} | {'reached' if reached else '**missed**'} |")
    page = folder / "rootfs.md"
    text = page.read_text() if page.exists() else BEGIN + END
    head, _, rest = text.partition(BEGIN)
    page.write_text(head + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])


def plot(results):
    """Two panels of bars on a logarithmic scale: requests, and host CPU over that of ext4."""
    middle = reduced(results)
    stacks = list(next(iter(middle.values())))
    bar, gap, label, width = 9, 10, 150, 330
    group = bar * len(stacks) + gap
    height = 70 + group * len(middle) + 20
    panels = [("requests to the host (0 has no bar)", 1, 100_000, lambda of, stack: of[stack][0])]
    if "ext4" in stacks:
        panels.append(("host CPU, ext4 on virtio-blk = 1", 0.1, 100, lambda of, stack: _ratio(of[stack][1], of["ext4"][1])))
    full = label + (width + 60) * len(panels)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{full}" height="{height}" fill="white"/>']
    for index, stack in enumerate(stacks):
        x = 10 + index * (full - 20) // len(stacks)
        out.append(f'<rect x="{x}" y="8" width="10" height="10" fill="{COLOURS[stack]}"/><text x="{x + 14}" y="17">{TITLES[stack]}</text>')
    for row, name in enumerate(middle):
        out.append(f'<text x="{label - 8}" y="{60 + row * group + group // 2}" text-anchor="end">{name}</text>')
    for index, (title, least, most, value) in enumerate(panels):
        left = label + index * (width + 60)
        decades = round(math.log10(most / least))
        out.append(f'<text x="{left}" y="38" font-weight="bold">{title}</text>')
        for step in range(decades + 1):
            x = left + width * step / decades
            out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="56" y2="{height - 20}" stroke="#dddddd"/>'
                       f'<text x="{x:.1f}" y="52" text-anchor="middle" fill="#666666">{least * 10 ** step:g}</text>')
        for row, of in enumerate(middle.values()):
            for place, stack in enumerate(stacks):
                figure = value(of, stack)
                if figure <= 0:
                    continue
                long = max(1.0, min(1.0, max(0.0, math.log10(figure / least) / decades)) * width)
                y = 62 + row * group + place * bar
                shown = f"{figure:.0f}" if least == 1 else f"{figure:.2f}"
                out.append(f'<rect x="{left}" y="{y}" width="{long:.1f}" height="{bar - 1}" fill="{COLOURS[stack]}"/>'
                           f'<text x="{left + long + 3:.1f}" y="{y + 8}" font-size="8" fill="#444444">{shown}</text>')
    return "\n".join([*out, "</svg>", ""])

