//! A guest that stands still so that it can be copied, and how a copy becomes a machine of its own.
//!
//! # Order
//! Processes stop by the kernel's freezer, which they do not notice: no signal, nobody's child has stopped. In a copy the seed of the
//! random number generator comes first, then clock, names and network, and the processes last. So no process ever sees a number,
//! a time or an address that another copy has as well.

#![allow(unsafe_code)]

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use thiserror::Error;
use tokio::time::{Instant, sleep};
use zmachine_agent_protocol::Thaw;

use crate::clock;
use crate::setup::{self, SetupError};

/// Where the kernel's control groups are mounted.
const GROUPS: &str = "/sys/fs/cgroup";

/// The group of the processes that are in no other.
const OWN: &str = "guest";

/// How long processes may take to stop: one that waits for a disk does not before that answers.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);

/// How long a guest is left alone that stands still: what its kernel puts off for a moment, every copy would have to do first.
pub(crate) const SETTLE: Duration = Duration::from_millis(40);

/// The folder of an image's programs that are run before its processes stop.
pub(crate) const BEFORE: &str = "/etc/zmachine/freeze.d";
/// The same for before they go on, when all else is as it is to be.
pub(crate) const AFTER: &str = "/etc/zmachine/thaw.d";
/// How long all programs of one of them may take.
pub(crate) const HOOKS: Duration = Duration::from_secs(10);

/// How long it may take in all until a guest stands still and its disks are written.
pub(crate) const IN_ALL: Duration = Duration::from_secs(30);

/// The least that a seed has, in bytes.
const SEED: usize = 32;

/// Adds bytes to the kernel's random number generator and counts them as entropy; `_IOW('R', 0x03, int [2])`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// Takes them into use; `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Why a guest cannot stand still, or go on as another machine.
#[derive(Debug, Error)]
pub(crate) enum FreezeError {
    /// A file of a control group.
    #[error("{}: {source}", path.display())]
    Group { path: PathBuf, source: io::Error },
    /// Some process is still running.
    #[error("not all processes of {group} stand still after {} s", PATIENCE.as_secs())]
    Busy { group: String },
    /// There is no seed to speak of.
    #[error("a seed of {length} bytes is too short")]
    Seed { length: usize },
    /// The kernel does not take the seed.
    #[error("seed the random number generator: {source}")]
    Random { source: io::Error },
    /// The kernel does not take the time.
    #[error("set the clock: {source}")]
    Clock { source: rustix::io::Errno },
    /// Names, network or files.
    #[error(transparent)]
    Setup(#[from] SetupError),
}

/// A group that stands still.
#[derive(Debug)]
pub(crate) struct Frozen {
    group: PathBuf,
    /// Its `cgroup.freeze`, open: a copy finds nothing by its name before it runs.
    freeze: File,
}

/// What a copy of this guest will need, see [`setup::Prepared`].
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    random: Option<File>,
    setup: setup::Prepared,
    /// The programs of [`AFTER`].
    pub(crate) hooks: Option<Vec<String>>,
}

impl Prepared {
    /// Finds it, while the guest stands still.
    pub(crate) fn new(has_resolvers: bool) -> Prepared {
        Prepared {
            random: random().ok(),
            setup: setup::Prepared::new(has_resolvers),
            hooks: Some(hooks(AFTER)),
        }
    }
}

/// The groups that stand still.
#[derive(Debug, Default)]
pub(crate) struct Freezer {
    frozen: RefCell<Vec<Frozen>>,
}

impl Freezer {
    /// Stops every process but the agent's own.
    ///
    /// # Errors
    /// When one does not stop; [`Freezer::thaw`] lets the others go on.
    pub(crate) async fn freeze(&self, proc: &OwnedFd) -> Result<(), FreezeError> {
        let own = Path::new(GROUPS).join(OWN);
        match fs::create_dir(&own) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(FreezeError::Group { path: own, source });
            }
            _ => {}
        }
        let deadline = Instant::now() + PATIENCE;
        for group in groups() {
            // One that stands still already was stopped by somebody else, who lets it go on.
            if fs::read_to_string(group.join("cgroup.freeze")).is_ok_and(|text| text.trim_end() == "1") {
                continue;
            }
            self.stop(&group)?;
        }
        // What is in a group that is frozen already stays so; children of a process are born in its group.
        while gather(proc, &own) {
            if Instant::now() > deadline {
                return Err(FreezeError::Busy { group: OWN.to_owned() });
            }
            sleep(PAUSE).await;
        }
        let frozen: Vec<PathBuf> = self.frozen.borrow().iter().map(|frozen| frozen.group.clone()).collect();
        for group in &frozen {
            while !is_still(group) {
                if Instant::now() > deadline {
                    let group = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Err(FreezeError::Busy { group });
                }
                sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    fn stop(&self, group: &Path) -> Result<(), FreezeError> {
        let path = group.join("cgroup.freeze");
        let opened = File::options().write(true).open(&path);
        let stopped = opened.and_then(|freeze| freeze.write_all_at(b"1", 0).map(|()| freeze));
        let freeze = stopped.map_err(|source| FreezeError::Group { path, source })?;
        let group = group.to_owned();
        self.frozen.borrow_mut().push(Frozen { group, freeze });
        Ok(())
    }

    /// Lets them go on.
    ///
    /// What is returned is closed when there is time for that.
    pub(crate) fn thaw(&self) -> Vec<Frozen> {
        let frozen = self.frozen.take();
        for frozen in &frozen {
            let _ = frozen.freeze.write_all_at(b"0", 0);
        }
        frozen
    }
}

/// The programs of a folder, in the order of their names.
pub(crate) fn hooks(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_program = |path: &PathBuf| {
        let there = fs::metadata(path);
        there.is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o111 != 0)
    };
    let mut programs: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_program).collect();
    programs.sort();
    programs
        .iter()
        .filter_map(|path| path.to_str().map(str::to_owned))
        .collect()
}

/// All groups below the root.
fn groups() -> Vec<PathBuf> {
    let entries = fs::read_dir(GROUPS).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.path()).collect()
}

/// Whether all processes of a group have stopped.
fn is_still(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
    events.lines().any(|line| line == "frozen 1")
}

/// Puts processes that are in no group into `own`. Whether there were any that could be moved.
fn gather(proc: &OwnedFd, own: &Path) -> bool {
    let members = fs::read_to_string(Path::new(GROUPS).join("cgroup.procs")).unwrap_or_default();
    let mut moved = false;
    for pid in members.lines().filter(|pid| *pid != "1" && is_program(proc, pid)) {
        moved |= fs::write(own.join("cgroup.procs"), pid).is_ok();
    }
    moved
}

/// Whether it is a process with a program, and not a thread of the kernel or one that has ended.
fn is_program(proc: &OwnedFd, pid: &str) -> bool {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(proc, format!("{pid}/stat"), flags, Mode::empty());
    let text = opened
        .map(File::from)
        .and_then(|file| io::read_to_string(io::Read::take(file, 4096)).map_err(|_| rustix::io::Errno::IO));
    text.is_ok_and(|text| is_program_by(&text))
}

/// The same, from the text of `/proc/PID/stat`.
fn is_program_by(stat: &str) -> bool {
    /// The kernel's `PF_KTHREAD`.
    const KERNEL_THREAD: u64 = 0x0020_0000;
    // The name may have anything in it, so what counts is behind its last bracket: state, parent, group, session, terminal,
    // its group, flags.
    let Some((_, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    let mut fields = rest.split(' ');
    let state = fields.next().unwrap_or_default();
    let flags: Option<u64> = fields.nth(5).and_then(|text| text.parse().ok());
    !matches!(state, "Z" | "X") && flags.is_some_and(|flags| flags & KERNEL_THREAD == 0)
}

/// Makes a guest what it is to be, before its processes go on. The time that it is told was right when the request `arrived`.
///
/// # Errors
/// The first thing that cannot be done. The guest is not to run then.
pub(crate) fn renew(thaw: &Thaw, arrived: Instant, prepared: &Prepared) -> Result<(), FreezeError> {
    let now = || Duration::from_nanos(thaw.unix_nanos) + arrived.elapsed();
    if let Some(identity) = &thaw.identity {
        if thaw.seed.len() < SEED {
            return Err(FreezeError::Seed {
                length: thaw.seed.len(),
            });
        }
        reseed(&thaw.seed, prepared.random.as_ref()).map_err(|source| FreezeError::Random { source })?;
        let set = match thaw.monotonic_began {
            Some(began) => clock::set_by_monotonic(began),
            None => clock::set_exactly(now()),
        };
        set.map_err(|source| FreezeError::Clock { source })?;
        return Ok(setup::renew(identity, &prepared.setup)?);
    }
    if !thaw.seed.is_empty() {
        reseed(&thaw.seed, prepared.random.as_ref()).map_err(|source| FreezeError::Random { source })?;
    }
    clock::set(now()).map_err(|source| FreezeError::Clock { source })
}

/// What [`renew`] will do, with what there is. The seed that a copy gets comes after it.
pub(crate) fn rehearse(prepared: &Prepared) {
    let _ = reseed(&[0; SEED], prepared.random.as_ref());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = clock::set_exactly(now);
    setup::rehearse(&prepared.setup);
}

/// Mixes `seed` into the kernel's generator, and takes it into use.
fn reseed(seed: &[u8], device: Option<&File>) -> io::Result<()> {
    let opened = match device {
        Some(_) => None,
        None => Some(random()?),
    };
    let Some(device) = device.or(opened.as_ref()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    // struct rand_pool_info { int entropy_count; int buf_size; __u32 buf[]; }
    let length = seed.len() as i32;
    let mut pool = (length * 8).to_ne_bytes().to_vec();
    pool.extend(length.to_ne_bytes());
    pool.extend(seed);
    // SAFETY: the kernel reads as many bytes behind the two numbers as the second one says, which are there; the second call
    // takes no argument.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, pool.as_ptr()) == 0
            && libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) == 0
    };
    done.then_some(()).ok_or_else(io::Error::last_os_error)
}

/// The device through which it takes it.
fn random() -> io::Result<File> {
    File::options().write(true).open("/dev/random")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_the_kernel_and_the_dead_are_no_programs() {
        assert!(is_program_by("12 (a) b) S 1 12 12 0 -1 4194560 100 0"));
        assert!(!is_program_by("2 (kthreadd) S 0 0 0 0 -1 2129984 0 0"));
        assert!(!is_program_by("13 (sh) Z 1 12 12 0 -1 4227084 0 0"));
        assert!(!is_program_by("13 (sh"));
    }

    #[test]
    fn a_copy_without_a_seed_does_not_go_on() {
        let identity = zmachine_agent_protocol::Identity {
            hostname: "a".into(),
            ..zmachine_agent_protocol::Identity::default()
        };
        let thaw = Thaw {
            seed: vec![1; 31],
            unix_nanos: 0,
            monotonic_began: None,
            identity: Some(Box::new(identity)),
        };
        assert!(matches!(
            renew(&thaw, Instant::now(), &Prepared::default()),
            Err(FreezeError::Seed { length: 31 })
        ));
    }
}
