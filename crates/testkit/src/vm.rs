//! Images of VMs, made without mounting anything: a small operating system of busybox on a bare file system, with a kernel and
//! an initramfs beside it.
//!
//! The system tells the serial console what it finds, in lines that tests wait for:
//! ```text
//! CMDLINE <the kernel's command line>
//! ROOT <size of / in KiB>
//! ADDRESS <CIDR>            one per address of eth0
//! NOISE <ok or damaged>     whether an 8 MB file is what it was when the image was made
//! KERNEL <release>
//! READY <n>                 its n-th boot; a shell follows on the console
//! ```
//! The power button remounts the root read-only and switches off.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::artifacts::artifacts;
use crate::command::Invocation;
use crate::home::TestHome;
use crate::needs::command_path;

/// The programs of the system; all are busybox.
const APPLETS: [&str; 31] = [
    "acpid",
    "cat",
    "cp",
    "cttyhack",
    "cut",
    "dd",
    "df",
    "echo",
    "grep",
    "ip",
    "ls",
    "mkdir",
    "mount",
    "mv",
    "poweroff",
    "reboot",
    "rm",
    "sed",
    "setsid",
    "sh",
    "sha256sum",
    "sleep",
    "stty",
    "sync",
    "tail",
    "touch",
    "tr",
    "true",
    "umount",
    "uname",
    "vi",
];

/// What every VM's initramfs loads, in this order.
const MODULES: [&str; 8] = [
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "evdev",
    "button",
    "pvpanic",
    "pvpanic_pci",
];

/// The bus of Debian's 6.1 kernel; 6.12 has it built in.
const VIRTIO: [&str; 5] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
];

/// The file system of the EFI system partition.
const VFAT: [&str; 4] = ["fat", "vfat", "nls_cp437", "nls_ascii"];

/// From Debian's package systemd-boot-efi.
const BOOT_LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

const INIT: &str = r#"export PATH=/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
mount -o remount,rw /
mount -t tmpfs var /var; mkdir /var/run /var/log
echo "CMDLINE $(cat /proc/cmdline)"
boots=$(cat /boots 2>/dev/null || echo 0); boots=$((boots + 1)); echo $boots > /boots; sync
ip link set lo up; ip link set eth0 up 2>/dev/null
for word in $(cat /proc/cmdline); do
  case $word in
  net_eth0=*) for a in $(echo "${word#*=}" | tr ';' ' '); do ip addr add "$a" dev eth0; done ;;
  esac
done
for word in $(cat /proc/cmdline); do
  case $word in
  net_r4=*|net_r6=*) for r in $(echo "${word#*=}" | tr ';' ' '); do ip route add "${r%,*}" via "${r#*,}" dev eth0; done ;;
  net_dns=*) for d in $(echo "${word#*=}" | tr ';' ' '); do echo "nameserver $d"; done > /etc/resolv.conf ;;
  esac
done
for a in $(ip addr show dev eth0 2>/dev/null | grep ' inet.* global' | sed 's/^ *//' | cut -d' ' -f2); do echo "ADDRESS $a"; done
set -- $(df -k / | tail -n 1); echo "ROOT $2"
cd /root; sha256sum -c noise.sha256 >/dev/null 2>&1 && echo "NOISE ok" || echo "NOISE damaged"
acpid -f -c /etc/acpi >/dev/null 2>&1 &
echo "KERNEL $(uname -r)"
echo "READY $boots"
while true; do setsid cttyhack sh; sleep 1; done"#;

const POWER_BUTTON: &str = "echo POWER BUTTON > /dev/console\nsync\nmount -o remount,ro /\npoweroff -f";

/// The files of an order-1 image: `/kernel`, `/initrd`, `/image.raw`.
#[derive(Debug)]
pub struct VmImage {
    folder: PathBuf,
}

impl VmImage {
    /// An image whose root is a bare `fstype` (`ext4`, `btrfs` or `xfs`) of `size` (as `truncate -s` takes it), in the folder
    /// `name` of `home`.
    ///
    /// # Panics
    /// When a tool or the test kernel is missing, or a file cannot be made.
    pub fn bare(home: &TestHome, name: &str, fstype: &str, size: &str) -> VmImage {
        let folder = home.file(name);
        must(&folder, fs::create_dir(&folder));
        let kernel = home.path().join("kernels/default");
        must(&folder, fs::copy(kernel.join("vmlinux"), folder.join("kernel")));
        let of_fs: &[&str] = match fstype {
            "btrfs" => &[
                "libcrc32c",
                "xor",
                "raid6_pq",
                "blake2b_generic",
                "xxhash_generic",
                "btrfs",
            ],
            "xfs" => &["libcrc32c", "xfs"],
            _ => &[],
        };
        let names = [&MODULES[..], of_fs].concat();
        initramfs(home, &kernel.join("modules"), &names, fstype, &folder.join("initrd"));
        let system = system(home, name);
        let image = folder.join("image.raw");
        let file = must(&image, fs::File::create(&image));
        let tool = |program: &str, args: &[&str]| run(program, args);
        tool("truncate", &["-s", size, &text(&image)]);
        match fstype {
            "ext4" => tool("mke2fs", &["-q", "-t", "ext4", "-d", &text(&system), &text(&image)]),
            "btrfs" => tool("mkfs.btrfs", &["-q", "--rootdir", &text(&system), &text(&image)]),
            "xfs" => {
                let list = home.file(&format!("{name}.proto"));
                let mut content = "/dev/null\n0 0\nd--755 0 0\n".to_owned();
                proto(&system, &mut content);
                content.push_str("$\n");
                must(&list, fs::write(&list, content));
                tool("mkfs.xfs", &["-q", "-p", &text(&list), &text(&image)]);
            }
            other => panic!("no way to fill a {other} without mounting it is known"),
        }
        must(&image, file.sync_all());
        VmImage { folder }
    }

    /// A whole disk as `/image.raw`: a GPT with an EFI system partition, systemd-boot and Debian's 6.12 kernel on it, and an
    /// ext4 root, whose folder `/boot` has Debian's 6.1 kernel and its initramfs, to be copied over the other. `/new-kernel`
    /// does that.
    ///
    /// # Panics
    /// As [`VmImage::bare`], and when Debian's packages cannot be downloaded.
    pub fn disk(home: &TestHome, name: &str) -> VmImage {
        let folder = home.file(name);
        must(&folder, fs::create_dir(&folder));
        let (old, new) = (package(home, "linux-image-6.12"), package(home, "linux-image-6.1.0"));
        let esp = home.file(&format!("{name}-esp"));
        for part in ["EFI/BOOT", "loader/entries"] {
            must(&esp, fs::create_dir_all(esp.join(part)));
        }
        must(&esp, fs::copy(BOOT_LOADER, esp.join("EFI/BOOT/BOOTX64.EFI")));
        must(
            &esp,
            fs::write(esp.join("loader/loader.conf"), "timeout 0\ndefault own.conf\n"),
        );
        let entry = "title own\nlinux /vmlinuz\ninitrd /initrd\noptions root=/dev/vda2 rw console=ttyS0 panic=1 no_timer_check\n";
        must(&esp, fs::write(esp.join("loader/entries/own.conf"), entry));
        let names = [&VIRTIO[..], &MODULES[..], &["pvpanic-pci"], &VFAT[..]].concat();
        must(&esp, fs::copy(vmlinuz(&old), esp.join("vmlinuz")));
        initramfs(home, &old, &names, "ext4", &esp.join("initrd"));
        let system = system(home, name);
        must(&system, fs::create_dir_all(system.join("boot")));
        must(&system, fs::copy(vmlinuz(&new), system.join("boot/vmlinuz")));
        initramfs(home, &new, &names, "ext4", &system.join("boot/initrd"));
        let copy = "mount -t vfat /dev/vda1 /mnt && cp /boot/vmlinuz /boot/initrd /mnt/ && umount /mnt && sync && echo REPLACED";
        script(&system.join("bin/new-kernel"), "/bin/sh", copy);
        let (image, root) = (folder.join("image.raw"), home.file(&format!("{name}-root")));
        run("truncate", &["-s", "160M", &text(&root)]);
        run("mke2fs", &["-q", "-t", "ext4", "-d", &text(&system), &text(&root)]);
        let esp_image = home.file(&format!("{name}-esp.img"));
        run("truncate", &["-s", "100M", &text(&esp_image)]);
        run("mkfs.vfat", &["-F", "32", &text(&esp_image)]);
        run(
            "sh",
            &[
                "-c",
                &format!("mcopy -s -i '{}' '{}'/* ::/", esp_image.display(), esp.display()),
            ],
        );
        run("truncate", &["-s", "262M", &text(&image)]);
        run(
            "sgdisk",
            &[
                "-n",
                "1:2048:+100M",
                "-t",
                "1:ef00",
                "-n",
                "2:0:+160M",
                "-t",
                "2:8300",
                &text(&image),
            ],
        );
        for (part, at_mib) in [(&esp_image, 1), (&root, 101)] {
            let (from, to, seek) = (
                format!("if={}", part.display()),
                format!("of={}", image.display()),
                format!("seek={at_mib}"),
            );
            run(
                "dd",
                &[&from, &to, &seek, "bs=1M", "conv=notrunc,sparse", "status=none"],
            );
        }
        VmImage { folder }
    }

    /// A container with a kernel of its own: the system as a tree, with Debian's 6.1 kernel as `/boot/vmlinuz` and an
    /// initramfs as `/boot/initrd.img` that mounts what `root=` and `rootfstype=` name. It also has what a machine must
    /// not keep from its image: an ssh host key.
    ///
    /// # Panics
    /// As [`VmImage::disk`].
    pub fn own_kernel(home: &TestHome, name: &str) -> VmImage {
        let package = package(home, "linux-image-6.1.0");
        let folder = system(home, name);
        for part in ["boot", "etc/ssh"] {
            must(&folder, fs::create_dir_all(folder.join(part)));
        }
        must(&folder, fs::copy(vmlinuz(&package), folder.join("boot/vmlinuz")));
        must(
            &folder,
            fs::write(folder.join("etc/ssh/ssh_host_ed25519_key"), "everybody's"),
        );
        let names = [&VIRTIO[..], &MODULES[..], &["pvpanic-pci", "fuse", "virtiofs"]].concat();
        initramfs(home, &package, &names, "virtiofs", &folder.join("boot/initrd.img"));
        VmImage { folder }
    }

    /// A whole Debian with systemd, cloud-init, OpenSSH and our agent from its package, beside Debian's kernel (a bzImage) and
    /// its initramfs; made by `scripts/debian-vm`, once for all tests of a checkout.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn debian(home: &TestHome, name: &str) -> VmImage {
        let (agent, packages) = (&artifacts().agent, home.file(&format!("{name}-package")));
        must(&packages, fs::create_dir(&packages));
        run(
            &repository_script("agent-package"),
            &[&text(agent), "0.0.1", &text(&packages)],
        );
        let package = packages.join("zmachine-agent_0.0.1_amd64.deb");
        debian_vm(home, name, "cloud", &[&text(&package)])
    }

    /// A whole Debian without cloud-init and without our agent, whose network is `networkd`'s or `ifupdown`'s alone and which
    /// tells the console what it has, in lines that begin with `NET ` (`NET .` after the last); made by `scripts/debian-vm`.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn debian_plain(home: &TestHome, name: &str, kind: &str) -> VmImage {
        debian_vm(home, name, kind, &[])
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Packs it into `home`'s store; the flist's path.
    pub fn pack(&self, home: &TestHome, name: &str) -> String {
        home.pack(&self.folder, name)
    }
}

fn repository_script(name: &str) -> String {
    text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name))
}

fn debian_vm(home: &TestHome, name: &str, kind: &str, more: &[&str]) -> VmImage {
    let folder = home.file(name);
    let (cache, made) = (text(&home.cache().join("debian-vm")), text(&folder));
    let script = PathBuf::from(repository_script("debian-vm"));
    // It downloads and configures a hundred packages the first time.
    Invocation::new(&script, [&[kind, &cache, &made], more].concat())
        .deadline(Duration::from_secs(1200))
        .finish()
        .expect_success();
    VmImage { folder }
}

/// The tree of the system.
fn system(home: &TestHome, name: &str) -> PathBuf {
    let root = home.file(&format!("{name}-system"));
    for folder in [
        "bin",
        "sbin",
        "dev",
        "etc/acpi/PWRF",
        "mnt",
        "proc",
        "root",
        "sys",
        "tmp",
        "var/log",
        "var/run",
    ] {
        must(&root, fs::create_dir_all(root.join(folder)));
    }
    let busybox = command_path("busybox").expect("busybox: run scripts/setup");
    must(&busybox, fs::copy(&busybox, root.join("bin/busybox")));
    for applet in APPLETS {
        must(&root, symlink("busybox", root.join("bin").join(applet)));
    }
    script(&root.join("sbin/init"), "/bin/sh", INIT);
    script(&root.join("etc/acpi/PWRF/00000080"), "/bin/sh", POWER_BUTTON);
    let noise: Vec<u8> = (0u64..1 << 20)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes())
        .collect();
    must(&root, fs::write(root.join("root/noise"), noise));
    let sum = Invocation::new(&busybox, ["sha256sum", &text(&root.join("root/noise"))]).finish();
    let sum = sum.expect_success().stdout();
    let line = format!("{}  noise\n", sum.split(' ').next().unwrap_or_default());
    must(&root, fs::write(root.join("root/noise.sha256"), line));
    root
}

/// An initramfs that loads the drivers `names` (twice, as their order is not the same in every kernel) from the folder `modules`, mounts what `root=` names and goes on there.
fn initramfs(home: &TestHome, modules: &Path, names: &[&str], fstype: &str, target: &Path) {
    let root = home.file(&format!("initramfs-{}", target.display().to_string().replace('/', "-")));
    for folder in ["bin", "dev", "modules", "new", "proc", "sys"] {
        must(&root, fs::create_dir_all(root.join(folder)));
    }
    let busybox = command_path("busybox").expect("busybox: run scripts/setup");
    must(&busybox, fs::copy(&busybox, root.join("bin/busybox")));
    for name in names {
        let file = format!("{name}.ko");
        let target = root.join("modules").join(&file);
        // What the kernel has built in is no file.
        if let Some(module) = find(modules, &file) {
            must(&root, fs::copy(module, target));
        } else if let Some(packed) = find(modules, &format!("{file}.xz")) {
            run(
                "sh",
                &["-c", &format!("xz -dc '{}' > '{}'", text(&packed), text(&target))],
            );
        }
    }
    let body = format!(
        "/bin/busybox --install -s /bin\nexport PATH=/bin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         for pass in 1 2; do for m in {}; do [ -e /modules/$m.ko ] && insmod /modules/$m.ko 2>/dev/null; done; done\n\
         for word in $(cat /proc/cmdline); do case $word in root=*) root=${{word#root=}} ;; esac; done\n\
         mount -t {fstype} $root /new || {{ echo NO ROOT; sleep 1; poweroff -f; }}\n\
         exec switch_root /new /sbin/init",
        names.join(" ")
    );
    script(&root.join("init"), "/bin/busybox sh", &body);
    let archive = format!(
        "cd '{}' && find . | busybox cpio -o -H newc > '{}'",
        root.display(),
        target.display()
    );
    run("sh", &["-c", &archive]);
}

/// The file called `name` somewhere below `folder`.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if entry.file_name() == name {
                return Some(path);
            }
        }
    }
    None
}

/// The entries below `folder` as a prototype file of mkfs.xfs has them. Names have no white space.
fn proto(folder: &Path, out: &mut String) {
    let mut entries: Vec<_> = must(folder, fs::read_dir(folder))
        .flatten()
        .map(|entry| entry.path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let metadata = must(&path, fs::symlink_metadata(&path));
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_symlink() {
            let to = must(&path, fs::read_link(&path));
            let _ = writeln!(out, "{name} l--777 0 0 {}", to.display());
        } else if metadata.is_dir() {
            let _ = writeln!(out, "{name} d--{mode:o} 0 0");
            proto(&path, out);
            out.push_str("$\n");
        } else {
            let _ = writeln!(out, "{name} ---{mode:o} 0 0 {}", path.display());
        }
    }
}

/// Debian's newest cloud kernel package whose name begins so, unpacked; downloaded once for all tests of a checkout.
fn package(home: &TestHome, prefix: &str) -> PathBuf {
    let cache = home.cache().join(prefix);
    if !cache.join("boot").exists() {
        let staging = home.file(&format!("{prefix}-package"));
        must(&staging, fs::create_dir_all(&staging));
        let script = format!(
            "cd '{}' && p=$(apt-cache --names-only search '^{prefix}[0-9a-z.+-]*-cloud-amd64$' | cut -d' ' -f1 | sort -V | tail -n 1) \
             && apt-get -q download \"$p\" && dpkg-deb -x ./*.deb tree",
            staging.display()
        );
        run("sh", &["-c", &script]);
        must(&cache, fs::create_dir_all(home.cache()));
        must(&cache, copy_tree(&staging.join("tree"), &cache));
    }
    cache
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    run("cp", &["-a", &text(from), &text(to)]);
    Ok(())
}

/// The kernel of an unpacked package.
fn vmlinuz(package: &Path) -> PathBuf {
    let boot = must(package, fs::read_dir(package.join("boot")));
    let mut files = boot.flatten().map(|entry| entry.path());
    files
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
        .unwrap_or_else(|| panic!("no kernel in {}", package.display()))
}

fn script(path: &Path, interpreter: &str, body: &str) {
    must(path, fs::write(path, format!("#!{interpreter}\n{body}\n")));
    must(path, fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
}

fn run(program: &str, args: &[&str]) {
    let path = command_path(program).unwrap_or_else(|| panic!("needs {program}: run scripts/setup"));
    Invocation::new(&path, args).finish().expect_success();
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn must<T>(path: &Path, outcome: std::io::Result<T>) -> T {
    outcome.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
