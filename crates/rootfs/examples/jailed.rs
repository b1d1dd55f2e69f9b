//! Stands in the place of a root disk's server, jail and sandbox around it, and tries one way out, for the tests: `jailed DIR ATTEMPT
//! --jail JSON`. It prints `free` when the attempt succeeded; an attempt that is refused ends it, by an error or a signal.

use std::error::Error;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::process::{Pid, Resource, Rlimit};
use zmachine_sys::jail::Jail;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, attempt, _, jail] = arguments.as_slice() else {
        return Err("four arguments are needed".into());
    };
    zmachine_rootfs::role::lock_server_in(&Jail::from_argument(jail)?)?;
    let dir = Path::new(dir);
    let own = std::process::id() as i32;
    match attempt.as_str() {
        "nothing" => {}
        "read-passwd" => drop(fs::read("/etc/passwd")?),
        "read-shadow" => drop(fs::read("/etc/shadow")?),
        "list-root" => drop(fs::read_dir("/")?),
        "list-home" => drop(fs::read_dir(dir)?),
        "read-cache" => drop(fs::read(dir.join("blocks/00/block"))?),
        "write-cache" => fs::write(dir.join("blocks/00/block"), "x")?,
        "remove-from-cache" => fs::remove_file(dir.join("blocks/00/block"))?,
        "read-image" => drop(fs::read(dir.join("image/root.erofs"))?),
        "create-in-tmp" => fs::write("/tmp/x", "x")?,
        "create-in-root" => fs::write("/x", "x")?,
        "make-directory" => fs::create_dir("/x")?,
        "make-link" => symlink("/etc", "/x")?,
        "connect-control" => drop(UnixStream::connect(dir.join("ctl.sock"))?),
        "connect-host" => drop(TcpStream::connect("127.0.0.1:9")?),
        "connect-internet" => drop(TcpStream::connect("192.0.2.1:80")?),
        "send-datagram" => drop(UdpSocket::bind("127.0.0.1:0")?),
        "listen" => drop(TcpListener::bind("127.0.0.1:0")?),
        "packet-socket" => drop(socket(AddressFamily::PACKET, SocketType::RAW, None)?),
        "vsock" => drop(socket(AddressFamily::VSOCK, SocketType::STREAM, None)?),
        "run-program" => drop(std::process::Command::new("/proc/self/exe").status()?),
        "mount" => rustix::mount::mount("none", "/", "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)?,
        "unmount" => rustix::mount::unmount("/proc", UnmountFlags::DETACH)?,
        "change-root" => rustix::process::chroot("/")?,
        "pivot-root" => rustix::process::pivot_root("/", "/")?,
        "make-device" => {
            let device = rustix::fs::makedev(254, 0);
            rustix::fs::mknodat(CWD, "/disk", FileType::BlockDevice, Mode::RUSR, device)?;
        }
        "open-disk" => drop(File::open("/dev/vda")?),
        "enter-namespace" => drop(
            File::open("/proc/1/ns/mnt")
                .map(|_| ())
                .and_then(|()| fs::read_link("/proc/2/ns/mnt"))?,
        ),
        "see-others" => {
            let others = fs::read_dir("/proc")?
                .flatten()
                .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
            others.into_iter().find(|pid| *pid != own).ok_or("nobody")?;
        }
        "kill-others" => {
            let others = (2..1000).filter_map(Pid::from_raw);
            others
                .into_iter()
                .find(|pid| rustix::process::test_kill_process(*pid).is_ok())
                .ok_or("nobody")?;
        }
        "become-root" => {
            let root = rustix::fs::Uid::ROOT;
            rustix::thread::set_thread_res_uid(root, root, root)?;
        }
        "host-name" => rustix::system::sethostname(b"x")?,
        "raise-limit" => {
            let unlimited = Rlimit {
                current: None,
                maximum: None,
            };
            rustix::process::setrlimit(Resource::Fsize, unlimited)?;
        }
        "memory-bomb" => {
            let mut bomb: Vec<Vec<u8>> = Vec::new();
            for _ in 0..64 {
                let mut piece = Vec::new();
                piece.try_reserve_exact(256 << 20)?;
                bomb.push(piece);
            }
        }
        "memory-file" => File::from(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::empty())?).set_len(1)?,
        "new-session" => drop(rustix::process::setsid()?),
        other => return Err(format!("no attempt is called {other}").into()),
    }
    println!("free");
    Ok(())
}
