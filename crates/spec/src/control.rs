//! The monitor's control socket (`ctl.sock`): what a command asks a running machine.
//!
//! The bytes are the frames of `zmachine-agent-protocol`. The first frame of a connection is a [`Request`] in JSON. It is
//! answered with one [`Reply`], after which the connection ends; or, for `attach`, `exec`, `attach_exec`, `dial` and transfers, it becomes a process stream,
//! exactly as between host and agent.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zmachine_agent_protocol::{
    Capacity, Container, ContainerProcess, ContainerReply, ContainerRequest, ExitStatus, Process, ProcessState,
    Transfer,
};
use zmachine_network::Attachment;
use zmachine_network::user::Traffic;

use crate::failure::{Class, Failure};
use crate::saved::Saved;
use crate::state::Exit;
use crate::{Change, NetworkRequest};

/// What a command asks the monitor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Follow the entrypoint: its output from here on, and its input when the machine was made with one. The stream gets
    /// `Exited` when the entrypoint is gone, or `Error` when it never started.
    Attach {
        /// This client sends input.
        stdin: bool,
        /// This client started the machine: the entrypoint waits for it, and its output is never dropped for it.
        owner: bool,
    },
    /// Follow the serial console, from its last few lines on.
    Console {
        /// This client types.
        stdin: bool,
    },
    /// Start one more process. `env` is over the entrypoint's environment; user and working directory are the entrypoint's
    /// when `None`.
    Exec(Process),
    /// Start one more process that its client does not end: it is found by its id until the machine ends. Answered with
    /// [`Reply::Execs`] of this one, or why it does not run.
    StartExec {
        /// 1 to 128 of `a-z A-Z 0-9 _ . -`; one is made up when `None`.
        id: Option<String>,
        /// As with `Exec`.
        process: Process,
        /// What it writes is for nobody, until somebody attaches; else it waits when its pipes are full.
        discard: bool,
    },
    /// Start a process of a container of the machine, as `StartExec` does, with output that waits for who attaches.
    StartInContainer {
        /// As that of `StartExec`.
        id: String,
        /// The container's id.
        container: String,
        /// Makes the container, whose first process this is; `None`: it is there.
        new: Option<Box<Container>>,
        /// The process.
        process: Box<ContainerProcess>,
    },
    /// Connect to a TCP port of the guest's loopback. The stream begins with the agent's `Done`, and carries `Stdin`, `StdinEof` and
    /// `Stdout`.
    Dial {
        /// The port.
        port: u16,
    },
    /// Do something to a container of the machine; answered with [`Reply::Container`].
    Container {
        /// The container's id.
        id: String,
        /// What.
        request: ContainerRequest,
    },
    /// Follow a process by its id, in the place of whoever does so far. The stream begins with the agent's `Resumed`, goes on
    /// with the output after `received` bytes, and ends with `Exited`.
    AttachExec {
        /// Its id.
        id: String,
        /// How much of its output, standard output and error together, the client has.
        received: u64,
    },
    /// Wait for the end of a process; answered with [`Reply::Execs`] of this one.
    WaitExec {
        /// Its id.
        id: String,
    },
    /// The processes that have an id, those that ended among them, oldest first; answered with [`Reply::Execs`].
    Execs,
    /// Copy files to or from the machine.
    Transfer(Transfer),
    /// Stop in an orderly way; answered when the machine has stopped.
    Stop {
        /// Time between the stop signal and SIGKILL in milliseconds; the spec's when `None`.
        grace_ms: Option<u64>,
    },
    /// End the machine at once, as a power cut; answered when it has ended.
    Kill,
    /// Send a Linux signal number to the entrypoint.
    Signal(i32),
    /// Wait until the machine has ended; answered with [`Reply::Ended`].
    Wait,
    /// Memory and load of the guest; answered with [`Reply::Capacity`].
    Capacity,
    /// The processes of the guest; answered with [`Reply::Processes`].
    Processes,
    /// What went through its interfaces that have no link on the host; answered with [`Reply::Traffic`].
    Traffic,
    /// Save the machine as it is, into a folder that has nothing in it yet, and let it go on; answered with [`Reply::Saved`].
    Save {
        /// The folder, in which `state`, `memory` and `root.img` are made.
        folder: PathBuf,
    },
    /// Take a machine that stands by for the one that its files describe by now. What follows on the connection are [`Report`] lines, as on the
    /// pipe of a monitor that was started for it.
    Claim {
        /// The entrypoint waits for its owner, see [`Request::Attach`].
        wait_for_owner: bool,
        /// The machine ends with this connection.
        ends_with_client: bool,
    },
    /// Let nobody in the guest write to disks as long as the connection is there. The stream begins with the agent's `Done`, or the
    /// reason why not. A VM without an agent is paused instead.
    Hold {
        /// Their virtio serials.
        disks: Vec<String>,
    },
    /// Bring an image of this host to the machine as a disk, which its guest knows by [`crate::pod::image_serial`]; one that is there
    /// already is fine.
    AddImage {
        /// Its digest in hex; its root disk is prepared.
        digest: String,
    },
    /// Bring a file or a block device of this host to the machine as a disk; one that is there already is fine. A block device is in use
    /// until the machine's end.
    AddFile {
        /// On this host.
        path: PathBuf,
        /// The serial number by which the guest knows it, and by which it is there already: at most 20 bytes.
        serial: String,
        /// The guest can only read it, as it always is with a file that is no device.
        read_only: bool,
    },
    /// Halt the virtual CPUs.
    Pause,
    /// Let them run again.
    Resume,
    /// Join one more network, or leave one.
    Reconnect(Box<Reconnect>),
    /// Be something else in what a machine may be while it runs.
    Change(Box<Change>),
    /// Make a volume that the machine writes to larger, and the file system on it.
    GrowVolume {
        /// The volume's name.
        name: String,
        /// Its new size in bytes.
        size_bytes: u64,
    },
}

/// A machine's networks as they are to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconnect {
    /// Every network of the machine, one of them more or less than it is in.
    pub attachments: Vec<Attachment>,
    /// The same as its spec says it. On the wire each is a text, as monitors have known it that are older than the command.
    #[serde(with = "network_texts")]
    pub networks: Vec<NetworkRequest>,
}

mod network_texts {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::NetworkRequest;

    pub(super) fn serialize<S: Serializer>(requests: &[NetworkRequest], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(requests.iter().map(NetworkRequest::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<NetworkRequest>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        let parsed = texts.iter().map(|text| NetworkRequest::parse(text));
        parsed.collect::<Result<_, _>>().map_err(de::Error::custom)
    }
}

/// What the monitor answers to everything but `attach` and `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It is done.
    Done,
    /// The machine has ended: so, or for this reason.
    Ended(Result<Exit, Failure>),
    /// What the guest's agent says of its memory and load.
    Capacity(Capacity),
    /// The processes of the container, or of the whole guest of a VM.
    Processes(Vec<ProcessState>),
    /// Totals by interface, as the guest names it.
    Traffic(BTreeMap<String, Traffic>),
    /// What the agent says of a container.
    Container(ContainerReply),
    /// Processes with an id.
    Execs(Vec<ExecRecord>),
    /// It was saved.
    Saved(Box<Saved>),
    /// It is not.
    Failed(Failure),
}

/// One process of a machine beside its entrypoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRecord {
    /// Its id.
    pub id: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Process id inside the guest.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// When and how it ended, once it has.
    pub ended: Option<ExecEnd>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecEnd {
    /// When.
    pub at: Timestamp,
    /// Its status; `None` when the machine ended before it, or its agent was started again.
    pub status: Option<ExitStatus>,
}

/// What the monitor tells the command that started it, one JSON line each, on its report pipe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The control socket accepts connections.
    Listening,
    /// Work that takes its time before the machine can run.
    Progress {
        /// What is done, for people.
        what: String,
        /// Bytes done.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The hypervisor runs: the guest boots.
    Booting,
    /// The entrypoint, or the VM, runs.
    Ready,
    /// The start failed; everything is undone.
    Failed(Failure),
}

/// What somebody is told who wants something of a paused guest.
pub fn paused(name: &str) -> Failure {
    Failure::new(Class::Conflict, format!("machine '{name}' is paused"))
        .hint(format!("'zmachine resume {name}' lets it run on"))
}
