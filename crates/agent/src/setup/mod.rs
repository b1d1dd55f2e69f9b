//! Carries out the one boot configuration: root, special file systems, names, network, further mounts.
//!
//! # Order
//! The root first, because everything after it happens inside it: once the agent is chrooted, no link of the image can
//! lead out of it. A step that fails ends the set-up: a machine with half a network never starts its entrypoint.

mod disks;
mod error;
mod etc;
mod grow;
pub(crate) mod hold;
mod netlink;
mod network;
mod populate;
mod root;
mod secrets;
mod sockets;
mod special;
mod volumes;

use std::os::unix::net::UnixListener;
use std::path::Path;

use zmachine_agent_protocol::{BootConfig, Connection, Identity, Upper};

use crate::boot::Phases;
use crate::modules;
pub(crate) use disks::Disk;
pub(crate) use error::SetupError;
pub(crate) use etc::read_whole;
use etc::{Opened, Writing};
pub(crate) use grow::grow;
pub(crate) use root::{Layers, Writable};

/// What a set-up leaves behind, whole or broken off.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// File systems to make read-only before the power goes.
    pub(crate) writable: Vec<Writable>,
    /// What the root is made of.
    pub(crate) layers: Option<Layers>,
    /// Sockets that lead to the host, by their paths.
    pub(crate) sockets: Vec<(String, UnixListener)>,
    /// What could not be done and does not stop the start.
    pub(crate) warnings: Vec<String>,
}

/// Sets an interface up that came while the guest runs.
///
/// # Errors
/// [`SetupError`] naming the interface, address, route or file.
pub(crate) fn connect(connection: &Connection) -> Result<(), SetupError> {
    network::connect(&connection.interface, &connection.routes)?;
    etc::write_resolvers(&connection.nameservers, &connection.search, Writing::Beside)
}

/// Takes an interface down, and sets the routes that are to be from then on.
///
/// # Errors
/// As [`connect`].
pub(crate) fn disconnect(connection: &Connection) -> Result<(), SetupError> {
    network::disconnect(&connection.interface.name, &connection.routes)?;
    etc::write_resolvers(&connection.nameservers, &connection.search, Writing::Beside)
}

/// What a copy of this guest will need, found while the guest stands still: to find it by its name would be most of what the copy does.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    is_sealed: Option<bool>,
    has_machine_id: Option<bool>,
    names: Opened,
}

impl Prepared {
    /// Opens it. `has_resolvers`: the list of name servers is this machine's own, and not its image's.
    pub(crate) fn new(has_resolvers: bool) -> Prepared {
        let names = ["/etc/hostname", "/etc/hosts"].into_iter();
        let names = names.chain(has_resolvers.then_some("/etc/resolv.conf"));
        let is_sealed = root::is_sealed().ok();
        let names = match is_sealed {
            Some(false) => Opened::of(names.map(Path::new)),
            // It could not be written to.
            Some(true) | None => Opened::default(),
        };
        Prepared {
            is_sealed,
            has_machine_id: Some(etc::has_machine_id()),
            names,
        }
    }
}

/// Makes another machine of a guest that is a copy: names, network, secrets.
///
/// # Errors
/// The first [`SetupError`]; the guest is not to run then.
pub(crate) fn renew(identity: &Identity, prepared: &Prepared) -> Result<(), SetupError> {
    // Nothing else runs meanwhile.
    let is_sealed = match prepared.is_sealed {
        Some(is_sealed) => is_sealed,
        None => root::is_sealed()?,
    };
    let how = Writing::Over(&prepared.names);
    if is_sealed {
        root::unseal()?;
    }
    if prepared.has_machine_id.unwrap_or_else(etc::has_machine_id) {
        etc::write_machine_id(&identity.machine_id, how)?;
    }
    etc::write_names(
        &identity.hostname,
        &identity.hosts,
        (&identity.nameservers, &identity.search),
        how,
    )?;
    secrets::write_all(&identity.secrets)?;
    secrets::place_all(&identity.secrets)?;
    if is_sealed {
        root::seal()?;
    }
    network::renew(&identity.interfaces, &identity.routes)
}

/// What [`renew`] will do, with what there is.
pub(crate) fn rehearse(prepared: &Prepared) {
    let name = rustix::system::uname();
    let _ = rustix::system::sethostname(name.nodename().to_bytes());
    prepared.names.rehearse();
    network::rehearse();
}

/// Sets the guest up as `config` says. What is mounted when a step fails is in `outcome` all the same.
///
/// # Errors
/// The first [`SetupError`]; the guest is then good for nothing but a power-off.
pub(crate) fn configure(config: &BootConfig, phases: &mut Phases, outcome: &mut Outcome) -> Result<(), SetupError> {
    // Not before it is said whether there is any: this is most of what all modules take.
    match config.root.upper {
        Upper::WithoutImage => modules::keep_for_disks()?,
        _ => modules::load_for_disks()?,
    }
    phases.end("disk modules");
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
    outcome.layers = root::assemble(&config.root, config.read_ahead_kib, &mut outcome.writable)?;
    phases.end("root");
    root::switch()?;
    phases.end("switch");
    let read_only = matches!(config.root.upper, Upper::ReadOnly | Upper::WithoutImage);
    special::mount_all(read_only, config.shm_bytes, &mut outcome.warnings)?;
    phases.end("special");
    let resolvers = (&*config.nameservers, &*config.search);
    etc::write_names(&config.hostname, &config.hosts, resolvers, Writing::Beside)?;
    if config.first_start {
        etc::remove_host_keys(&mut outcome.warnings);
    }
    etc::authorize(&config.ssh_keys)?;
    secrets::write_all(&config.secrets)?;
    phases.end("files");
    network::set_up(&config.interfaces, &config.routes)?;
    // After the network: settings of interfaces need those.
    special::set_kernel(&config.sysctls)?;
    phases.end("network");
    volumes::mount_all(&config.mounts, &mut outcome.writable)?;
    // After the volumes: what is made here is nothing that a volume could take over from the image.
    volumes::make_directories(&config.directories, &mut outcome.warnings);
    special::mount_tmpfs(&config.tmpfs)?;
    // Over all of these.
    secrets::place_all(&config.secrets)?;
    outcome.sockets = sockets::listen_all(&config.sockets)?;
    phases.end("mounts");
    if read_only {
        root::seal()?;
    }
    Ok(())
}
