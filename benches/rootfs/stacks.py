"""The stacks that are compared: how each one gets the tree into a guest.

`zmachine`       the image as EROFS over vhost-user-blk (`zmachine rootfs`), a writable ext4 disk, overlayfs in the guest
`other`          the same with another build of zmachine (`--other`): what a change of it does, both in one run
`erofs`          the same without the writable layer, read-only: what the overlay costs (workloads that write cannot run)
`ext4`           one ext4 image of everything on QEMU's virtio-blk, with the same read-ahead as our root
`ext4-128`       the same with the kernel's own read-ahead
`virtiofs-always`, `virtiofs-auto`   a copy of the tree over virtiofsd with that cache mode, writable
`classic`        what Zero-OS does: the flist mounted by FUSE on the host, overlayfs on the host, virtiofsd (cache=auto) over that.
                 The FUSE daemon is our own `zmachine flist mount`: the original's is an order of magnitude slower
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from guest import Guest, initramfs

TITLES = {
    "zmachine": "zmachine",
    "other": "the other zmachine",
    "erofs": "zmachine, no overlay",
    "ext4": "ext4 on virtio-blk",
    "ext4-128": "ext4, read-ahead 128",
    "virtiofs-always": "virtio-fs always",
    "virtiofs-auto": "virtio-fs auto",
    "classic": "FUSE+overlay+virtio-fs",
}
DEFAULT = [name for name in TITLES if name not in ("other", "erofs", "ext4-128")]
# After the mounts everything a program wants: kernel file systems in the tree.
INSIDE = "mount --bind /dev /mnt/dev && mount -t proc p /mnt/proc"
OVERLAY = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,redirect_dir=on"
MOUNTS = {
    "zmachine": "mount -t erofs -o ro /dev/vda /lower && mount -t ext4 -o noatime,discard /dev/vdb /upper && "
                f"mkdir -p /upper/upper /upper/work && mount -t overlay overlay -o {OVERLAY} /mnt",
    "erofs": "mount -t erofs -o ro /dev/vda /mnt",
    "ext4": "mount -t ext4 -o noatime,discard /dev/vda /mnt",
    "virtiofs": "mount -t virtiofs root /mnt",
}
UNMOUNT = "umount /mnt/proc /mnt/dev /mnt; umount /lower /upper 2>/dev/null || :"


def read_all(path):
    """Reads a file, or every file below a folder, so that the host's page cache has it."""
    files = [path] if path.is_file() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    for file in files:
        if file.is_file() and not file.is_symlink():
            with file.open("rb", buffering=0) as source:
                while source.read(1 << 20):
                    pass


def listener(folder):
    """A listening socket that a child may inherit."""
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(folder / "server.sock"))
    made.listen(1)
    made.set_inheritable(True)
    return made


def virtiofsd(directory, fd, cache):
    """The command line of this host's virtiofsd, as zmachine starts it for a root: QEMU's own in C, or the one in Rust."""
    places = ("/usr/local/bin/virtiofsd", "/usr/local/libexec/virtiofsd", "/usr/bin/virtiofsd", "/usr/libexec/virtiofsd",
              "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
    program = next((place for place in places if os.path.exists(place)), None)
    if not program:
        sys.exit("bench-rootfs: this host has no virtiofsd; scripts/setup installs it")
    if b"max_idle_threads" in Path(program).read_bytes():
        options = f"sandbox=namespace,cache={cache},xattr,announce_submounts,log_level=err"
        return [program, f"--fd={fd}", "-f", "-o", options, "-o", f"source={directory}"]
    return [program, f"--fd={fd}", f"--shared-dir={directory}", "--sandbox=namespace", "--announce-submounts",
            "--log-level=warn", f"--cache={cache}", "--xattr"]


class Stacks:
    """Everything on the host that stacks need, below the folder `work`; each stack is started by `start`."""

    def __init__(self, args, tree, work, say):
        self.program, self.tree, self.work, self.say = args.program, tree, work, say
        self.mounts = []
        # What does not depend on the program stays for the next run: the packed tree and the cached blocks.
        kept = work.parent
        self.home, self.flist = kept / "home", kept / "tree.fl"
        os.environ["ZMACHINE_HOME"] = str(self.home)
        for folder in ("images", "machines"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        self.home.mkdir(parents=True, exist_ok=True)
        self._kernel(args.kernel)
        if not self.flist.exists():
            say("packing the tree")
            self._run("flist", "pack", tree.path, "-o", self.flist, "--store", f"dir://{kept / 'store'}")
        self.fuse = self._mount_flist()
        say("starting a machine once, which makes its writable disk")
        created = ["run", "--name", "bench-rootfs", "--network", "none", "--memory", f"{args.memory}M", "--size", "4G", self.flist]
        self._run(*created, "/bin/true")
        machine = json.loads(self._run("inspect", "bench-rootfs"))[0]["id"]
        self.machine = self.home / "machines" / machine
        self.plan = json.loads((self.machine / "plan.json").read_text())
        self.image = self.home / "images" / self.plan["image"]

    def _mount_flist(self):
        """The FUSE server of the classic stack. Reading everything through it fills the block cache for all stacks."""
        mounted = self.work / "flist"
        mounted.mkdir()
        self.mounts.append(mounted)
        server = subprocess.Popen([self.program, "flist", "mount", self.flist, mounted], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL)
        while not os.path.ismount(mounted):
            if server.poll() is not None:
                sys.exit("bench-rootfs: the flist cannot be mounted (see above)")
            time.sleep(0.05)
        self.say("reading everything once on the host")
        read_all(mounted)
        read_all(self.home / "blocks")
        return server

    def _run(self, *words):
        done = subprocess.run([self.program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench-rootfs: zmachine {' '.join(map(str, words))}: {done.stderr}")
        return done.stdout

    def _kernel(self, given):
        kernels = self.home / "kernels"
        if kernels.exists():
            return
        if given:
            kernels.mkdir()
            given = Path(given).resolve()
            (kernels / given.name).symlink_to(given)
            (kernels / "default").symlink_to(given.name)
        elif (self.work.parent / "home/kernels").is_dir():
            kernels.symlink_to(self.work.parent / "home/kernels")
        else:
            self.say("installing a kernel for the guests")
            self._run("kernel", "install")

    def start(self, name):
        """A guest with the tree at /mnt of it."""
        folder = self.work / "run" / name
        folder.mkdir(parents=True)
        kind = {"other": "zmachine", "ext4-128": "ext4"}.get(name, name if name in ("zmachine", "erofs", "ext4") else "virtiofs")
        read_ahead = 128 if name == "ext4-128" else self.plan["boot"]["read_ahead_kib"]
        files = {
            "mount": MOUNTS[kind].encode(),
            "small": "".join(f"/mnt/{path}\n" for path in self.tree.small()).encode(),
            "big": "".join(f"/mnt/{path}\n" for path in self.tree.big()).encode(),
        }
        archive = folder / "initramfs"
        kernel = Path(self.plan["vm"]["boot"]["kernel"]["kernel"]).parent
        initramfs(archive, kernel, read_ahead, files)
        disks, servers = getattr(self, f"_serve_{kind}")(name, folder)
        guest = Guest(folder, self.plan, archive, disks, servers)
        if kind == "zmachine":
            # The machine that made the disk has left its own /etc/hosts and the like there.
            guest.run("mount -t ext4 /dev/vdb /upper && rm -rf /upper/upper /upper/work && umount /upper")
        guest.run(f". /mount && {INSIDE}; rmdir /mnt/lost+found 2>/dev/null || :")
        return guest

    def _copy(self, name):
        """A copy of the tree. It stays for the next run: of what guests do in it only git's index is left behind."""
        copy, index = self.work.parent / name, self.tree.repository / ".git/index"
        if not copy.exists():
            part = copy.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            subprocess.run(["cp", "-a", "--reflink=auto", self.tree.path, part], check=True)
            part.rename(copy)
        shutil.copy2(self.tree.path / index, copy / index)
        read_all(copy)
        return copy

    def end(self):
        """Takes the mounts away; what used them has ended."""
        self.fuse.terminate()
        for path in reversed(self.mounts):
            subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)

    def _file(self, path, name):
        node = {"driver": "raw", "node-name": name, "read-only": False, "discard": "unmap",
                "file": {"driver": "file", "filename": str(path), "aio": "io_uring", "locking": "on"}}
        return ["-blockdev", json.dumps(node),
                "-device", f"virtio-blk-pci-non-transitional,id=dev-{name},drive={name},serial={name},discard=on"]

    def _serve_zmachine(self, name, folder):
        disks, servers = self._serve_erofs(name, folder)
        return [*disks, *self._file(self.machine / "root.img", "upper")], servers

    def _serve_erofs(self, _, folder):
        socket_ = listener(folder)
        # No file: in its jail the server makes none larger.
        events = open("/dev/null", "wb")
        os.set_inheritable(events.fileno(), True)
        disk = next(d["vhost_user"] for d in self.plan["vm"]["disks"] if "vhost_user" in d)
        words = ["--image-dir", self.image, "--blocks-dir", self.home / "blocks", "--listener-fd", str(socket_.fileno()),
                 "--events-fd", str(events.fileno()), "--serial", self.plan["boot"]["root"]["lower_serial"],
                 "--queues", str(disk["queues"]), "--credentials", self.home / "stores.toml"]
        # As its monitor starts it, with another process that opens the blocks; but for the user and the pid namespace.
        ground = folder / "jail"
        ground.mkdir(exist_ok=True)
        words += ["--jail", json.dumps({"user": None, "folder": str(ground), "view": [],
                                        "devices": ["null", "zero", "random", "urandom"]})]
        server = subprocess.Popen([self.program, "rootfs", *words], pass_fds=(socket_.fileno(), events.fileno()),
                                  stdin=subprocess.PIPE)
        server.stdin.write(b"[]")  # no other stores than the image's
        server.stdin.close()
        disks = ["-chardev", f"socket,id=root,path={folder / 'server.sock'}",
                 "-device", f"vhost-user-blk-pci-non-transitional,id=dev-root,chardev=root,num-queues={disk['queues']}"]
        return disks, [server]

    def _serve_ext4(self, name, _):
        image = self.work / f"{name}.img"
        image.unlink(missing_ok=True)
        with image.open("wb") as file:
            file.truncate(self.tree.bytes * 3 // 2 + (1 << 30))
        subprocess.run(["mkfs.ext4", "-q", "-F", "-d", self.tree.path, image], check=True, stdout=sys.stderr)
        read_all(image)
        return self._file(image, "root"), []

    def _serve_virtiofs(self, name, folder):
        servers = []
        if name == "classic":
            directory, mounted = folder / "merged", self.work / "flist"
            for path in (directory, folder / "upper", folder / "work"):
                path.mkdir()
            servers.append(self.fuse)
            self.mounts.append(directory)
            options = f"lowerdir={mounted},upperdir={folder / 'upper'},workdir={folder / 'work'}"
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, directory], check=True)
        else:
            directory = self._copy(name)
        socket_ = listener(folder)
        command = virtiofsd(directory, socket_.fileno(), "always" if name.endswith("always") else "auto")
        with (folder / "virtiofsd.log").open("wb") as log:
            servers.append(subprocess.Popen(command, pass_fds=(socket_.fileno(),), stdin=subprocess.DEVNULL, stderr=log))
        disks = ["-chardev", f"socket,id=root,path={folder / 'server.sock'}",
                 "-device", "vhost-user-fs-pci,id=dev-root,chardev=root,tag=root,queue-size=1024"]
        return disks, servers
