//! The JSON messages. Field names are the wire format: a change is a new [`crate::PROTOCOL_VERSION`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::container::{Container, ContainerProcess, ContainerReply, ContainerRequest};
use crate::thaw::{Rehearsal, Thaw};

/// What the host asks; the first frame of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Set the guest up: root, mounts, network, names. Once per boot. Answer: [`Reply::Configured`].
    Configure(Box<BootConfig>),
    /// Start the entrypoint, as PID 1 of PID and mount namespaces of its own. Once per boot, after `Configure`. The stream
    /// becomes its process stream; when it exits, the agent sends [`Reply::Exited`], waits until the host closes the
    /// stream (5 s at most), and shuts down.
    Run(Process),
    /// Start one more process, any number of times, in the entrypoint's namespaces. The stream becomes its process stream.
    Exec(Process),
    /// As `Exec`, for a process that its stream does not end: a host that closes the stream, or goes, finds it again by this
    /// id with [`Request::Resume`]. While nobody reads, the process waits when its pipes are full; nothing it writes is lost.
    ExecSession {
        /// 1 to 128 bytes, of the host's choice; not that of another session of this boot.
        id: String,
        /// The process.
        process: Process,
    },
    /// As `ExecSession`, for a process of a container.
    ContainerSession {
        /// As that of `ExecSession`.
        id: String,
        /// The container's id: 1 to 255 of `a-z A-Z 0-9 _ . -`, not a dot first.
        container: String,
        /// Makes the container, whose first process this is; `None`: one that is there gets one more process.
        new: Option<Box<Container>>,
        /// The process.
        process: Box<ContainerProcess>,
    },
    /// Connect to a TCP port of the guest's loopback. Answer: [`Reply::Done`]; then the stream carries `Stdin` and `StdinEof` to the
    /// program that listens, and `Stdout` from it.
    Dial {
        /// The port.
        port: u16,
    },
    /// Wait until a program connects to a socket of [`BootConfig::sockets`]. Answer: [`Reply::Done`] when one has; then the stream carries
    /// `Stdin` and `StdinEof` to it, and `Stdout` from it, whose end is the end of the stream's direction.
    Accept {
        /// The socket.
        path: String,
    },
    /// Do something to a container. Answer: [`Reply::Container`].
    Container {
        /// Its id.
        id: String,
        /// What.
        request: ContainerRequest,
    },
    /// Take the stream of a session over, from whoever had it. Answer: [`Reply::Resumed`], then its process stream: what it
    /// wrote after `received`, and all that comes, also when it has ended meanwhile.
    Resume {
        /// Its id; `None` is the entrypoint.
        id: Option<String>,
        /// How many bytes of its output, standard output and error together, have been received.
        received: u64,
    },
    /// The sessions there are. Answer: [`Reply::Sessions`].
    Sessions,
    /// Wait for the end of a session, whoever reads its output. Answer: [`Reply::Exited`].
    WaitSession {
        /// Its id.
        id: String,
    },
    /// Copy files. The stream becomes the process stream of a process that does it: its standard output or input is the
    /// stream of files, its standard error tells what was left out and what went wrong, and it ends with 0, or 3 when
    /// the path is not there, or 1.
    Transfer(Transfer),
    /// Send a signal to the entrypoint. Answer: [`Reply::Done`].
    Signal {
        /// Linux signal number.
        signal: i32,
    },
    /// Stop: `signal` to the entrypoint, SIGKILL to all after the grace period, sync, unmount, power off.
    /// Answer: [`Reply::Done`] at once; the power-off follows.
    Shutdown {
        /// Linux signal number for the entrypoint.
        signal: i32,
        /// Time between the signal and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
    /// Grow a file system to the size of its disk, mounted or not. Answer: [`Reply::Done`].
    Grow {
        /// virtio serial of the disk.
        serial: String,
        /// Number of the partition that has it; `None`: the bare disk has.
        partition: Option<u32>,
        /// Its type, as `mount -t` names it: `ext4`, `btrfs` or `xfs`.
        fstype: String,
        /// Size of the whole disk in bytes, which the guest may still have to be told of: it is waited for.
        disk_bytes: u64,
    },
    /// Write what file systems have to their disks, and let nobody write to them until the stream ends: whoever does so waits. Answer:
    /// [`Reply::Done`], then nothing. A disk without a mounted file system is left as it is.
    Hold {
        /// virtio serials of the disks.
        disks: Vec<String>,
    },
    /// Set one more interface up, which may still have to appear. Answer: [`Reply::Done`].
    Connect(Box<Connection>),
    /// Take an interface down, and route as said from then on. Answer: [`Reply::Done`].
    Disconnect(Box<Connection>),
    /// The guest's clock is to show this time, unless it does already: it stood still while the machine was paused, or
    /// while the host slept. `CLOCK_MONOTONIC` is not touched. Answer: [`Reply::Done`].
    SetTime {
        /// Time of the host, in nanoseconds since the epoch.
        unix_nanos: u64,
    },
    /// Stop all processes and write what they have to the disks, so that the machine can be saved: it can be copied from then on until
    /// [`Request::Thaw`]. Answer: [`Reply::Done`]. Until then nothing but that, `Ping`, `Clock` and `Shutdown` is carried out; `Run` and `Resume` wait.
    Freeze,
    /// Let a frozen guest go on. Answer: [`Reply::Done`], or an error after which the guest powers off.
    Thaw(Box<Thaw>),
    /// Do what a frozen copy will have to do when it is told who it is and runs a process like this one, so that it is done quicker then.
    /// The program itself is read and not run, and nothing of it stays. Answer: [`Reply::Done`], or why not all of it was done.
    Rehearse(Box<Rehearsal>),
    /// Wait until the entrypoint says by the notification protocol of systemd (`READY=1`, to [`READY_SOCKET`]) that it is ready. Answer:
    /// [`Reply::Done`] once it may say so, and [`Reply::Done`] again when it has. Nobody listens before and after.
    AwaitReady,
    /// Is the agent alive? Answer: [`Reply::Done`].
    Ping,
    /// What the guest's `CLOCK_MONOTONIC` shows. Answer: [`Reply::Clock`].
    Clock,
    /// Memory and load of the guest. Answer: [`Reply::Capacity`].
    Capacity,
    /// The processes of the container, or of the whole guest that has an init of its own. Answer: [`Reply::Processes`].
    Processes,
}

/// Where the entrypoint says that it is ready, as `NOTIFY_SOCKET` names it: an abstract socket.
pub const READY_SOCKET: &str = "@zmachine/ready";

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The request is carried out.
    Done,
    /// The guest is set up.
    Configured {
        /// [`crate::PROTOCOL_VERSION`] of the agent.
        protocol: u32,
        /// Kernel release of the guest (`uname -r`).
        kernel: String,
        /// How long each step took, in order.
        phases: Vec<Phase>,
        /// What was asked for and could not be done, but does not stop the start.
        warnings: Vec<String>,
    },
    /// The process runs.
    Started {
        /// Process id inside the guest.
        pid: u32,
    },
    /// The process is gone and, on its process stream, all it wrote has been sent.
    Exited(ExitStatus),
    /// The session is this stream's from here on.
    Resumed {
        /// Process id inside the guest.
        pid: u32,
        /// Bytes after `received` that are not kept any more. What follows on the stream begins behind them.
        lost: u64,
    },
    /// Answer to [`Request::Sessions`]: the entrypoint first, then by id.
    Sessions(Vec<SessionState>),
    /// Answer to [`Request::Capacity`].
    Capacity(Capacity),
    /// Answer to [`Request::Processes`], by their ids.
    Processes(Vec<ProcessState>),
    /// Answer to [`Request::Container`].
    Container(ContainerReply),
    /// Answer to [`Request::Clock`].
    Clock {
        /// In nanoseconds.
        monotonic: u64,
        /// A copy of this guest takes [`crate::greeting::Greeting::Thaw`].
        #[serde(default)]
        is_thawed_first: bool,
    },
    /// A copy is what it is told to be, and its processes go on.
    Thawed {
        /// Bytes of its entrypoint's output that were sent before it was saved: [`Request::Resume`] has the rest.
        sent: u64,
    },
    /// The request failed.
    Error(AgentError),
}

/// One process of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id, as the container sees it.
    pub pid: u32,
    /// Its parent's; 0 for one that is outside.
    pub ppid: u32,
    /// Its user.
    pub uid: u32,
    /// Processor time it has used, in milliseconds.
    pub cpu_ms: u64,
    /// How long it runs, in milliseconds.
    pub age_ms: u64,
    /// Memory it has of its own and shares, in bytes.
    pub resident_bytes: u64,
    /// Program and arguments, with spaces between them; its name in brackets when it has none. Long ones are cut.
    pub command: String,
}

/// A process that outlives its stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionState {
    /// Its id; `None` is the entrypoint.
    pub id: Option<String>,
    /// Process id inside the guest.
    pub pid: u32,
    /// How it ended, once it has. Of those that ended the last few are kept.
    pub exited: Option<ExitStatus>,
}

/// What the host sends on a running process stream, besides its standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// The user's terminal has another size.
    Resize(WindowSize),
    /// Send this Linux signal number to the process.
    Signal(i32),
}

/// Everything the guest is told before its entrypoint starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// [`crate::PROTOCOL_VERSION`] of the host.
    pub protocol: u32,
    /// Host name, without dots or with a domain.
    pub hostname: String,
    /// The root file system.
    pub root: Root,
    /// Network interfaces beyond `lo`, which always comes up.
    pub interfaces: Vec<Interface>,
    /// Routes, set after all interfaces have their addresses.
    pub routes: Vec<Route>,
    /// Name servers for `/etc/resolv.conf`. With none, the image's file stays.
    pub nameservers: Vec<IpAddr>,
    /// Search domains for `/etc/resolv.conf`.
    pub search: Vec<String>,
    /// Lines of `/etc/hosts` beyond localhost.
    pub hosts: Vec<HostEntry>,
    /// More file systems, mounted in this order after the root.
    pub mounts: Vec<Mount>,
    /// Directories that the container is to find, made when missing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub directories: Vec<String>,
    /// Public keys for root's `authorized_keys`, one per entry.
    pub ssh_keys: Vec<String>,
    /// This is the first start on this writable layer: host keys of the image are removed.
    pub first_start: bool,
    /// Read-ahead of the root disk in KiB (`/sys/block/*/queue/read_ahead_kb`).
    pub read_ahead_kib: u32,
    /// Files in memory, which are never on a disk.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Sockets that the container is to find, by their absolute paths. They lead to the host: see [`Request::Accept`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<String>,
    /// File systems in memory, mounted after all others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// Size of `/dev/shm` in bytes; the kernel's choice when `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
    /// Settings of the kernel: paths below `/proc/sys`, and values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<(String, String)>,
}

/// A file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute path in the guest, made when missing.
    pub target: String,
    /// The most it may hold, in bytes; the kernel's choice when `None`.
    pub size_bytes: Option<u64>,
    /// Permissions of its root.
    pub mode: u32,
    /// Mounted read-only.
    pub read_only: bool,
    /// Programs on it can be executed.
    pub exec: bool,
}

/// A file in the guest's memory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its name in `/run/secrets`; one that begins with a slash is the path of the file itself, over whatever is there.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
    /// It can be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:?}, {} bytes)", self.name, self.content.len())
    }
}

/// The root file system: the image below, something writable above, joined by overlayfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// virtio serial of the image's disk (`/sys/block/vd*/serial`); for `virtiofs` the tag of its tree.
    pub lower_serial: String,
    /// What the image is, as `mount -t` names it: `erofs` or `virtiofs`.
    #[serde(default = "erofs", skip_serializing_if = "is_erofs")]
    pub lower_fstype: String,
    /// The writable layer.
    pub upper: Upper,
}

fn erofs() -> String {
    "erofs".to_owned()
}

fn is_erofs(fstype: &str) -> bool {
    fstype == "erofs"
}

/// The writable layer of a root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Upper {
    /// A disk that keeps what is written.
    Disk {
        /// virtio serial of the disk.
        serial: String,
        /// File system on it, as `mount -t` names it.
        fstype: String,
    },
    /// Guest memory: what is written is gone with the machine.
    Memory,
    /// Nothing: the root is read-only.
    ReadOnly,
    /// Nothing, and nothing below: the root is what the set-up makes in memory, read-only then. For a machine that is there for containers
    /// whose roots come from elsewhere: its image is empty, and neither its disk nor what reads it is touched.
    WithoutImage,
}

/// One more file system of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// virtio serial of the disk; for `virtiofs` the tag of the shared directory.
    pub serial: String,
    /// File system type, as `mount -t` names it.
    pub fstype: String,
    /// Absolute path in the guest, made when missing.
    pub target: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// A file system that is empty takes over what the image has at `target`, once: owner, mode, attributes and files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub populate: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name it gets in the guest (`eth0`).
    pub name: String,
    /// MAC address that finds it, `aa:bb:cc:dd:ee:ff` in lower case.
    pub mac: String,
    /// Addresses in CIDR form, IPv4 and IPv6.
    pub addresses: Vec<String>,
    /// MTU in bytes; the link's own when `None`.
    pub mtu: Option<u32>,
}

/// An interface that comes or goes while the guest runs, and what changes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The interface.
    pub interface: Interface,
    /// Routes to set.
    pub routes: Vec<Route>,
    /// Name servers for `/etc/resolv.conf`. With none, the file stays.
    pub nameservers: Vec<IpAddr>,
    /// Search domains for `/etc/resolv.conf`.
    pub search: Vec<String>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination in CIDR form; `0.0.0.0/0` and `::/0` are the default routes.
    pub destination: String,
    /// Gateway; `None` is a route on the link.
    pub gateway: Option<IpAddr>,
    /// Name of the interface.
    pub interface: String,
}

/// One line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The address.
    pub address: IpAddr,
    /// Its names, the canonical one first.
    pub names: Vec<String>,
}

/// A process to start in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; the program is looked up in the `PATH` of `env` when it has no slash.
    pub args: Vec<String>,
    /// The whole environment, in order, later entries win. The agent adds `HOME` (from passwd) and `PATH` when missing.
    pub env: Vec<(String, String)>,
    /// Working directory; made when missing for the entrypoint, an error for an exec. `None`: `/`.
    pub cwd: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`, looked up in the image's passwd and group. `None`: root.
    pub user: Option<String>,
    /// Give it a terminal of this size.
    pub terminal: Option<WindowSize>,
    /// Connect standard input to the stream; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Of the entrypoint alone: PID 1 is a small init of the agent's, which starts the program, passes signals on to it
    /// and reaps orphans. Otherwise the program itself is PID 1.
    #[serde(flatten, with = "pid_one")]
    pub init: bool,
    /// What it may use and do. An exec for which nothing is said has those of the entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restrictions: Option<Restrictions>,
}

/// What a process may use and do. The default takes nothing away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Restrictions {
    /// Resource limits.
    pub limits: Vec<ResourceLimit>,
    /// Further groups, by name or number.
    pub groups: Vec<String>,
    /// Numbers of the capabilities that it has not, and cannot get.
    pub drop_capabilities: Vec<u8>,
    /// Executing a program never brings privileges.
    pub no_new_privileges: bool,
}

/// A resource limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    /// Its number (`RLIMIT_*`).
    pub resource: u8,
    /// What the process has; `None` is no limit.
    pub soft: Option<u64>,
    /// What it may set.
    pub hard: Option<u64>,
}

impl Process {
    /// `args` as the machine's user, in its folder, with no input.
    pub fn new<T: Into<String>>(args: impl IntoIterator<Item = T>) -> Process {
        Process {
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: None,
            user: None,
            terminal: None,
            stdin: false,
            init: false,
            restrictions: None,
        }
    }
}

/// [`Process::init`] on the wire. Agents of VMs may be older than their host, and those read no process that does not say
/// whether it has a PID namespace of its own. In a VM none has; in a container every entrypoint has.
mod pid_one {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Wire {
        #[serde(default)]
        pid_namespace: bool,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        init: bool,
    }

    pub(super) fn serialize<S: Serializer>(init: &bool, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = Wire {
            pid_namespace: false,
            init: *init,
        };
        wire.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        Wire::deserialize(deserializer).map(|wire| wire.init)
    }
}

/// Files to or from the guest, as a tar stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transfer {
    /// From the guest.
    Send {
        /// Absolute path of a file, link or directory.
        path: String,
    },
    /// To the guest.
    Receive {
        /// Absolute path: a directory that is there, or the new place.
        target: String,
        /// Name of the source, for a target that is a directory.
        name: String,
        /// What is in the source directory goes into the target.
        contents: bool,
        /// Owners and groups are kept as numbers; otherwise all belongs to root.
        keep_owner: bool,
    },
    /// What a container has other than its image, as a layer of an OCI image, or as a list: for each path a letter (`A` added, `C`
    /// changed, `D` deleted), the path, and a NUL.
    Changes {
        /// Only the list.
        list: bool,
        /// All processes stand still until it is sent, so that it is of one instant.
        #[serde(default)]
        paused: bool,
    },
    /// A container's whole root without what is mounted in it.
    Root,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this code.
    Code(u8),
    /// It was ended by this Linux signal number.
    Signal(i32),
}

impl ExitStatus {
    /// The status a shell shows: the code, or 128 + signal.
    pub fn shell_code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128u8.saturating_add(signal.clamp(0, 127) as u8),
        }
    }
}

/// One step of the guest's set-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// Short name (`modules`, `root`, `network`).
    pub name: String,
    /// Its duration in microseconds.
    pub micros: u64,
}

/// Memory and load of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// `MemTotal` in bytes.
    pub memory_total_bytes: u64,
    /// `MemAvailable` in bytes.
    pub memory_available_bytes: u64,
    /// Time all CPUs spent not idle, in milliseconds since boot.
    pub cpu_busy_ms: u64,
    /// Time since boot in milliseconds.
    pub uptime_ms: u64,
    /// Number of online CPUs.
    pub cpus: u32,
}

/// Why a request failed, in the guest's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentError {
    /// What class of failure; decides the exit code of `run` and `exec`.
    pub kind: ErrorKind,
    /// What failed and why, one line, naming the thing.
    pub message: String,
}

/// Classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The program is not in the guest (exit code 127).
    CommandNotFound,
    /// The program is there and cannot be run (exit code 126).
    CommandNotExecutable,
    /// The user or group is not in the image (exit code 125).
    UnknownUser,
    /// The working directory is missing or no directory (exit code 125).
    WorkingDirectory,
    /// The guest could not be set up: disk, mount, network (exit code 125).
    Setup,
    /// The request does not fit the agent's state or version (exit code 125).
    BadRequest,
    /// Anything else (exit code 125).
    Internal,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Frame;

    #[test]
    fn an_exec_request_has_its_golden_bytes() {
        let request = Request::Exec(Process {
            args: vec!["sh".into()],
            env: vec![("A".into(), "b".into())],
            cwd: None,
            user: Some("web".into()),
            terminal: Some(WindowSize { rows: 24, columns: 80 }),
            stdin: true,
            init: false,
            restrictions: None,
        });
        let golden = r#"{"exec":{"args":["sh"],"env":[["A","b"]],"cwd":null,"user":"web","terminal":{"rows":24,"columns":80},"stdin":true,"pid_namespace":false}}"#;
        assert_eq!(Frame::message(&request), Frame::Message(golden.as_bytes().to_vec()));
        assert_eq!(Frame::message(&request).parse::<Request>().unwrap(), request);
        let Request::Exec(process) = request else {
            panic!("another request");
        };
        let with_init = Request::Run(Process { init: true, ..process });
        assert_eq!(Frame::message(&with_init).parse::<Request>().unwrap(), with_init);
    }

    #[test]
    fn exit_statuses_are_shown_as_a_shell_does() {
        assert_eq!(ExitStatus::Code(3).shell_code(), 3);
        assert_eq!(ExitStatus::Signal(9).shell_code(), 137);
        assert_eq!(ExitStatus::Signal(15).shell_code(), 143);
    }
}
