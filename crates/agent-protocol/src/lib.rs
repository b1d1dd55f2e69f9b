//! The messages between host and guest agent, and between the command line and a machine's monitor.
//!
//! # Layers
//! ```text
//! byte stream (virtio-serial port, hybrid vsock)      one per machine
//!   └─ yamux: the host is the client and opens every stream
//!        └─ frames (this crate): u8 kind, u32 LE payload length, payload
//!             ├─ first frame of a stream: Message = one `Request`
//!             └─ then by request: one `Reply`, or a process stream (`Run`, `Exec`, `Transfer`)
//! ```
//! A process stream carries `Stdin`/`StdinEof`/`Message(Input)` to the process and
//! `Message(Reply::Started)`, `Stdout`, `Stderr`, finally `Message(Reply::Exited)` or
//! `Message(Reply::Error)` from it. With a terminal, all output is `Stdout`. `Exited` is always the last frame:
//! everything the process wrote comes before it.
//!
//! The entrypoint and what `ExecSession` and `ContainerSession` start outlive their streams and the connection: a host that takes the machine over
//! connects, greets the agent ([`greeting`]), and then goes on with `Resume`. The greeting is needed because the channel may
//! still hold, in both directions, pieces of what was on its way when the host before it went (QEMU writes the rest of a
//! buffer that its last client did not take to its next one), and because an agent that has not noticed yet takes the first
//! bytes of the new host for those of the old one:
//! ```text
//! host:  Hello, again and again until it is answered; whatever else comes is dropped
//! agent: the same Hello, for each
//! host:  Begin, once
//! agent: the same Begin; the next byte in either direction is the connection's
//! ```
//! Then it goes on with `Resume`. An agent that is PID 1 waits for such a host for a few
//! seconds and then stops the machine.
//!
//! The monitor's `ctl.sock` carries the same process frames after its own request, so the monitor forwards them
//! without looking inside.
//!
//! # Invariants
//! Everything here is a value or a pure function: no I/O. Either side refuses a frame longer than
//! [`MAX_PAYLOAD`] before it allocates for it. An unknown request is answered with [`Reply::Error`].

mod container;
mod frame;
pub mod greeting;
mod message;
mod thaw;

pub use container::{
    Capabilities, Container, ContainerLimits, ContainerMount, ContainerProcess, ContainerReply, ContainerRequest,
    ContainerRoot, ContainerStats, DeviceNode, ImageLayer, MountSource, keyed,
};
pub use frame::{Frame, FrameDecoder, FrameError, HEADER_LEN, MAX_DATA, MAX_PAYLOAD};
pub use message::{
    AgentError, BootConfig, Capacity, Connection, ErrorKind, ExitStatus, HostEntry, Input, Interface, Mount, Phase,
    Process, ProcessState, READY_SOCKET, Reply, Request, ResourceLimit, Restrictions, Root, Route, Secret,
    SessionState, Tmpfs, Transfer, Upper, WindowSize,
};
pub use thaw::{Identity, Rehearsal, Renewed, Thaw};

/// Version of the messages. Host and agent come from one build, so a difference is a broken installation.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name of the virtio-serial port the agent listens on (`/sys/class/virtio-ports/*/name`).
pub const PORT_NAME: &str = "org.zmachine.agent.0";
