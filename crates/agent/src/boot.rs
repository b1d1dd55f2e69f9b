//! The first steps of PID 1, up to an open port: they need nothing from the host.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use thiserror::Error;
use zmachine_agent_protocol::Phase;

use crate::modules::{self, ModuleError};
use crate::port::{self, PortError};
use crate::vsock;

/// Open files of the agent itself (pipes and streams of many processes at once), and the hard limit of all processes.
/// The hard limit is that of systemd (`DefaultLimitNOFILE`).
const OPEN_FILES: (u64, u64) = (65_536, 524_288);

/// Why the guest did not come up.
#[derive(Debug, Error)]
pub(crate) enum BootError {
    /// An early mount failed.
    #[error("mount {target}: {source}")]
    Mount {
        target: &'static str,
        source: rustix::io::Errno,
    },
    /// A module is not loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// No channel to the host.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// What the boot leaves to the server.
#[derive(Debug)]
pub(crate) struct Booted {
    /// The port, non-blocking, with a host at its other side.
    pub(crate) port: OwnedFd,
    /// The agent's own `/proc`: whatever the guest mounts over its own, this one stays.
    pub(crate) proc: OwnedFd,
    /// The steps so far.
    pub(crate) phases: Phases,
}

/// Measures steps that follow each other.
#[derive(Debug)]
pub(crate) struct Phases {
    last: Instant,
    done: Vec<Phase>,
}

impl Phases {
    /// The first step begins at `start`.
    pub(crate) fn new(start: Instant) -> Self {
        Phases {
            last: start,
            done: Vec::new(),
        }
    }

    /// The step `name` ends here and the next one begins.
    pub(crate) fn end(&mut self, name: &str) {
        let now = Instant::now();
        self.add(name, now.duration_since(self.last));
        self.last = now;
    }

    fn add(&mut self, name: &str, took: Duration) {
        self.done.push(Phase {
            name: name.into(),
            micros: took.as_micros() as u64,
        });
    }

    /// All steps in order.
    pub(crate) fn into_vec(self) -> Vec<Phase> {
        self.done
    }
}

/// Early mounts, limits, modules, port.
///
/// # Errors
/// [`BootError`]: the machine cannot be used.
pub(crate) fn boot(started: Instant) -> Result<Booted, BootError> {
    let mut phases = Phases::new(started);
    phases.add("kernel", since_kernel_start());
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    early_mount("proc", "/proc", plain)?;
    early_mount("sysfs", "/sys", plain)?;
    early_mount("devtmpfs", "/dev", MountFlags::NOSUID)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::openat(CWD, "/proc", flags, Mode::empty()).map_err(|source| BootError::Mount {
        target: "/proc",
        source,
    })?;
    protect_init();
    phases.end("early");
    // What the host has to say comes in while the modules load. Where the port itself needs one, it is opened after.
    let early_port = port::open_if_there()?;
    phases.end("port");
    modules::load_first()?;
    phases.end("modules");
    let port = match early_port {
        None if Path::new(vsock::ORDER).exists() => {
            modules::load_all(Path::new(vsock::ORDER))?;
            vsock::call_patiently().map_err(PortError::Call)?
        }
        early_port => {
            let port = early_port.map_or_else(port::open, Ok)?;
            port::wait_for_host(&port)?;
            port
        }
    };
    phases.end("connect");
    Ok(Booted { port, proc, phases })
}

/// How long the kernel's clock has been running: the kernel's own start, without the firmware and its very first steps.
fn since_kernel_start() -> Duration {
    Duration::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Boottime)).unwrap_or_default()
}

fn early_mount(fstype: &'static str, target: &'static str, flags: MountFlags) -> Result<(), BootError> {
    // A missing mount point shows in the mount's own error.
    let _ = fs::create_dir(target);
    match mount(fstype, target, fstype, flags, None) {
        // CONFIG_DEVTMPFS_MOUNT may have been here first.
        Ok(()) | Err(rustix::io::Errno::BUSY) => Ok(()),
        Err(source) => Err(BootError::Mount { target, source }),
    }
}

/// The kernel drops every signal to PID 1 that has no handler, and takes others when memory is short; ctrl-alt-del remains.
fn protect_init() {
    let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
    let (soft, hard) = OPEN_FILES;
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(soft),
            maximum: Some(hard),
        },
    );
    rustix::process::umask(Mode::from_raw_mode(0o022));
}
