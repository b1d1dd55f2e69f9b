//! The `rootfs` role: the process that serves one machine's root disk.
//!
//! # Start
//! Everything is opened, then the sandbox is closed, then `{"event":"ready"}` is written, then the hypervisor is accepted.
//! The listening socket is inherited, so a killed process can be replaced by another with the same arguments, and no
//! path has to be reachable from inside the sandbox.
//!
//! # End
//! SIGTERM or SIGINT: one last line of statistics, exit status 0. There is nothing to save.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use std::{io, thread};

use thiserror::Error;
use zmachine_image::cache::{BlockCache, CacheError};
use zmachine_image::fetch::{FetchOptions, Fetcher};
use zmachine_image::store::Credentials;

use crate::disk::{LazyDisk, OpenDiskError};
use crate::prefetch::{self, Prefetch};
use crate::prefetch_list::PrefetchList;
use crate::prepare::{EROFS_NAME, MAP_NAME, PrepareError, RootDescription};
use crate::report::{Counters, Reporter};
use crate::sandbox::{self, Access, SandboxError};
use crate::server;
use crate::server::queue::{Device, SERIAL_LEN};

/// Descriptors the process may have: 256 block files, sockets to stores, two per queue, and room.
const DESCRIPTORS: u64 = 4096;

/// What one root disk server needs.
#[derive(Debug)]
pub struct RootfsArgs {
    /// The prepared image's directory.
    pub image_dir: PathBuf,
    /// The block cache (`<home>/blocks`).
    pub blocks_dir: PathBuf,
    /// A listening unix stream socket.
    pub listener: OwnedFd,
    /// What the guest reads as the disk's serial: at most 20 bytes.
    pub serial: String,
    /// Number of queues, 1 to 64; the hypervisor may use fewer.
    pub queues: u16,
    /// Store URLs that replace the image's own routes; none: the image's routes.
    pub stores: Vec<String>,
    /// Credentials for stores whose URLs have none.
    pub credentials: Credentials,
    /// The longest a guest waits for one block.
    pub block_deadline: Duration,
    /// What is fetched without being asked for.
    pub prefetch: Prefetch,
    /// Whether it is noted what the guest reads first.
    pub record: bool,
    /// Where events go, one JSON object per line (see [`crate::report`]).
    pub events: OwnedFd,
}

/// Why a root disk can not be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The serial does not fit.
    #[error("serial {serial:?} is longer than {SERIAL_LEN} bytes")]
    Serial {
        /// The serial.
        serial: String,
    },
    /// No or too many queues.
    #[error("{queues} queues were asked for; 1 to 64 are possible")]
    Queues {
        /// The number.
        queues: u16,
    },
    /// The image is not prepared, or damaged.
    #[error("image {} can not be served", image.display())]
    Image {
        /// The image's directory.
        image: PathBuf,
        /// Why.
        source: PrepareError,
    },
    /// The disk can not be opened.
    #[error(transparent)]
    Disk(#[from] OpenDiskError),
    /// The block cache can not be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The process can not be locked in; it serves nothing then.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Something of the process itself.
    #[error("can not {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The listening socket or a thread failed.
    #[error("the root disk server failed: {reason}")]
    Server {
        /// Why.
        reason: String,
    },
}

/// Serves until SIGTERM or SIGINT, and then ends the process. Call it in the main thread, before any other is started:
/// it locks in the calling thread and those that come after.
///
/// # Errors
/// When serving can not begin or go on.
pub fn serve(args: RootfsArgs) -> Result<(), ServeError> {
    let process = |action| move |source: io::Error| ServeError::Process { action, source };
    zmachine_sys::heap::keep_small();
    let stop = zmachine_sys::signal::watch(&[libc::SIGTERM, libc::SIGINT]).map_err(process("watch signals"))?;
    let reporter = Arc::new(
        Reporter::new(args.events.try_clone().map_err(process("copy the events descriptor"))?)
            .map_err(process("make an eventfd"))?,
    );
    raise_descriptor_limit(&reporter);
    let (device, access) = open(&args)?;
    let list = PrefetchList::read(&args.image_dir);
    let listener = UnixListener::from(args.listener);
    listener
        .set_nonblocking(false)
        .map_err(process("use the listening socket"))?;
    for warning in sandbox::enter(&access)? {
        reporter.warning(&warning);
    }
    zmachine_sys::heap::trim();
    report_in_background(&device, &reporter, stop).map_err(process("start a thread"))?;
    reporter.ready();
    prefetch::start(&device, &reporter, args.prefetch, list.blocks().to_vec()).map_err(process("start a thread"))?;
    server::serve(listener, args.queues, &device, &reporter).map_err(|error| ServeError::Server {
        reason: error.to_string(),
    })
}

/// Opens all that has a path.
fn open(args: &RootfsArgs) -> Result<(Arc<Device>, Access), ServeError> {
    let serial = padded(&args.serial).ok_or_else(|| ServeError::Serial {
        serial: args.serial.clone(),
    })?;
    if !(1..=64).contains(&args.queues) {
        return Err(ServeError::Queues { queues: args.queues });
    }
    let image = RootDescription::read(&args.image_dir).map_err(|source| ServeError::Image {
        image: args.image_dir.clone(),
        source,
    })?;
    let options = FetchOptions {
        stores: args.stores.clone(),
        deadline: args.block_deadline,
        credentials: args.credentials.clone(),
        ..FetchOptions::default()
    };
    let fetcher = Fetcher::new(BlockCache::open(&args.blocks_dir)?, image.routes(), options);
    let access = access(args, &fetcher, &image);
    let (erofs, map) = (args.image_dir.join(EROFS_NAME), args.image_dir.join(MAP_NAME));
    let disk = LazyDisk::open(&erofs, &map, fetcher)?;
    let device = Device {
        disk: if args.record { disk.recording() } else { disk },
        serial,
        counters: Counters::default(),
        ahead: AtomicUsize::new(0),
    };
    Ok((Arc::new(device), access))
}

/// What the sandbox leaves open.
fn access(args: &RootfsArgs, fetcher: &Fetcher, image: &RootDescription) -> Access {
    let routes = image.routes();
    let mut urls = args.stores.iter().chain(routes.0.iter().map(|route| &route.url));
    let uses_network = urls.any(|url| !url.starts_with("dir:"));
    let mut read = fetcher.local_directories();
    read.push(args.image_dir.clone());
    Access {
        write: args.blocks_dir.clone(),
        read,
        uses_network,
    }
}

fn padded(serial: &str) -> Option<[u8; SERIAL_LEN]> {
    let mut padded = [0; SERIAL_LEN];
    padded.get_mut(..serial.len())?.copy_from_slice(serial.as_bytes());
    Some(padded)
}

fn raise_descriptor_limit(reporter: &Reporter) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |hard| hard.min(DESCRIPTORS));
    if limit.current.is_some_and(|soft| soft < wanted) {
        limit.current = Some(wanted);
        if setrlimit(Resource::Nofile, limit).is_err() {
            reporter.warning("the limit of open files could not be raised");
        }
    }
}

/// A thread that writes statistics, and ends the process on a signal.
fn report_in_background(device: &Arc<Device>, reporter: &Arc<Reporter>, stop: OwnedFd) -> io::Result<()> {
    let (device, reporter) = (Arc::clone(device), Arc::clone(reporter));
    let thread = thread::Builder::new().name("report".into()).stack_size(128 * 1024);
    thread.spawn(move || {
        let stats = || device.counters.snapshot(device.disk.fetch_stats());
        reporter.run(stop, stats, || device.disk.take_first_reads());
        std::process::exit(0);
    })?;
    Ok(())
}
