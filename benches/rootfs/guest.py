"""A guest with a shell on its serial port: the same kernel, memory and CPU for every stack, other disks.

The kernel, its command line and QEMU's are those of a container machine (`plan.json` of a machine made for it). The initramfs
is ours: a static busybox, the workload program, the modules.
"""

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 3600
MODULES = ("virtio_blk libcrc32c crc32c_generic crc32c_intel netfs lz4_decompress erofs overlay"
           " mbcache crc16 jbd2 ext4 fuse virtiofs").split()
FUSE = "/sys/kernel/tracing/events/fuse/fuse_request_send"
INIT = f"""#!/bin/busybox sh
/bin/busybox --install /bin
export PATH=/bin PYTHONDONTWRITEBYTECODE=1
mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys; mount -t tracefs t /sys/kernel/tracing
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "no $module" >/dev/kmsg; done
[ ! -e {FUSE} ] || echo hist:keys=opcode > {FUSE}/trigger
for disk in /sys/block/vd*; do [ ! -e $disk ] || echo $(cat /read-ahead) > $disk/queue/read_ahead_kb; done
stty -F /dev/ttyS0 raw -echo
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
echo '<ready>'
while read -r line; do eval "$line"; echo "<done $?>"; done
"""


def cpio(entries):
    """A newc archive of (name, mode, content)."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = [number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def initramfs(path, kernel, read_ahead_kib, files):
    """Writes one for `kernel` (a folder with `modules/`); `files` are names and contents for its root."""
    program = path.with_name("workload")
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-static", "-o", program, HERE / "workload.c"], check=True)
    folders = "bin dev proc sys mnt lower upper modules".split()
    entries = [(name, 0o040755, b"") for name in folders]
    entries.append(("bin/busybox", 0o100755, Path(shutil.which("busybox")).read_bytes()))
    entries.append(("bin/workload", 0o100755, program.read_bytes()))
    there = [name for name in MODULES if (kernel / f"modules/{name}.ko").exists()]
    entries += [(f"modules/{name}.ko", 0o100644, (kernel / f"modules/{name}.ko").read_bytes()) for name in there]
    entries.append(("modules/order", 0o100644, "\n".join(there).encode()))
    entries.append(("read-ahead", 0o100644, str(read_ahead_kib).encode()))
    entries += [(name, 0o100644, content) for name, content in files.items()]
    entries.append(("init", 0o100755, INIT.encode()))
    path.write_bytes(cpio(entries))


def cpu_seconds(pid):
    """What a process and all its threads have used, those that ended included, in seconds of its own CPU clock."""
    return time.clock_gettime((~pid << 3) | 2)


def children(pid):
    """A process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += children(int(child))
    return found


class Guest:
    """A running guest. `disks` are QEMU's arguments for its disks; `servers` the processes that serve them."""

    def __init__(self, folder, plan, archive, disks, servers):
        self.servers, self.console = servers, None
        console = str(folder / "console.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(console)
            listener.listen(1)
            self.log = (folder / "qemu.log").open("wb")
            command = self._command(plan, archive, console, folder.name)
            self.qemu = subprocess.Popen([*command, *disks], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
            listener.settimeout(60)
            self.said = ""
            try:
                self.console, _ = listener.accept()
                self._wait("<ready>\n")
            except (OSError, SystemExit):
                self.end()
                sys.exit(f"bench-rootfs: QEMU did not start a guest: {Path(self.log.name).read_text()}\n{self.said}")

    @staticmethod
    def _command(plan, archive, console, name):
        vm = plan["vm"]
        boot = vm["boot"]["kernel"]
        accel = ["-accel", "kvm", "-cpu", "host"] if vm["accel"] == "kvm" else ["-accel", "tcg,tb-size=256", "-cpu", "max"]
        memory = vm["memory_bytes"] >> 20
        return ["qemu-system-x86_64", "-name", f"guest={name},debug-threads=on", "-nodefaults", "-no-user-config", "-display", "none",
                "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
                "-machine", "q35,memory-backend=mem0,vmport=off,i8042=off,sata=off,smbus=off,hpet=off,graphics=off", *accel,
                "-smp", str(vm["cpus"]), "-m", f"size={memory}M", "-object", f"memory-backend-memfd,id=mem0,size={memory}M,share=on",
                "-no-reboot", "-chardev", f"socket,id=console,path={console}", "-serial", "chardev:console", "-bios", "qboot.rom",
                "-kernel", boot["kernel"], "-initrd", str(archive), "-append", boot["cmdline"]]

    def run(self, command):
        """What it printed; it must succeed."""
        self.console.sendall(f"{command}\n".encode())
        text, status = self._wait(r"<done (\d+)>\n")
        if status != "0":
            sys.exit(f"bench-rootfs: in the guest: {command}: status {status}\n{text}")
        return text

    def _wait(self, pattern):
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.said)):
            if self.qemu.poll() is not None or time.monotonic() > end:
                sys.exit(f"bench-rootfs: the guest is gone or silent; its log is {self.log.name}\n{self.said}")
            if select.select([self.console], [], [], 1)[0]:
                self.said += self.console.recv(65536).decode(errors="replace").replace("\r", "")
        text, self.said = self.said[: found.start()], self.said[found.end():]
        return text, found[1] if found.lastindex else ""

    def requests(self):
        """Requests that devices have been sent so far: of the disks as the block layer counts them (reads, writes, discards,
        flushes), and messages of FUSE (FORGET, which has no answer, is not among them)."""
        text = self.run(f"cat /sys/block/vd*/stat 2>/dev/null; sed -n 's/.*Hits: /fuse /p' {FUSE}/hist")
        count = 0
        for line in text.splitlines():
            words = line.split()
            if line.startswith("fuse "):
                count += int(words[1])
            elif len(words) >= 16:
                count += sum(int(words[field]) for field in (0, 4, 11, 15))
        return count

    def cpu(self):
        """CPU seconds of all processes that run and serve it, and what of it was not the virtual CPU's."""
        total = sum(cpu_seconds(pid) for server in [self.qemu, *self.servers] for pid in children(server.pid))
        virtual = 0
        for task in Path(f"/proc/{self.qemu.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("CPU "):
                virtual += int((task / "schedstat").read_text().split()[0]) / 1e9
        return total, total - virtual

    def end(self):
        """Ends it and what serves it."""
        self.qemu.kill()
        self.qemu.wait()
        for server in reversed(self.servers):
            for pid in reversed(children(server.pid)):
                try:
                    os.kill(pid, 15)
                except ProcessLookupError:
                    pass
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        if self.console:
            self.console.close()
        self.log.close()
