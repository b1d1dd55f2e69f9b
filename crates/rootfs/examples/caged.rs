//! Enters the sandbox and then tries what is forbidden, for the tests: `caged DIR ATTEMPT`. Prints `survived` at the end.
//! An attempt that is a URL fetches the block `over the network` from a store there.

use std::fs;
use std::path::{Path, PathBuf};

use zmachine_flist::{BlockRef, Route, RouteTable};
use zmachine_image::{BlockCache, FetchOptions, Fetcher};
use zmachine_rootfs::sandbox::{Access, enter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, attempt] = arguments.as_slice() else {
        return Err("two arguments are needed".into());
    };
    let dir = PathBuf::from(dir);
    let access = Access {
        write: Some(dir.join("cache")),
        read: vec![dir.join("image")],
        uses_network: attempt.starts_with("http"),
    };
    for warning in enter(&access)? {
        println!("warning: {warning}");
    }
    match attempt.as_str() {
        "nothing" => {}
        "exec" => {
            std::process::Command::new("/bin/true").status()?;
        }
        "mount" => rustix::mount::mount(c"none", &dir, c"tmpfs", rustix::mount::MountFlags::empty(), None)?,
        "chroot" => rustix::process::chroot(&dir)?,
        "packet-socket" => {
            use rustix::net::{AddressFamily, SocketType, socket};
            socket(AddressFamily::PACKET, SocketType::RAW, None)?;
        }
        "read-outside" => drop(fs::read(dir.join("secret"))?),
        "write-image" => fs::write(dir.join("image/new"), "x")?,
        "touch-by-name" => {
            use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let times = Timestamps {
                last_access: zero,
                last_modification: zero,
            };
            utimensat(CWD, dir.join("image/file"), &times, AtFlags::empty())?;
        }
        "listen" => drop(std::net::TcpListener::bind("127.0.0.1:0")?),
        "work" => {
            fs::read(dir.join("image/file"))?;
            fs::create_dir(dir.join("cache/ab"))?;
            let new = zmachine_sys::file::NewFile::create(&dir.join("cache/ab"), 0o600)?;
            new.publish_new(&dir.join("cache/ab/block"), true)?;
            let times = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
            fs::File::open(dir.join("cache/ab/block"))?.set_times(times)?;
            std::thread::spawn(|| println!("a thread"))
                .join()
                .map_err(|_| "thread")?;
        }
        url if url.starts_with("http") => fetch(url, &dir)?,
        other => return Err(format!("unknown attempt {other}").into()),
    }
    println!("survived");
    Ok(())
}

fn fetch(url: &str, dir: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let (block, _) = BlockRef::seal(b"over the network");
    let routes = RouteTable(vec![Route::all(url)]);
    let fetcher = Fetcher::new(BlockCache::open(&dir.join("cache"))?, routes, FetchOptions::default());
    let plain = fetcher.fetch(&block)?.into_bytes(block.len)?;
    println!("{} of {:?}", String::from_utf8(plain)?, fetcher.stats());
    Ok(())
}
