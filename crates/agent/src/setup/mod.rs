//! Carries out the one boot configuration: root, special file systems, names, network, further mounts.
//!
//! # Order
//! The root first, because everything after it happens inside it: once the agent is chrooted, no link of the image can
//! lead out of it. A step that fails ends the set-up: a machine with half a network never starts its entrypoint.

mod disks;
mod etc;
mod grow;
mod netlink;
mod network;
mod populate;
mod root;
mod secrets;
mod special;
mod volumes;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use thiserror::Error;
use zmachine_agent_protocol::{BootConfig, Connection, Upper};

use crate::boot::Phases;
use crate::modules::{self, ModuleError};
pub(crate) use etc::read_whole;
pub(crate) use grow::grow;
pub(crate) use root::Writable;

/// Why the guest can not be set up; every text names the thing concerned.
#[derive(Debug, Error)]
pub(crate) enum SetupError {
    /// No disk has the serial.
    #[error("no disk with serial {serial} after {} s", disks::APPEAR.as_secs())]
    DiskMissing { serial: String },
    /// A file system can not be mounted.
    #[error("mount {what} on {target}: {source}")]
    Mount {
        what: String,
        target: String,
        source: Errno,
    },
    /// A file or directory can not be written.
    #[error("write {path}: {source}")]
    File { path: String, source: io::Error },
    /// A step of the change of roots failed.
    #[error("switch to the root: {step}: {source}")]
    Switch { step: &'static str, source: Errno },
    /// The kernel refused the host name.
    #[error("set host name {name:?}: {source}")]
    Hostname { name: String, source: Errno },
    /// No interface has the address.
    #[error("no network interface with mac {mac} (for {name}) after {} s", network::APPEAR.as_secs())]
    InterfaceMissing { name: String, mac: String },
    /// An interface refused a setting.
    #[error("interface {name}: {what}: {source}")]
    Interface { name: String, what: String, source: Errno },
    /// An address or destination is no CIDR.
    #[error("{of}: {text:?} is no address with a prefix length")]
    Cidr { of: String, text: String },
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
    /// A file system can not be grown.
    #[error("grow {fstype} on {device}: {source}")]
    Grow {
        device: String,
        fstype: String,
        source: Errno,
    },
    /// A file of the image can not be put on a fresh volume.
    #[error("put the image's files on the volume: {path}: {source}", path = path.display())]
    Populate { path: PathBuf, source: io::Error },
    /// The copy of the image's files to a volume broke off, and this machine can not write there.
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

/// What a set-up leaves behind, whole or broken off.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// File systems to make read-only before the power goes.
    pub(crate) writable: Vec<Writable>,
    /// What could not be done and does not stop the start.
    pub(crate) warnings: Vec<String>,
}

/// Sets an interface up that came while the guest runs.
///
/// # Errors
/// [`SetupError`] naming the interface, address, route or file.
pub(crate) fn connect(connection: &Connection) -> Result<(), SetupError> {
    network::connect(&connection.interface, &connection.routes)?;
    etc::write_resolvers(&connection.nameservers, &connection.search)
}

/// Takes an interface down, and sets the routes that are to be from then on.
///
/// # Errors
/// As [`connect`].
pub(crate) fn disconnect(connection: &Connection) -> Result<(), SetupError> {
    network::disconnect(&connection.interface.name, &connection.routes)?;
    etc::write_resolvers(&connection.nameservers, &connection.search)
}

/// Sets the guest up as `config` says. What is mounted when a step fails is in `outcome` all the same.
///
/// # Errors
/// The first [`SetupError`]; the guest is then good for nothing but a power-off.
pub(crate) fn configure(config: &BootConfig, phases: &mut Phases, outcome: &mut Outcome) -> Result<(), SetupError> {
    if !config.interfaces.is_empty() {
        modules::load_all(Path::new(modules::NETWORK_ORDER))?;
        phases.end("network modules");
    }
    let mounted = config.mounts.iter().map(|mount| &mount.fstype);
    for order in mounted
        .chain([&config.root.lower_fstype])
        .filter_map(|fstype| modules::order_of(fstype))
    {
        modules::load_all(order)?;
    }
    if let Err(error) = modules::load_all(Path::new(modules::NESTED_ORDER)) {
        outcome
            .warnings
            .push(format!("not all that containers inside may need is there: {error}"));
    }
    root::assemble(&config.root, config.read_ahead_kib, &mut outcome.writable)?;
    phases.end("root");
    root::switch()?;
    phases.end("switch");
    let read_only = config.root.upper == Upper::ReadOnly;
    special::mount_all(read_only, &mut outcome.warnings)?;
    phases.end("special");
    etc::write_names(config)?;
    if config.first_start {
        etc::remove_host_keys(&mut outcome.warnings);
    }
    etc::authorize(&config.ssh_keys)?;
    secrets::write_all(&config.secrets)?;
    phases.end("files");
    network::set_up(&config.interfaces, &config.routes)?;
    phases.end("network");
    volumes::mount_all(&config.mounts, &mut outcome.writable)?;
    // After the volumes: what is made here is nothing that a volume could take over from the image.
    volumes::make_directories(&config.directories, &mut outcome.warnings);
    phases.end("mounts");
    if read_only {
        root::seal()?;
    }
    Ok(())
}
