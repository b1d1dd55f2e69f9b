//! What can go wrong when a guest is set up.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use rustix::io::Errno;
use thiserror::Error;

use crate::modules::ModuleError;

/// Why the guest cannot be set up; every text names the thing concerned.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    /// No disk has the serial.
    #[error("no disk with serial {serial} after {after_s} s")]
    DiskMissing { serial: String, after_s: u64 },
    /// A file system cannot be mounted.
    #[error("mount {what} on {target}: {source}")]
    Mount {
        what: String,
        target: String,
        source: Errno,
    },
    /// A file or directory cannot be written.
    #[error("write {path}: {source}")]
    File { path: String, source: io::Error },
    /// A step of the change of roots failed.
    #[error("switch to the root: {step}: {source}")]
    Switch { step: &'static str, source: Errno },
    /// The kernel refused the host name.
    #[error("set host name {name:?}: {source}")]
    Hostname { name: String, source: Errno },
    /// No interface has the address.
    #[error("no network interface with mac {mac} (for {name}) after {after_s} s")]
    InterfaceMissing { name: String, mac: String, after_s: u64 },
    /// An interface refused a setting.
    #[error("interface {name}: {what}: {source}")]
    Interface { name: String, what: String, source: Errno },
    /// An address or destination is no CIDR.
    #[error("{of}: {text:?} is no address with a prefix length")]
    Cidr { of: String, text: String },
    /// A MAC is none.
    #[error("{text:?} is no MAC address")]
    Mac { text: String },
    /// The kernel refused a route.
    #[error("route {destination} by {interface}{}: {source}", via(gateway))]
    Route {
        destination: String,
        interface: String,
        gateway: Option<IpAddr>,
        source: Errno,
    },
    /// A driver is not loaded.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// A file system cannot be grown.
    #[error("grow {fstype} on {device}: {source}")]
    Grow {
        device: String,
        fstype: String,
        source: Errno,
    },
    /// A file system goes on being written to.
    #[error("hold the file system on {device}: {source}")]
    Hold { device: String, source: Errno },
    /// A file of the image cannot be put on a fresh volume.
    #[error("put the image's files on the volume: {path}: {source}", path = path.display())]
    Populate { path: PathBuf, source: io::Error },
    /// The copy of the image's files to a volume broke off, and this machine cannot write there.
    #[error(
        "the volume at {target} has only part of the image's files: its first use was interrupted; use it once writable"
    )]
    HalfPopulated { target: String },
    /// Not in use, and not for us to use.
    #[error("{device} is not mounted")]
    NotMounted { device: String },
    /// Not one that can be grown.
    #[error("no way to grow a file system of type {fstype:?} is known")]
    NotGrowable { fstype: String },
    /// No netlink socket.
    #[error("netlink socket: {source}")]
    Netlink { source: Errno },
}

fn via(gateway: &Option<IpAddr>) -> String {
    gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default()
}
