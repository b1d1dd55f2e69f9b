#!/usr/bin/python3
"""What a pod costs as a machine, beside runc on the same containerd and the guest kernel's own boot, in one run.

    pods.py RELEASE KERNEL [--rounds N] [--together N]

RELEASE is the folder with `zmachine` and the shim, KERNEL a prepared guest kernel. It needs root, and Debian's containerd, runc, busybox and
python3-grpcio. A pod is its sandbox and one container that has written a line. CPU time is that of all processes of the pod that are alive
then, and what containerd itself took; the kinds take turns. *Bare QEMU* is the tuned one of `bench.py start`: the command line of a machine
of ours without its devices, on the same kernel with an init that does nothing.

Memory is told twice: of a pod that is alone on its host, proportional shares with all that is mapped of files (programs, libraries, the
guest kernel's image), which any other pod shares; and of each further pod, which is what a node pays. Beside both, what is a pod's alone
(private and dirty). Neither has the guest's memory in it, nor the code that an emulator translated, which is told by itself.
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
import threading
import time
from pathlib import Path

import bench

HERE = Path(__file__).resolve().parent
CLIENT = HERE.parent / "crates/guest-tests/tests/guest/kubernetes/cri.py"
IMAGE = "docker.io/library/box:1"
TICK = os.sysconf("SC_CLK_TCK")
# Pods beside the first one, for the memory of each.
FURTHER = 3


def run(*words, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **more)
    if done.returncode:
        sys.exit(f"bench: {' '.join(map(str, words))[:200]}: {done.stdout}{done.stderr}")
    return done.stdout


class Node:
    """A containerd in namespaces of its own, with both runtimes."""

    def __init__(self, folder, release, kernel):
        self.folder, self.release = folder, release
        self.home, self.socket = folder / "home", folder / "containerd.sock"
        self.env = dict(os.environ, ZMACHINE_HOME=str(self.home), PATH=f"{release}:{os.environ['PATH']}",
                        ZMACHINE_KUBERNETES_CONFIG=str(folder / "kubernetes.toml"))
        name = json.loads((kernel / "kernel.json").read_text())["name"]
        shutil.copytree(kernel, self.home / "kernels" / name)
        (self.home / "kernels/default").symlink_to(name)
        (folder / "kubernetes.toml").write_text(f'flists = ["{folder}/"]\n')
        criplugin = 'plugins."io.containerd.grpc.v1.cri"'
        (folder / "config.toml").write_text(f'''version = 2
root = "{folder}/root"
state = "{folder}/state"
[grpc]
  address = "{self.socket}"
[{criplugin}]
  sandbox_image = "{IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  [{criplugin}.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [{criplugin}.containerd.runtimes.zmachine]
    runtime_type = "io.containerd.zmachine.v2"
    pod_annotations = ["zmachine.io/*"]
  [{criplugin}.cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
''')
        (folder / "cni").mkdir()
        (folder / "cni/10-pods.conflist").write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": {
                "type": "host-local", "dataDir": f"{folder}/addresses", "ranges": [[{"subnet": "10.88.0.0/24"}]]}}]}))
        prepare = "ip link set lo up && mkdir -p /run/containerd && mount -t tmpfs tmpfs /run/containerd"
        script = f"{prepare} && exec containerd -c {folder}/config.toml 2> {folder}/containerd.log"
        self.containerd = subprocess.Popen(["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script], env=self.env)
        self.enter = ["nsenter", "--mount", "--net", "-t", str(self.containerd.pid), "--"]
        for _ in range(100):
            time.sleep(0.2)
            if subprocess.run([*self.enter, "ctr", "-a", self.socket, "version"], capture_output=True).returncode == 0:
                break

    def image(self):
        """One image for both runtimes, and the same tree as a flist."""
        tree = self.folder / "tree"
        (tree / "bin").mkdir(parents=True)
        (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (tree / "bin/busybox").chmod(0o755)
        for name in ("sh", "sleep", "echo"):
            os.link(tree / "bin/busybox", tree / "bin" / name)
        layer = self.folder / "layer.tar"
        run("tar", "-C", tree, "-cf", layer, ".")
        digest = run("sha256sum", layer).split()[0]
        (self.folder / "config.json").write_text(json.dumps({
            "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "100000"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]}}))
        (self.folder / "manifest.json").write_text(json.dumps(
            [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]))
        run("tar", "-C", self.folder, "-cf", self.folder / "image.tar", "manifest.json", "config.json", "layer.tar")
        run(*self.enter, "ctr", "-a", self.socket, "-n", "k8s.io", "images", "import", self.folder / "image.tar")
        self.flist = self.folder / "root.fl"
        run(self.release / "zmachine", "flist", "pack", tree, "-o", self.flist, "--store", f"dir://{self.folder}/store", env=self.env)

    def cri(self, method, request):
        return json.loads(run(*self.enter, "/usr/bin/python3", CLIENT, self.socket, method, json.dumps(request)))

    def pod(self, name, kind, containers=1):
        """Runs one until its containers have written; its id."""
        logs = self.folder / f"logs-{name}"
        logs.mkdir(exist_ok=True)
        config = {"metadata": {"name": name, "uid": name, "namespace": "bench"}, "log_directory": str(logs)}
        if kind == "flist":
            config["annotations"] = {"zmachine.io/flist": str(self.flist)}
        handler = "runc" if kind == "runc" else "zmachine"
        pod = self.cri("RunPodSandbox", {"config": config, "runtime_handler": handler})["pod_sandbox_id"]
        for number in range(containers):
            container = {"metadata": {"name": f"c{number}"}, "image": {"image": IMAGE}, "log_path": f"c{number}.log",
                         "command": ["/bin/sh", "-c", "echo up; exec /bin/sleep 100000"], "annotations": config.get("annotations", {})}
            request = {"pod_sandbox_id": pod, "config": container, "sandbox_config": config}
            made = self.cri("CreateContainer", request)["container_id"]
            self.cri("StartContainer", {"container_id": made})
            while "up" not in (logs / f"c{number}.log").read_text():
                time.sleep(0.01)
        return pod

    def remove(self, pod):
        self.cri("StopPodSandbox", {"pod_sandbox_id": pod})
        self.cri("RemovePodSandbox", {"pod_sandbox_id": pod})

    def processes(self):
        """Of pods: whoever has this node's folder in its command line or environment, or is below one that has."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(self.folder).encode() in text and int(entry.name) != self.containerd.pid:
                yield entry

    def cpu(self):
        """Seconds of all processes of the node, with those of containerd that have ended."""
        total = 0
        for entry in [*self.processes(), Path(f"/proc/{self.containerd.pid}")]:
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            total += sum(map(int, fields[11:15]))
        return total / TICK

    def end(self):
        self.containerd.terminate()
        self.containerd.wait()


def overhead(node):
    """Memory of pods' processes on the host in MB: proportional shares of what is not the guests', what of it is private and dirty, and what the
    emulator's translated code takes."""
    rest = own = translated = 0
    for entry in node.processes():
        try:
            maps = (entry / "smaps").read_text()
        except OSError:
            continue
        kind = ""
        for line in maps.splitlines():
            words = line.split()
            if "-" in words[0]:
                # The guest's memory is one mapping of a file in memory, which its servers have as well.
                is_guest, is_code = "memfd:" in line, "x" in words[1] and len(words) == 5
                kind = "guest" if is_guest else "code" if is_code and "w" in words[1] else ""
            elif words[0] == "Pss:":
                rest += int(words[1]) if not kind else 0
                translated += int(words[1]) if kind == "code" else 0
            elif words[0] == "Private_Dirty:":
                own += int(words[1]) if not kind else 0
    return rest / 1024, own / 1024, translated / 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("release", type=Path)
    parser.add_argument("kernel", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        node = Node(Path(name), args.release.resolve(), args.kernel)
        try:
            node.image()
            measure(node, args, Path(name))
        finally:
            node.end()


def measure(node, args, folder):
    os.environ["ZMACHINE_HOME"] = str(node.home)
    run(HERE.parent / "examples/hello/build", folder / "hello")
    hello = folder / "hello.fl"
    run(args.release / "zmachine", "flist", "pack", folder / "hello", "-o", hello, "--store", f"dir://{folder}/store")
    words = bench.flags_of_a_machine(args.release / "zmachine", hello)
    floor = bench.bare(words, bench.floor_initramfs(folder))
    cpu, wall = {kind: [] for kind in ("bare QEMU", "runc", "share", "flist")}, {kind: [] for kind in ("runc", "share", "flist")}
    for number in range(args.rounds + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        bench.spawn_until(floor, b"floor")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = {"bare QEMU": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}
        for kind in wall:
            used, begun = node.cpu(), time.monotonic()
            pod = node.pod(f"{kind}-{number}", kind)
            taken[kind], waited = node.cpu() - used, time.monotonic() - begun
            node.remove(pod)
            # The first round is for the caches.
            if number:
                wall[kind].append(waited)
        if number:
            for kind, seconds in taken.items():
                cpu[kind].append(seconds)
    print(f"# a pod of one container, {args.rounds} rounds: CPU time, wall time until it has written, beyond bare QEMU")
    for kind, seconds in cpu.items():
        median = statistics.median(seconds)
        beyond = "" if kind in ("bare QEMU", "runc") else f"   beyond the kernel's boot {median - statistics.median(cpu['bare QEMU']):5.2f} s"
        waited = f"{statistics.median(wall[kind]):7.2f} s" if kind in wall else " " * 9
        print(f"{kind:<12} {median:7.2f} s {waited} {beyond}")
    used, begun, pods = node.cpu(), time.monotonic(), []
    threads = [threading.Thread(target=lambda n=n: pods.append(node.pod(f"many-{n}", "share"))) for n in range(args.together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    many = node.cpu() - used
    for pod in pods:
        node.remove(pod)
    one = statistics.median(cpu["share"])
    print(f"{args.together} pods at once: {many:.2f} s of CPU in {time.monotonic() - begun:.1f} s, {many / (args.together * one):.2f} times {args.together} single starts")
    pods = [node.pod("three", "share", 3)]
    first, own, translated = overhead(node)
    print(f"a pod of three containers: {first:.1f} MB beyond the guest's memory, {own:.1f} MB of them its own; and {translated:.1f} MB of code that the emulator translated")
    pods += [node.pod(f"three-{number}", "share", 3) for number in range(FURTHER)]
    rest, own, translated = (figure / (FURTHER + 1) for figure in overhead(node))
    further = (rest * (FURTHER + 1) - first) / FURTHER
    print(f"each of {FURTHER} further ones: {further:.1f} MB, {own:.1f} MB of them its own; and {translated:.1f} MB of translated code")
    for pod in pods:
        node.remove(pod)


if __name__ == "__main__":
    main()
