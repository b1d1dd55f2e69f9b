//! Stands in the place of a jailed process and tries to get out: for the tests of the jail.
//!
//! It takes whatever arguments the real program would get; paths in them tell it where the home is. It prints two attempts a
//! line, `escape NAME: refused (why)` or `escape NAME: ESCAPED`, on standard error, and ends with 1.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

type Attempt = (&'static str, Box<dyn Fn() -> io::Result<()>>);

fn main() {
    // Whoever asks why it did not start asks what it is.
    if std::env::args().any(|word| word == "-version") {
        return println!("QEMU emulator version 7.2.0");
    }
    if std::env::args().any(|word| word == "--version") {
        return println!("cloud-hypervisor v53.0.0");
    }
    if std::env::args().any(|word| word == "-L") {
        return println!("/usr/share/seabios\n/usr/share/qemu");
    }
    // SAFETY: a file that would become too large shall be an error, not the end of this process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let home = home();
    let results: Vec<String> = attempts(&home)
        .iter()
        .map(|(name, attempt)| match attempt() {
            Ok(()) => format!("escape {name}: ESCAPED"),
            Err(error) => format!("escape {name}: refused ({})", error.kind()),
        })
        .collect();
    let mut reported = String::new();
    for two in results.chunks(4) {
        reported.push_str(&two.join(" | "));
        reported.push('\n');
    }
    let _ = io::stderr().write_all(reported.as_bytes());
    std::process::exit(1);
}

/// The home, by a path below its run folder among the arguments.
fn home() -> PathBuf {
    for argument in std::env::args() {
        for word in argument.split(['=', ',']) {
            if let Some((home, _)) = word.split_once("/run/")
                && home.starts_with('/')
            {
                return home.into();
            }
        }
    }
    "/var/lib/zmachine".into()
}

fn attempts(home: &Path) -> Vec<Attempt> {
    let mut all = files(home);
    all.extend(processes());
    all.extend(kernel());
    all.extend(network());
    all.extend(resources());
    all
}

fn boxed(name: &'static str, attempt: impl Fn() -> io::Result<()> + 'static) -> Attempt {
    (name, Box::new(attempt))
}

/// The machine's id: its run folder's name among the arguments.
fn own_id() -> Option<String> {
    let arguments = std::env::args();
    let mut words = arguments.flat_map(|argument| argument.split(['=', ',']).map(str::to_owned).collect::<Vec<_>>());
    words.find_map(|word| Some(word.split_once("/run/")?.1.split('/').next()?.to_owned()))
}

/// Whether one of the entries of a folder lets `attempt` succeed; what is the machine's own does not count.
fn any_in(folder: &Path, attempt: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let own = own_id();
    for entry in fs::read_dir(folder)?.flatten() {
        if own.is_some() && entry.file_name().to_str() == own.as_deref() {
            continue;
        }
        match attempt(&entry.path()) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn read(path: &Path) -> io::Result<()> {
    File::open(path)?.read(&mut [0; 16]).map(drop)
}

fn write(path: &Path) -> io::Result<()> {
    OpenOptions::new().append(true).open(path).map(drop)
}

fn create(folder: &str) -> io::Result<()> {
    let path = Path::new(folder).join(".escape");
    File::create(&path)?;
    fs::remove_file(path)
}

/// The folders of the sockets and files among the arguments: if it may write anywhere, then there.
fn named_folders() -> impl Iterator<Item = PathBuf> {
    let paths = std::env::args().filter_map(|word| word.rsplit('=').next().map(PathBuf::from));
    paths
        .filter_map(|path| path.parent().map(Path::to_owned))
        .filter(|folder| folder.is_absolute())
}

/// The first of [`named_folders`] in which `attempt` succeeds.
fn in_named_folder(attempt: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for folder in named_folders() {
        match attempt(&folder.join(".escape")) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn files(home: &Path) -> Vec<Attempt> {
    let at = |path: &str| home.join(path);
    let (machines, run, blocks, images) = (at("machines"), at("run"), at("blocks"), at("images"));
    let (specs, disks, sockets, agents, kernels) = (
        machines.clone(),
        machines.clone(),
        run.clone(),
        run.clone(),
        at("kernels/default/vmlinux"),
    );
    vec![
        boxed("read-shadow", || read(Path::new("/etc/shadow"))),
        boxed("read-passwd", || read(Path::new("/etc/passwd"))),
        boxed("list-root-home", || fs::read_dir("/root").map(drop)),
        boxed("list-var", || fs::read_dir("/var/lib").map(drop)),
        boxed("list-sys", || fs::read_dir("/sys/class").map(drop)),
        boxed("list-machines", move || any_in(&machines, |_| Ok(()))),
        boxed("read-other-spec", move || {
            any_in(&specs, |dir| read(&dir.join("spec.json")))
        }),
        boxed("write-other-disk", move || {
            any_in(&disks, |dir| write(&dir.join("root.img")))
        }),
        boxed("connect-control", move || {
            any_in(&run, |dir| UnixStream::connect(dir.join("ctl.sock")).map(drop))
        }),
        boxed("connect-other-rootfs", move || {
            any_in(&sockets, |dir| UnixStream::connect(dir.join("rootfs.sock")).map(drop))
        }),
        boxed("connect-other-agent", move || {
            any_in(&agents, |dir| UnixStream::connect(dir.join("agent.sock")).map(drop))
        }),
        boxed("write-cache", move || {
            File::create(blocks.join("00"))?;
            fs::remove_file(blocks.join("00"))
        }),
        boxed("list-images", move || fs::read_dir(&images).map(drop)),
        boxed("write-kernel", move || write(&kernels)),
        boxed("create-in-root", || create("/")),
        boxed("create-in-tmp", || create("/tmp")),
        boxed("create-in-run", || create("/run")),
        boxed("create-in-dev", || create("/dev")),
        boxed("create-in-shm", || create("/dev/shm")),
        boxed("fill-run-folder", || {
            in_named_folder(|path| {
                let written = fs::write(path, vec![1; 1 << 20]);
                let _ = fs::remove_file(path);
                written
            })
        }),
        boxed("run-own-program", || {
            use std::os::unix::fs::PermissionsExt;
            in_named_folder(|path| {
                fs::write(path, "#!/proc/self/exe")?;
                fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
                let ran = std::process::Command::new(path).arg("--version").status().map(drop);
                let _ = fs::remove_file(path);
                ran
            })
        }),
        boxed("write-library", || {
            any_in(Path::new("/usr/lib/x86_64-linux-gnu"), write)
        }),
    ]
}

fn processes() -> Vec<Attempt> {
    let own = std::process::id() as i32;
    vec![
        boxed("see-others", move || {
            let is_other = |name: String| name.parse::<i32>().is_ok_and(|pid| pid != own);
            let mut names = fs::read_dir("/proc")?
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok());
            names.any(is_other).then_some(()).ok_or(io::ErrorKind::NotFound.into())
        }),
        boxed("kill-others", move || {
            // Signal 0 harms nobody.
            let mut pids = (1..32_768).filter(|pid| *pid != own);
            // SAFETY: kill takes two numbers.
            pids.any(|pid| unsafe { libc::kill(pid, 0) } == 0)
                .then_some(())
                .ok_or_else(io::Error::last_os_error)
        }),
        boxed("memory-of-others", move || {
            any_in(Path::new("/proc"), |dir| {
                let number = dir.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
                match number.is_some_and(|pid| pid != own) {
                    true => File::open(dir.join("mem")).map(drop),
                    false => Err(io::ErrorKind::NotFound.into()),
                }
            })
        }),
        boxed("ptrace", || {
            // In a child, whose tracer this process is then: a traced process stops at each signal.
            // SAFETY: this process has one thread; the child makes two system calls.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: neither call takes a pointer; the child ends here.
                unsafe {
                    let refused = libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0) != 0;
                    libc::_exit(i32::from(refused));
                }
            }
            call(child.into())?;
            let mut status = 0;
            // SAFETY: the status is written to a number that lives.
            call(unsafe { libc::waitpid(child, &mut status, 0) }.into())?;
            match status {
                0 => Ok(()),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            }
        }),
        boxed("enter-namespace", || {
            let space = File::open("/proc/1/ns/mnt")?;
            // SAFETY: takes two numbers.
            call(unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&space), libc::CLONE_NEWNS) }.into())
        }),
        boxed("new-user-namespace", || {
            // SAFETY: takes a number; what it makes goes with this process.
            call(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
        }),
        boxed("new-mount-namespace", || {
            // SAFETY: as above.
            call(unsafe { libc::unshare(libc::CLONE_NEWNS) }.into())
        }),
        boxed("become-root", || match rustix::process::getuid().is_root() {
            true => Ok(()),
            // SAFETY: takes a number.
            false => call(unsafe { libc::syscall(libc::SYS_setuid, 0) }),
        }),
        boxed("run-shell", || {
            std::process::Command::new("/bin/sh")
                .arg("-c")
                .arg(":")
                .status()
                .map(drop)
        }),
        boxed("run-itself-free", || {
            std::process::Command::new("/usr/bin/env").status().map(drop)
        }),
    ]
}

fn call(result: i64) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn node(kind: libc::mode_t, major: u32, minor: u32) -> io::Result<()> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    // Wherever something can be made: the tree of a shared directory is among the arguments of its server.
    let folders = std::env::args().filter_map(|word| word.rsplit('=').next().map(PathBuf::from));
    for folder in folders
        .chain(named_folders())
        .chain(["/".into(), "/dev".into()])
        .filter(|folder| folder.is_dir())
    {
        let path = folder.join(".node");
        let name = std::ffi::CString::new(path.to_string_lossy().into_owned()).unwrap_or_default();
        // SAFETY: the name is a C string that outlives the call.
        let made = call(unsafe { libc::mknod(name.as_ptr(), kind | 0o666, libc::makedev(major, minor)) }.into());
        let opened = made.and_then(|()| File::open(&path).map(drop));
        let _ = fs::remove_file(&path);
        match opened {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn kernel() -> Vec<Attempt> {
    let open = |path: &'static str| move || File::options().read(true).open(path).map(drop);
    vec![
        boxed("mount", || {
            let flags = rustix::mount::MountFlags::empty();
            Ok(rustix::mount::mount(
                "none",
                "/usr",
                "tmpfs",
                flags,
                None::<&std::ffi::CStr>,
            )?)
        }),
        boxed("unmount", || {
            Ok(rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH)?)
        }),
        boxed("remount-writable", || {
            let flags = rustix::mount::MountFlags::BIND;
            Ok(rustix::mount::mount_remount("/", flags, "")?)
        }),
        boxed("pivot-root", || Ok(rustix::process::pivot_root("/usr", "/usr")?)),
        boxed("make-block-device", || node(libc::S_IFBLK, 254, 0)),
        boxed("make-memory-device", || node(libc::S_IFCHR, 1, 1)),
        boxed("open-disk", open("/dev/vda")),
        boxed("open-memory", open("/dev/mem")),
        boxed("open-tun", open("/dev/net/tun")),
        boxed("open-fuse", open("/dev/fuse")),
        boxed("open-loop-control", open("/dev/loop-control")),
        boxed("read-kcore", open("/proc/kcore")),
        boxed("write-core-pattern", || {
            write(Path::new("/proc/sys/kernel/core_pattern"))
        }),
        boxed("trigger-sysrq", || write(Path::new("/proc/sysrq-trigger"))),
        boxed("bpf", || called(libc::SYS_bpf, [-1, 0, 0])),
        boxed("perf", || called(libc::SYS_perf_event_open, [0, 0, 0])),
        boxed("load-module", || called(libc::SYS_finit_module, [-1, 0, 0])),
        boxed("keyring", || called(libc::SYS_keyctl, [0, -3, 0])),
        boxed("kernel-log", || called(libc::SYS_syslog, [10, 0, 0])),
        boxed("set-clock", || called(libc::SYS_clock_settime, [-1, 0, 0])),
        boxed("open-by-handle", || called(libc::SYS_open_by_handle_at, [-1, 0, 0])),
    ]
}

/// A call with wrong arguments on purpose, to see whether it is there at all: another error than a refusal means that it would
/// have been carried out.
fn called(number: i64, arguments: [i64; 3]) -> io::Result<()> {
    // SAFETY: an argument that is a pointer is null, which no call follows.
    let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0) };
    let error = io::Error::last_os_error();
    match result < 0 && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) {
        true => Err(error),
        false => Ok(()),
    }
}

fn socket(family: i32, kind: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    call(fd.into())?;
    // SAFETY: it was just made and is nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

fn connect(address: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        // Somebody was there to refuse.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        other => other.map(drop),
    }
}

fn network() -> Vec<Attempt> {
    vec![
        boxed("connect-host", || connect("127.0.0.1:1")),
        boxed("connect-host-6", || connect("[::1]:1")),
        boxed("connect-internet", || connect("192.0.2.1:80")),
        boxed("packet-socket", || socket(libc::AF_PACKET, libc::SOCK_RAW)),
        boxed("vsock", || socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
        boxed("crypto-socket", || socket(libc::AF_ALG, libc::SOCK_SEQPACKET)),
        boxed("abstract-socket", || {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name("zmachine-escape-test")?;
            UnixStream::connect_addr(&address).map(drop)
        }),
    ]
}

fn resources() -> Vec<Attempt> {
    vec![
        boxed("memory-bomb", || {
            // Reserved, not used: the limit counts that already, and the host is spared.
            let mut held: Vec<Vec<u8>> = Vec::new();
            for _ in 0..64 {
                let mut piece = Vec::new();
                piece
                    .try_reserve_exact(256 << 20)
                    .map_err(|_| io::ErrorKind::OutOfMemory)?;
                held.push(piece);
            }
            Ok(())
        }),
        boxed("fill-memory-files", || {
            // SAFETY: the name is a C string.
            let fd = unsafe { libc::memfd_create(c"bomb".as_ptr(), 0) };
            call(fd.into())?;
            // SAFETY: it was just made and is nobody else's.
            File::from(unsafe { OwnedFd::from_raw_fd(fd) }).set_len(1 << 44)
        }),
        boxed("raise-limit", || {
            use rustix::process::{Resource, Rlimit, setrlimit};
            let unlimited = Rlimit {
                current: None,
                maximum: None,
            };
            Ok(setrlimit(Resource::Fsize, unlimited)?)
        }),
        boxed("real-time", || {
            let priority = libc::sched_param { sched_priority: 50 };
            // SAFETY: the kernel reads one structure.
            call(unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &priority) })
        }),
        // The last one: it leaves threads.
        boxed("fork-bomb", || {
            for _ in 0..2_000 {
                let sleep = || std::thread::sleep(Duration::from_secs(5));
                std::thread::Builder::new().stack_size(16 << 10).spawn(sleep)?;
            }
            Ok(())
        }),
    ]
}
