//! The `rootfs` role: the process that serves one machine's root disk.
//!
//! # Start
//! Everything is opened, the block broker split off (in a jail), then the sandbox is closed, then `{"event":"ready"}` is written, then the
//! hypervisor is accepted.
//! The listening socket is inherited, so a killed process can be replaced by another with the same arguments, and no
//! path has to be reachable from inside the sandbox.
//!
//! # End
//! SIGTERM or SIGINT: one last line of statistics, exit status 0. There is nothing to save.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use std::{io, thread};

use thiserror::Error;
use zmachine_image::cache::{BlockCache, CacheError};
use zmachine_image::fetch::{FetchOptions, Fetcher, local_directory};
use zmachine_image::lazy::{ChunkSource, LazyBlocks};
use zmachine_image::store::Credentials;
use zmachine_sys::file::FileError;
use zmachine_sys::jail::{self, Jail, JailError, Limits};

use crate::broker::{self, BrokerClient, BrokerServer};
use crate::disk::{self, LazyDisk, OpenDiskError};
use crate::map::ExtentMap;
use crate::nbd;
use crate::prefetch::{self, Prefetch};
use crate::prefetch_list::PrefetchList;
use crate::prepare::{EROFS_NAME, MAP_NAME, PrepareError, RootDescription};
use crate::report::{Counters, Reporter};
use crate::sandbox::{self, Access, SandboxError};
use crate::server;
use crate::server::queue::{Device, SERIAL_LEN};
use crate::write_back::WritingBack;

/// Descriptors the process may have: 16,384 block files, sockets to stores or the block broker, two per queue, and room.
const DESCRIPTORS: u64 = 32768;

/// The largest file it writes in bytes: a block of the cache.
const LARGEST_FILE: u64 = 256 << 20;

/// Threads it may have, those of the machine's hypervisor counted in: they are one user's.
const PROCESSES: u64 = 4096;

/// Private memory it may have in bytes: blocks on their way, a few at a time, and threads' stacks.
const PRIVATE_BYTES: u64 = 1 << 30;

/// What one root disk server needs.
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
    /// The disk is served by the NBD protocol (see [`crate::nbd`]) instead of vhost-user; the queues are the hypervisor's then.
    pub is_nbd: bool,
    /// Store URLs that replace the image's own routes; none: the image's routes.
    pub stores: Vec<String>,
    /// Credentials for stores whose URLs have none.
    pub credentials: Credentials,
    /// Where the layers of an image are that was begun lazily.
    pub chunks: Option<Box<dyn ChunkSource>>,
    /// The longest a guest waits for one block.
    pub block_deadline: Duration,
    /// What is fetched without being asked for.
    pub prefetch: Prefetch,
    /// Whether it is noted what the guest reads first.
    pub record: bool,
    /// Where events go, one JSON object per line (see [`crate::report`]).
    pub events: OwnedFd,
    /// What the process locks itself into; the paths it needs are added. `None`: it has the sandbox alone.
    pub jail: Option<Jail>,
}

/// Why a root disk cannot be served.
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
    #[error("image {} cannot be served", image.display())]
    Image {
        /// The image's directory.
        image: PathBuf,
        /// Why.
        source: PrepareError,
    },
    /// The disk cannot be opened.
    #[error(transparent)]
    Disk(#[from] OpenDiskError),
    /// A file of the image cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// The block cache cannot be opened.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The process cannot be locked in; it serves nothing then.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The process has no jail; it serves nothing then.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// Something of the process itself.
    #[error("cannot {action}")]
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
/// When serving cannot begin or go on.
pub fn serve(mut args: RootfsArgs) -> Result<(), ServeError> {
    let process = |action| move |source: io::Error| ServeError::Process { action, source };
    zmachine_sys::heap::keep_small();
    let stop = zmachine_sys::signal::watch(&[libc::SIGTERM, libc::SIGINT]).map_err(process("watch signals"))?;
    let reporter = Arc::new(
        Reporter::new(args.events.try_clone().map_err(process("copy the events descriptor"))?)
            .map_err(process("make an eventfd"))?,
    );
    raise_descriptor_limit(&reporter);
    let chunks = args.chunks.take();
    let (disk, access) = open(&args, chunks)?;
    let list = PrefetchList::read(&args.image_dir);
    let listener = UnixListener::from(args.listener);
    listener
        .set_nonblocking(false)
        .map_err(process("use the listening socket"))?;
    let (device, access) = match &args.jail {
        None => (disk.with_own_fetcher(), Some(access)),
        Some(base) => {
            let (broker, counter) = broker::pair().map_err(process("make socket pairs"))?;
            // One thread is here, and nothing of the guest's has been read.
            if zmachine_sys::process::fork_single_threaded().map_err(process("start the block broker"))? {
                drop((broker, listener));
                return fetch(base, &access, disk, counter, &reporter);
            }
            drop(counter);
            let device = disk.with_broker(broker);
            lock_server_in(base)?
                .iter()
                .for_each(|warning| reporter.warning(warning));
            (device, None)
        }
    };
    if let Some(access) = access {
        sandbox::enter(&access)?
            .iter()
            .for_each(|warning| reporter.warning(warning));
    }
    zmachine_sys::heap::trim();
    report_in_background(&device, &reporter, stop).map_err(process("start a thread"))?;
    reporter.ready();
    prefetch::start(&device, &reporter, args.prefetch, list.blocks().to_vec()).map_err(process("start a thread"))?;
    let reason = match args.is_nbd {
        true => nbd::serve(&listener, &device, &reporter).map_err(|error| error.to_string()),
        false => server::serve(listener, args.queues, &device, &reporter).map_err(|error| error.to_string()),
    };
    reason.map_err(|reason| ServeError::Server { reason })
}

/// The disk before it is decided who fetches its blocks: all that has a path is open.
struct Disk {
    serial: [u8; SERIAL_LEN],
    metadata: File,
    map: ExtentMap,
    fetcher: Fetcher,
    /// Whether it is noted what the guest reads first.
    record: bool,
}

impl Disk {
    fn with_own_fetcher(self) -> Arc<Device> {
        device(
            self.serial,
            LazyDisk::of(self.metadata, self.map, self.fetcher),
            self.record,
        )
    }

    fn with_broker(self, broker: BrokerClient) -> Arc<Device> {
        device(self.serial, LazyDisk::of(self.metadata, self.map, broker), self.record)
    }
}

fn device(serial: [u8; SERIAL_LEN], disk: LazyDisk, record: bool) -> Arc<Device> {
    Arc::new(Device {
        disk: if record { disk.recording() } else { disk },
        serial,
        counters: Counters::default(),
        ahead: AtomicUsize::new(0),
        writing_back: WritingBack::default(),
    })
}

/// The block broker's life. No guest reaches it; stores do.
fn fetch(
    base: &Jail,
    access: &Access,
    disk: Disk,
    counter: BrokerServer,
    reporter: &Reporter,
) -> Result<(), ServeError> {
    let process = |action| move |source: io::Error| ServeError::Process { action, source };
    let _ = rustix::thread::set_name(c"zm-block broker");
    zmachine_sys::jail::enter(&broker_jail(base, access))?;
    for warning in sandbox::enter(access)? {
        reporter.warning(&warning);
    }
    let Disk { fetcher, .. } = disk;
    zmachine_sys::heap::trim();
    counter.serve(fetcher).map_err(process("start a thread"))
}

/// Opens all that has a path.
fn open(args: &RootfsArgs, chunks: Option<Box<dyn ChunkSource>>) -> Result<(Disk, Access), ServeError> {
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
    let mut access = access(args, &fetcher, &image);
    let fetcher = match chunks {
        None => fetcher,
        Some(chunks) => {
            access.uses_network = true;
            fetcher.with_lazy(LazyBlocks::open(&args.image_dir, &args.blocks_dir, chunks)?)
        }
    };
    let (metadata, map) = disk::open_files(&args.image_dir.join(EROFS_NAME), &args.image_dir.join(MAP_NAME))?;
    let disk = Disk {
        serial,
        metadata,
        map,
        fetcher,
        record: args.record,
    };
    Ok((disk, access))
}

/// What the sandbox leaves open.
fn access(args: &RootfsArgs, fetcher: &Fetcher, image: &RootDescription) -> Access {
    let routes = image.routes();
    let mut urls = args.stores.iter().chain(routes.0.iter().map(|route| &route.url));
    let uses_network = urls.any(|url| local_directory(url).is_none());
    let mut read = fetcher.local_directories();
    read.push(args.image_dir.clone());
    Access {
        write: Some(args.blocks_dir.clone()),
        read,
        uses_network,
    }
}

/// The block broker's jail: what the sandbox leaves open, and the network only when blocks come from there. It stays the user who owns the
/// cache, which it fills, without any of its capabilities.
fn broker_jail(base: &Jail, access: &Access) -> Jail {
    let mut jail = Jail {
        user: None,
        network: access.uses_network,
        own_landlock: true,
        limits: Limits {
            descriptors: Some(DESCRIPTORS),
            processes: None,
            file_bytes: Some(LARGEST_FILE),
            private_bytes: Some(PRIVATE_BYTES),
        },
        ..base.clone()
    };
    if let Some(path) = &access.write {
        jail = jail.see(path, jail::Access::Write);
    }
    for path in &access.read {
        jail = jail.see(path, jail::Access::Read);
    }
    if access.uses_network {
        for path in sandbox::NETWORK_FILES {
            jail = jail.see(path, jail::Access::Read);
        }
    }
    jail
}

/// Puts a server that has a block broker into its jail and its sandbox; what could not be done although it should be.
///
/// # Errors
/// When a wall that this host has cannot be put up.
pub fn lock_server_in(base: &Jail) -> Result<Vec<String>, ServeError> {
    zmachine_sys::jail::enter(&server_jail(base))?;
    let nothing = Access {
        write: None,
        read: Vec::new(),
        uses_network: false,
    };
    Ok(sandbox::enter(&nothing)?)
}

/// The server's jail: all it has is open already.
fn server_jail(base: &Jail) -> Jail {
    Jail {
        own_landlock: true,
        limits: Limits {
            descriptors: Some(DESCRIPTORS),
            processes: Some(PROCESSES),
            file_bytes: Some(0),
            private_bytes: Some(PRIVATE_BYTES),
        },
        ..base.clone()
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
