//! What every hypervisor can do, and what can happen to a machine.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use zmachine_sys::jail::Jail;

use crate::qemu::{FIRMWARE_CODE, FIRMWARE_VARIABLES};
use crate::{Boot, Disk, LaterDisk, LaterFile, Nic, VmSpec, cloud_hypervisor};

/// What the hypervisor itself says on its standard error, line by line. Lines nobody takes in time are dropped.
pub type LogLines = mpsc::Receiver<String>;

/// A hypervisor of one kind.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Its name, as in plans and messages: `qemu`.
    fn name(&self) -> &'static str;

    /// Whether it can run `vm` at all. Pure: nothing is started or opened.
    ///
    /// # Errors
    /// The first thing it cannot do, with the reason.
    fn supports(&self, vm: &VmSpec) -> Result<(), Unsupported>;

    /// Starts `vm`. When this returns, the guest is running. `run` is a folder for what the hypervisor needs there;
    /// it is its working directory.
    ///
    /// # Errors
    /// [`LaunchError`]; no process is left then.
    async fn launch(&self, vm: &VmSpec, resources: Resources, run: &RunDir) -> Result<Box<dyn Vm>, LaunchError>;
}

/// A running virtual machine. Dropping it kills it.
#[async_trait]
pub trait Vm: Send {
    /// The next thing that happens; after [`VmEvent::Exited`] the process is gone and the same is returned forever.
    /// Safe to cancel: nothing is lost when the future is dropped.
    async fn next_event(&mut self) -> VmEvent;

    /// Presses the power button. The guest may take its time, or ignore it.
    async fn power_button(&mut self) -> Result<(), ControlError>;

    /// Stops the virtual CPUs; done when this returns. [`VmEvent::Paused`] follows.
    async fn pause(&mut self) -> Result<(), ControlError>;

    /// Lets the virtual CPUs run on. [`VmEvent::Resumed`] follows.
    async fn resume(&mut self) -> Result<(), ControlError>;

    /// Stops the virtual CPUs and writes the state of all devices to `state`, a regular file. The memory is in the file that
    /// [`Vm::memory`] gives, and nothing changes in it or on a disk until [`Vm::go_on`]. No event follows.
    ///
    /// Answer: when the CPUs stopped.
    ///
    /// # Errors
    /// When the hypervisor cannot; the machine stands still or runs then, and [`Vm::go_on`] lets it run.
    async fn save(&mut self, state: OwnedFd) -> Result<SystemTime, ControlError> {
        drop(state);
        Err(ControlError::Refused {
            command: "save".to_owned(),
            reason: "this hypervisor cannot save a machine that runs".to_owned(),
        })
    }

    /// Lets the virtual CPUs run on after [`Vm::save`]. No event follows.
    ///
    /// # Errors
    /// When the hypervisor cannot.
    async fn go_on(&mut self) -> Result<(), ControlError> {
        Ok(())
    }

    /// When the CPUs of a guest that was saved went on.
    fn went_on_at(&self) -> Option<SystemTime> {
        None
    }

    /// The file that is the guest's memory, of a machine that can be saved.
    fn memory(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Tells the guest that the file behind the disk `id` has become `bytes` long.
    async fn resize_disk(&mut self, id: &str, bytes: u64) -> Result<(), ControlError>;

    /// Plugs a disk in that [`VmSpec::later_disks`] has a place for, and whose process listens. It stays until the machine's end.
    ///
    /// # Errors
    /// When the hypervisor cannot, or nobody serves it.
    async fn add_disk(&mut self, disk: &LaterDisk) -> Result<(), ControlError> {
        Err(ControlError::Refused {
            command: format!("add disk {}", disk.id),
            reason: "this hypervisor cannot while the machine runs".to_owned(),
        })
    }

    /// Plugs a file or a block device in that [`VmSpec::later_files`] has a place for. It stays until the machine's end.
    ///
    /// # Errors
    /// When the hypervisor cannot.
    async fn add_file(&mut self, file: &LaterFile, opened: OwnedFd) -> Result<(), ControlError> {
        drop(opened);
        Err(ControlError::Refused {
            command: format!("add disk {}", file.id()),
            reason: "this hypervisor cannot while the machine runs".to_owned(),
        })
    }

    /// Plugs one more interface in, whose tap is given away. The guest finds it by its address.
    ///
    /// # Errors
    /// When the hypervisor cannot, or has no slot free.
    async fn add_nic(&mut self, nic: &Nic, tap: OwnedFd) -> Result<(), ControlError> {
        drop(tap);
        Err(ControlError::Refused {
            command: format!("add interface {}", nic.id),
            reason: "this hypervisor cannot while the machine runs".to_owned(),
        })
    }

    /// Takes an interface away. One that was there at the start stays visible to the guest, without a link.
    ///
    /// # Errors
    /// When the hypervisor cannot.
    async fn remove_nic(&mut self, id: &str) -> Result<(), ControlError> {
        Err(ControlError::Refused {
            command: format!("remove interface {id}"),
            reason: "this hypervisor cannot while the machine runs".to_owned(),
        })
    }

    /// Ends the machine at once, as by pulling the plug, but lets the hypervisor write what it holds for disks.
    /// [`VmEvent::Exited`] follows.
    async fn quit(&mut self) -> Result<(), ControlError>;

    /// Kills the hypervisor's process. Never waits for it; [`VmEvent::Exited`] follows.
    fn kill(&mut self);

    /// The hypervisor's process id.
    fn pid(&self) -> u32;

    /// Its name and version, for people: `qemu 7.2.22 (Debian 1:7.2+dfsg-7+deb12u13)`.
    fn version(&self) -> String;

    /// The byte stream to the guest's agent, once; `None` when it was taken, or the machine has none from the start.
    fn take_agent(&mut self) -> Option<AgentStream>;

    /// A new byte stream to the guest's agent, for a machine of [`crate::Platform::Pc`] after [`VmEvent::AgentPort`] said
    /// that the agent listens. It replaces the one before.
    async fn connect_agent(&mut self) -> io::Result<UnixStream>;

    /// The guest's serial console, once. Whoever takes it must read it until its end: a full one stops the guest when
    /// it writes. Until it is taken, some 200 KB fit.
    fn take_console(&mut self) -> Option<UnixStream>;

    /// The hypervisor's own messages, once.
    fn take_log(&mut self) -> Option<LogLines>;
}

/// The byte stream to the agent of a [`crate::Platform::Lean`].
#[derive(Debug)]
pub enum AgentStream {
    /// It is there; what is written waits until the guest reads it.
    Connected(UnixStream),
    /// It comes when the guest's agent calls; never when the machine ends before.
    Expected(oneshot::Receiver<UnixStream>),
}

impl AgentStream {
    /// Waits until it is there.
    ///
    /// # Errors
    /// When it will never be.
    pub async fn connected(self) -> io::Result<UnixStream> {
        match self {
            Self::Connected(stream) => Ok(stream),
            Self::Expected(called) => called.await.map_err(|_| io::ErrorKind::NotConnected.into()),
        }
    }
}

/// What a machine is given as descriptors rather than by name.
#[derive(Debug, Default)]
pub struct Resources {
    /// What each interface is connected by, as its [`crate::NicKind`] says, by the interface's id.
    pub taps: HashMap<String, OwnedFd>,
    /// What the hypervisor is locked into: user and folder; the driver adds what it must see. `None`: it runs as its
    /// starter, with nothing but its own sandbox. With a jail the calling program has the role [`zmachine_sys::jail::ROLE`].
    pub jail: Option<Jail>,
    /// What the machine goes on from, instead of booting: it stands still until [`Vm::go_on`]. Only for one that [`VmSpec::is_saveable`].
    pub saved: Option<Saved>,
    /// A folder of the machine's own that is not there yet, for a hypervisor that saves its machine into files by itself. Without it such a
    /// one is not saved.
    pub saves: Option<PathBuf>,
}

/// A machine as [`Vm::save`] left it.
#[derive(Debug)]
pub struct Saved {
    /// The state of its devices, open for reading at its beginning.
    pub state: OwnedFd,
    /// Its memory, as long as the guest's.
    pub memory: OwnedFd,
    /// Name and version of the hypervisor that wrote the state, as [`Vm::version`] gives them.
    pub version: String,
    /// The file is not written to: what the guest writes is the hypervisor's own. Such a machine cannot be saved.
    pub is_private: bool,
}

/// A folder only for this run of the machine.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The folder `path`, which exists.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmEvent {
    /// The machine and its hypervisor's process are gone. Always the last event.
    Exited(ExitReason),
    /// The guest's kernel panicked and stands still; the next call of [`Vm::next_event`] ends the machine.
    Panicked,
    /// The guest restarted itself, and starts again. Only on [`crate::Platform::Pc`].
    Rebooted,
    /// The guest's agent began or ceased to listen. Only on [`crate::Platform::Pc`].
    AgentPort {
        /// It listens.
        is_open: bool,
    },
    /// The virtual CPUs stand still because they were told to.
    Paused,
    /// The virtual CPUs run again.
    Resumed,
    /// A disk's file could not be read or written. When it was for lack of space the machine stands still until it is
    /// resumed; else the guest got the error.
    DiskError {
        /// The disk's id.
        disk: String,
        /// `read` or `write`.
        operation: String,
        /// The system's reason.
        reason: String,
        /// Whether it was for lack of space.
        no_space: bool,
    },
}

/// Why a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest switched itself off.
    GuestShutdown,
    /// The guest restarted itself, on a [`crate::Platform::Lean`].
    GuestReset,
    /// The guest's kernel panicked.
    GuestPanic,
    /// A signal to the hypervisor's process, by its number.
    HostSignal(i32),
    /// The hypervisor was told to quit.
    HostQuit,
    /// The hypervisor ended by itself.
    Crashed {
        /// How, for people: `exit status: 1`.
        status: String,
        /// The last lines of its standard error.
        last_stderr_lines: Vec<String>,
    },
}

/// What a driver cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{driver} cannot run this machine: {reason}")]
pub struct Unsupported {
    /// The driver.
    pub driver: &'static str,
    /// What it cannot do.
    pub reason: String,
}

/// Why a machine could not be launched. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The driver cannot run such a machine.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Something the machine needs is not there.
    #[error("{what} {} cannot be used", path.display())]
    Missing {
        /// What it is.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The tap of an interface was not passed.
    #[error("interface '{nic}' has no tap")]
    NoTap {
        /// The interface's id.
        nic: String,
    },
    /// The hypervisor's program could not be started.
    #[error("cannot start {}", binary.display())]
    Spawn {
        /// The program.
        binary: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A descriptor could not be made or passed.
    #[error("cannot make the hypervisor's {what}")]
    Channel {
        /// What it was for.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The hypervisor ended before it ran the machine.
    #[error("the hypervisor gave up ({status}): {}", stderr.join("; "))]
    Refused {
        /// How it ended.
        status: String,
        /// What it said.
        stderr: Vec<String>,
    },
    /// Nobody serves one of the machine's vhost-user devices.
    #[error("nobody serves a disk or shared directory of the machine: {output}")]
    Unserved {
        /// What the hypervisor said, or what became of a trial.
        output: String,
    },
    /// The hypervisor dropped a part of the machine's description without a word.
    #[error("the hypervisor did not take over '{field}' of the machine's description")]
    Misunderstood {
        /// The part.
        field: String,
    },
    /// The hypervisor does not answer.
    #[error("the hypervisor did not answer within {} s; it said: {}", patience.as_secs(), stderr.join("; "))]
    Silent {
        /// How long it had.
        patience: Duration,
        /// What it said.
        stderr: Vec<String>,
    },
    /// The hypervisor refused an order on its control channel.
    #[error("the hypervisor cannot be controlled")]
    Control(#[from] ControlError),
}

impl LaunchError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        let output = match self {
            Self::Refused { stderr, .. } | Self::Silent { stderr, .. } => stderr.join("\n"),
            Self::Spawn { binary, .. } if binary.ends_with(cloud_hypervisor::BINARY) => {
                return Some(
                    "put the static binary of Cloud Hypervisor v53 or later into the search path as 'cloud-hypervisor'",
                );
            }
            Self::Spawn { .. } => return Some("apt-get install qemu-system-x86"),
            Self::Misunderstood { .. } => {
                return Some(
                    "this version of the hypervisor is not known to work; docs/hypervisors.md names those that are",
                );
            }
            Self::Control(ControlError::Refused { reason, .. }) => reason.clone(),
            _ => String::new(),
        };
        if output.contains("cannot set up guest memory") || output.contains("Cannot allocate memory") {
            return Some("give the machine less memory, or free some on the host");
        }
        if output.contains("file is already locked")
            || output.contains("Failed to get \"write\" lock")
            || output.contains("Failed to get shared \"write\" lock")
        {
            return Some("another machine uses that disk; stop it first");
        }
        matches!(self, Self::Unserved { .. }).then_some("is every process that serves a disk of this machine running?")
    }
}

/// Why an order to a running hypervisor was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The hypervisor is gone; [`Vm::next_event`] tells why.
    #[error("the hypervisor is gone")]
    Gone,
    /// It said no.
    #[error("the hypervisor refused '{command}': {reason}")]
    Refused {
        /// The order.
        command: String,
        /// Its words.
        reason: String,
    },
    /// It said nothing.
    #[error("the hypervisor did not answer '{command}' within {} s", patience.as_secs())]
    Silent {
        /// The order.
        command: String,
        /// How long it had.
        patience: Duration,
    },
    /// It said something that is not in the protocol.
    #[error("the hypervisor's answer is not understood: {line}")]
    Garbled {
        /// The beginning of what it said.
        line: String,
    },
    /// The channel broke.
    #[error("the control channel broke")]
    Io(#[from] io::Error),
}

/// That the files which a machine boots from can be opened: no hypervisor says so clearly.
pub(crate) fn check_files(vm: &VmSpec) -> Result<(), LaunchError> {
    let open = |what, path: &Path| {
        File::open(path).map(drop).map_err(|source| LaunchError::Missing {
            what,
            path: path.to_owned(),
            source,
        })
    };
    match &vm.boot {
        Boot::Kernel { kernel, initrd, .. } => {
            open("the kernel", kernel)?;
            initrd.as_ref().map_or(Ok(()), |initrd| open("the initramfs", initrd))
        }
        Boot::Firmware { code, variables, .. } => {
            open("the firmware", code)?;
            let variables = variables.as_ref();
            variables.map_or(Ok(()), |variables| open("the firmware's variables", variables))
        }
    }
}

/// That CPUs, memory and devices are such as every hypervisor can have; else the reason.
pub(crate) fn check_devices(vm: &VmSpec, most_cpus: u32) -> Result<(), String> {
    if vm.cpus == 0 || vm.cpus > most_cpus {
        return Err(format!("{} CPUs (1 to {most_cpus} are possible)", vm.cpus));
    }
    if vm.memory_bytes < 1 << 20 || !vm.memory_bytes.is_multiple_of(1 << 20) {
        return Err(format!("{} bytes of memory are not whole MiB", vm.memory_bytes));
    }
    let disks = vm.disks.iter().map(Disk::id);
    let later = vm.later_disks.iter().map(|disk| disk.id.as_str());
    let ids: Vec<&str> = disks
        .chain(later)
        .chain(vm.nics.iter().map(|n| n.id.as_str()))
        .collect();
    for (at, id) in ids.iter().enumerate() {
        if !is_id(id) {
            return Err(format!("'{id}' cannot be the id of a device"));
        }
        if ids[..at].contains(id) {
            return Err(format!("two devices have the id '{id}'"));
        }
    }
    for disk in &vm.disks {
        if let Disk::File { id, serial, .. } | Disk::Nbd { id, serial, .. } = disk
            && serial.len() > 20
        {
            return Err(format!("the serial number of disk '{id}' is longer than 20 bytes"));
        }
    }
    Ok(())
}

/// Also keeps ids from being mistaken for our own (`mem0`, `qmp`, ...), which are never user's devices.
fn is_id(id: &str) -> bool {
    let ours = [
        "qmp",
        "console",
        "agent",
        "agent-port",
        "mem0",
        "serial0",
        "vsock0",
        FIRMWARE_CODE,
        FIRMWARE_VARIABLES,
    ];
    id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.len() <= 24
        && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !ours.contains(&id)
}
