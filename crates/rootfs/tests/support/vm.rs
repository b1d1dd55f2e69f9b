//! A guest with a shell on its serial port, and the server under test beside it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use zmachine_testkit::{Need, lacking, skip, test_kernel};

/// TCG on a busy machine is slow.
const TIMEOUT: Duration = Duration::from_secs(180);

/// Modules that mounting the disk may need, in order of their dependencies; built-in ones have no file.
const MODULES: [&str; 6] = [
    "virtio_blk",
    "libcrc32c",
    "crc32c_generic",
    "netfs",
    "lz4_decompress",
    "erofs",
];

/// A kernel and its modules from the folder that `ZMACHINE_TEST_KERNEL` names (an installed kernel: `vmlinux` and
/// `modules/`); `None`, with the reason printed, without one.
pub struct Kernel {
    image: PathBuf,
    modules: Vec<PathBuf>,
}

impl Kernel {
    pub fn find() -> Option<Kernel> {
        if let Some(lack) = lacking(&[Need::Guest]) {
            skip(lack);
            return None;
        }
        let folder = test_kernel()?;
        let image = folder.join("vmlinux");
        assert!(image.is_file(), "{} is not there", image.display());
        let file = |module: &&str| folder.join("modules").join(format!("{module}.ko"));
        Some(Kernel {
            image,
            modules: MODULES.iter().map(file).filter(|path| path.is_file()).collect(),
        })
    }

    /// An initramfs of busybox, the modules, and a shell loop on the serial port.
    fn initramfs(&self, path: &Path) {
        let mut cpio = Cpio::default();
        for dir in ["bin", "dev", "proc", "sys", "mnt", "modules"] {
            cpio.add(dir, 0o040_755, &[]);
        }
        cpio.add("bin/busybox", 0o100_755, &fs::read("/bin/busybox").unwrap());
        let mut init = String::from("#!/bin/busybox sh\n/bin/busybox --install /bin\nexport PATH=/bin\n");
        init += "mount -t devtmpfs d /dev; mount -t proc p /proc; mount -t sysfs s /sys\n";
        for module in &self.modules {
            let target = format!("modules/{}", name(module));
            cpio.add(&target, 0o100_644, &fs::read(module).unwrap());
            init += &format!("insmod /{target}\n");
        }
        init +=
            "mount -t erofs -o ro /dev/vda /mnt\nstty -F /dev/ttyS0 raw -echo\nexec < /dev/ttyS0 > /dev/ttyS0 2>&1\n";
        init += "echo '<ready>'\nwhile read -r line; do eval \"$line\"; echo \"<done $?>\"; done\n";
        cpio.add("init", 0o100_755, init.as_bytes());
        fs::write(path, cpio.finish()).unwrap();
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// A `newc` archive.
#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let fields = [
            1,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.0.extend_from_slice(b"070701");
        fields
            .iter()
            .for_each(|field| self.0.extend_from_slice(format!("{field:08x}").as_bytes()));
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.0
    }
}

/// A child that is killed at the end.
pub struct Process(pub Child);

impl Process {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The server, restartable on its listening socket.
pub struct Server {
    listener: UnixListener,
    pub socket: PathBuf,
    events: PathBuf,
    image: PathBuf,
    blocks: PathBuf,
    queues: u16,
    prefetch: &'static str,
    pub process: Process,
}

impl Server {
    pub fn start(dir: &Path, image: &Path, queues: u16) -> Server {
        Server::prefetching(dir, image, queues, "none")
    }

    /// One that fetches `prefetch` ahead: none, hints or all.
    pub fn prefetching(dir: &Path, image: &Path, queues: u16, prefetch: &'static str) -> Server {
        let socket = dir.join("rootfs.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        zmachine_sys::fd::set_inheritable(listener.as_fd(), true).unwrap();
        let (events, blocks) = (dir.join("events"), dir.join("blocks"));
        let process = spawn(image, &blocks, &listener, queues, prefetch, &events);
        Server {
            listener,
            socket,
            events,
            image: image.to_owned(),
            blocks,
            queues,
            prefetch,
            process,
        }
    }

    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        let (queues, prefetch) = (self.queues, self.prefetch);
        self.process = spawn(
            &self.image,
            &self.blocks,
            &self.listener,
            queues,
            prefetch,
            &self.events,
        );
    }

    /// Everything it has reported.
    pub fn events(&self) -> String {
        fs::read_to_string(&self.events).unwrap()
    }

    /// Lines of `/proc/<pid>/status` about resident memory.
    pub fn memory(&self) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.0.id())).unwrap();
        let lines: Vec<_> = status
            .lines()
            .filter(|l| l.starts_with("VmRSS") || l.starts_with("Rss"))
            .collect();
        lines.join(", ")
    }
}

fn spawn(image: &Path, blocks: &Path, listener: &UnixListener, queues: u16, prefetch: &str, events: &Path) -> Process {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/serve");
    let events = File::options().append(true).create(true).open(events).unwrap();
    let child = Command::new(program)
        .arg(image)
        .arg(blocks)
        .arg(listener.as_raw_fd().to_string())
        .args(["root-disk", &queues.to_string(), "500", prefetch])
        .stderr(events)
        .spawn();
    Process(child.unwrap())
}

/// A running guest.
pub struct Guest {
    console: UnixStream,
    output: String,
    _qemu: Process,
}

impl Guest {
    pub fn boot(kernel: &Kernel, dir: &Path, server: &Server, cpus: u16) -> Guest {
        let initramfs = dir.join("initramfs");
        kernel.initramfs(&initramfs);
        let console = dir.join("console.sock");
        let listener = UnixListener::bind(&console).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args([
                "-M",
                "q35,memory-backend=mem0",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "256",
                "-smp",
                &cpus.to_string(),
            ])
            .args(["-object", "memory-backend-memfd,id=mem0,size=256M,share=on"])
            .args([
                "-chardev",
                &format!("socket,id=root,path={},reconnect=1", server.socket.display()),
            ])
            .args(["-device", &format!("vhost-user-blk-pci,chardev=root,num-queues={cpus}")])
            .args([
                "-chardev",
                &format!("socket,id=con,path={}", console.display()),
                "-serial",
                "chardev:con",
            ])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&initramfs)
            .args([
                "-append",
                "console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check cryptomgr.notests",
            ])
            .spawn();
        let qemu = Process(qemu.unwrap());
        let (console, _) = listener.accept().unwrap();
        console.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut guest = Guest {
            console,
            output: String::new(),
            _qemu: qemu,
        };
        guest.wait_for("<ready>\n");
        guest
    }

    pub fn send(&mut self, command: &str) {
        self.output.clear();
        self.console.write_all(format!("{command}\n").as_bytes()).unwrap();
    }

    /// Everything until the command that was sent has ended.
    pub fn answer(&mut self) -> String {
        self.wait_for("<done ");
        self.wait_for(">\n");
        self.output.clone()
    }

    pub fn run(&mut self, command: &str) -> String {
        self.send(command);
        self.answer()
    }

    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + TIMEOUT;
        while !self.output.contains(text) {
            assert!(Instant::now() < end, "the guest never said {text:?}: {}", self.output);
            let mut bytes = [0; 4096];
            if let Ok(len) = self.console.read(&mut bytes) {
                self.output += &String::from_utf8_lossy(&bytes[..len]).replace('\r', "");
            }
        }
    }
}
