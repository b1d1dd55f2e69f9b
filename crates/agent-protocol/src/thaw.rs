//! What a guest is told that goes on from a saved state.
//!
//! ```text
//! host:  Freeze                       all processes stand still; what they wrote is on its disks
//!        the machine is saved, and goes on
//! host:  Thaw without identity        on the same connection: the machine that was saved goes on
//! later, each restored copy:
//! host:  greeting with a Thaw         a new connection (see [`crate::greeting`]); no process has run yet
//! agent: greeting with Thawed         they run; the connection begins
//! ```
//! # At once
//! The host of a copy need not wait for any answer: it may send what is to be asked on the connection, such as `Run`, behind the greeting.
//! The `Thaw` comes before the connection because a copy has everything to do for the first time, and an emulated one translates it
//! first: what a connection takes is no part of the first answer.
//!
//! # The time
//! ```text
//! host:  Freeze, Clock                CLOCK_MONOTONIC of the guest, at a time that the host knows
//!        the CPUs stop                and with them that clock: what it shows then is known
//! later: the CPUs go on               at a time that the host knows
//! host:  Thaw                         so the host can say what time it was when that clock showed nothing
//! ```

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::message::{HostEntry, Interface, Process, Route, Secret};

/// How a frozen guest goes on. All of it is done before any process runs; a guest that cannot do it never runs any, and loses its power.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thaw {
    /// Random bytes of the host for the kernel's random number generator, 32 or more: copies of one state have the same numbers before
    /// them otherwise. None for the machine that was saved.
    pub seed: Vec<u8>,
    /// Time of the host, in nanoseconds since the epoch.
    pub unix_nanos: u64,
    /// The host's time, in nanoseconds since the epoch, when `CLOCK_MONOTONIC` of the guest was 0. It is better than `unix_nanos`, because it
    /// does not matter how long the message takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monotonic_began: Option<u64>,
    /// Who the guest is from now on; `None`: who it was.
    pub identity: Option<Box<Identity>>,
}

/// What a frozen copy is likely to be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// What it will be told, with somebody else's names. Nobody becomes that.
    pub thaw: Thaw,
    /// What it will run.
    pub process: Process,
}

/// Who a copy of a guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host name.
    pub hostname: String,
    /// 32 hex digits for `/etc/machine-id`, where the image has one.
    pub machine_id: String,
    /// Its interfaces, each with what it was.
    pub interfaces: Vec<Renewed>,
    /// Routes, set after all interfaces have their addresses.
    pub routes: Vec<Route>,
    /// Name servers for `/etc/resolv.conf`. With none, the file stays.
    pub nameservers: Vec<IpAddr>,
    /// Search domains for `/etc/resolv.conf`.
    pub search: Vec<String>,
    /// Lines of `/etc/hosts` beyond localhost.
    pub hosts: Vec<HostEntry>,
    /// Files in memory, over those that were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
}

/// An interface that becomes another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// What it was: its MAC finds it, and its addresses go.
    pub was: Interface,
    /// What it is: a name, a MAC and addresses.
    pub is: Interface,
}
