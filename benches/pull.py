#!/usr/bin/env python3
"""What it costs to bring an image of a registry here, against `skopeo copy` and `umoci unpack` in the same run.

    pull.py ZMACHINE REGISTRY [--rounds N] [--tree DIR] [--mib SIZE]

REGISTRY is the program of Debian's package docker-registry; skopeo and umoci are those of this host. An image of SIZE MiB (500) in five gzip
layers is made of files of DIR (/usr), pushed to the registry on the loopback interface, and fetched by both in turns, round by round:
first the whole image, then a second one that has four of the five layers. Printed are wall and CPU time (of all processes of the client)
in seconds, the ratio of the medians, and the most memory that zmachine had.
"""

import argparse
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAYERS = 5


def trees(source, where, mib):
    """Six trees of a fifth of the size each, of different files."""
    each = mib * 1024 * 1024 // LAYERS
    files = (Path(folder) / name for folder, _, names in os.walk(source) for name in sorted(names))
    for number in range(LAYERS + 1):
        left = each
        while left > 0:
            path = next(files, None)
            if path is None:
                sys.exit(f"pull: {source} has too few files")
            # Larger ones would make a layer of one file.
            if path.is_symlink() or not path.is_file() or path.stat().st_size > each // 5:
                continue
            target = where / str(number) / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
            left -= path.stat().st_size


def quiet(*command, **options):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def image(room):
    """Images v1 and v2 in the layout `oci`, which have four layers in common."""
    layout = room / "oci"
    quiet("umoci", "init", "--layout", layout)
    quiet("umoci", "new", "--image", f"{layout}:base")
    for number in range(LAYERS - 1):
        quiet("umoci", "insert", "--image", f"{layout}:base", room / "trees" / str(number), f"/l{number}")
    for name, number in (("v1", LAYERS - 1), ("v2", LAYERS)):
        quiet("umoci", "tag", "--image", f"{layout}:base", name)
        quiet("umoci", "insert", "--image", f"{layout}:{name}", room / "trees" / str(number), f"/l{number}")
    return layout


def serve(program, room):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (room / "registry.yml").write_text("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {}}\nhttp: {}\n")
    environment = os.environ | {
        "REGISTRY_HTTP_ADDR": f"127.0.0.1:{port}",
        "REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY": str(room / "registry"),
    }
    server = subprocess.Popen(
        [program, "serve", room / "registry.yml"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"127.0.0.1:{port}"
        time.sleep(0.1)
    sys.exit("pull: the registry does not start")


def cost(work):
    """Wall and CPU seconds of `work`, with that of the processes it waits for."""
    os.sync()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def peak(command, environment):
    """The most memory of one process, in MiB."""
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"pull: {said.decode()}")
    return used.ru_maxrss / 1024


def main():
    options = argparse.ArgumentParser()
    options.add_argument("zmachine")
    options.add_argument("registry")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--tree", default="/usr")
    options.add_argument("--mib", type=int, default=500)
    asked = options.parse_args()
    room = Path(tempfile.mkdtemp(prefix="pull-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    server = None
    try:
        trees(Path(asked.tree), room / "trees", asked.mib)
        layout = image(room)
        shutil.rmtree(room / "trees")
        server, host = serve(asked.registry, room)
        for name in ("v1", "v2"):
            quiet("skopeo", "copy", "--dest-tls-verify=false", f"oci:{layout}:{name}", f"docker://{host}/bench:{name}")
        stored = sum(file.stat().st_size for file in (layout / "blobs/sha256").iterdir())
        shutil.rmtree(layout)
        print(f"{asked.mib} MiB in {LAYERS} layers, {stored >> 20} MiB with the sixth as they are stored")

        home, copy, bundle = room / "home", room / "copy", room / "bundle"
        environment = os.environ | {"ZMACHINE_HOME": str(home)}
        memory = []

        def ours(name):
            memory.append(peak([asked.zmachine, "pull", "-q", f"{host}/bench:{name}"], environment))

        def theirs(name):
            quiet("skopeo", "copy", "--src-tls-verify=false", f"docker://{host}/bench:{name}", f"oci:{copy}:{name}")
            quiet("umoci", "unpack", "--image", f"{copy}:{name}", bundle / name)

        figures = {}
        for _ in range(asked.rounds):
            for folder in (home, copy, bundle):
                shutil.rmtree(folder, ignore_errors=True)
            bundle.mkdir()
            for who, work in (("zmachine", ours), ("skopeo and umoci", theirs)):
                for name in ("v1", "v2"):
                    figures.setdefault((who, name), []).append(cost(lambda: work(name)))

        def median(who, name, which):
            return statistics.median(sample[which] for sample in figures[who, name])

        print(f"{'':<28} {'wall':>8} {'CPU':>8}")
        for name, what in (("v1", "first image"), ("v2", "second, 4 of 5 shared")):
            for who in ("zmachine", "skopeo and umoci"):
                print(f"{who + ', ' + what:<42} {median(who, name, 0):8.2f} {median(who, name, 1):8.2f}")
        for what, one, other in (
            ("first, of theirs", ("zmachine", "v1"), ("skopeo and umoci", "v1")),
            ("second, of the first", ("zmachine", "v2"), ("zmachine", "v1")),
        ):
            ratios = [median(*one, which) / median(*other, which) for which in (0, 1)]
            print(f"ratio, {what:<35} {ratios[0]:8.2f} {ratios[1]:8.2f}")
        print(f"memory of zmachine, at most {max(memory):.0f} MiB")
    finally:
        if server:
            server.kill()
            server.wait()
        shutil.rmtree(room, ignore_errors=True)


if __name__ == "__main__":
    main()
