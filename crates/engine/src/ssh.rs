//! A way into machines by SSH: a key of the home's own, which its VMs are told of when they are made, and where they are.
//!
//! ```text
//! ssh/id_ed25519, ssh/id_ed25519.pub   made when the first VM is, or when they are first needed
//! ssh/known_hosts                      the host keys that machines showed, by their ids
//! ```

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use zmachine_agent_protocol::Process;
use zmachine_network::{Attachment, Protocol};
use zmachine_plan::Plan;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file;
use zmachine_sys::lock::FileLock;

use crate::Engine;
use crate::transfer::FromGuest;

/// The port of SSH in a machine.
const PORT: u16 = 22;

/// How long another command may take to make the key.
const PATIENCE: Duration = Duration::from_secs(30);

/// Adds a key to those that the user it runs as accepts.
const ACCEPT: &str = "umask 077 && mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && \
    { grep -qxF \"$1\" ~/.ssh/authorized_keys || echo \"$1\" >>~/.ssh/authorized_keys; }";

/// What a client of SSH needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshTarget {
    /// Where it listens.
    pub address: IpAddr,
    /// On which port.
    pub port: u16,
    /// The private key.
    pub key: PathBuf,
    /// The file with host keys.
    pub known_hosts: PathBuf,
    /// What the machine is called there.
    pub alias: String,
}

impl Engine {
    /// The home's key, made when it is not there; `None` on a host without `ssh-keygen`.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub(super) fn ssh_key(&self) -> Result<Option<(PathBuf, String)>, Failure> {
        let folder = self.home.data().join("ssh");
        let key = folder.join("id_ed25519");
        let public = folder.join("id_ed25519.pub");
        file::make_dirs(&folder)?;
        let lock = FileLock::exclusive_within(&folder.join("lock"), PATIENCE)?;
        let _lock = lock.ok_or_else(|| Failure::new(Class::Conflict, "another command makes the home's SSH key"))?;
        if !public.is_file() {
            file::remove_if_there(&key)?;
            let mut keygen = Command::new("ssh-keygen");
            keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "zmachine", "-f"])
                .arg(&key);
            match keygen.stdin(Stdio::null()).stdout(Stdio::null()).output() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Failure::from(error).context("cannot start ssh-keygen")),
                Ok(made) if made.status.success() => {}
                Ok(made) => {
                    let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
                    return Err(Failure::new(Class::Failed, format!("ssh-keygen made no key: {why}")));
                }
            }
        }
        let text = file::read_text(&public, 1 << 16)?;
        Ok(Some((key, text.trim().to_owned())))
    }

    /// How `user` of a running machine is reached by SSH. The key is brought there when the machine was not told of it and has an agent.
    ///
    /// # Errors
    /// [`Class::Conflict`] when it does not run, [`Class::Unsupported`] when it has no address that this host reaches, or no key can be made.
    pub fn ssh_target(&self, name: &str, user: &str) -> Result<SshTarget, Failure> {
        let machine = self.machine(name)?;
        crate::client::require_awake(&machine)?;
        let name = &machine.spec.name;
        let plan = machine.plan()?;
        let (address, port) = place(plan.attachments()).ok_or_else(|| {
            Failure::new(
                Class::Unsupported,
                format!("'{name}' has no address that this host reaches"),
            )
            .hint("publish its port, as in -p 2222:22, or join it to a network")
        })?;
        let (key, public) = self.ssh_key()?.ok_or_else(|| {
            Failure::new(Class::Unsupported, "there is no ssh-keygen on this host")
                .hint("install OpenSSH's client (Debian: openssh-client)")
        })?;
        let is_told = match &plan {
            Plan::Vm(plan) => user == "root" && plan.seed.ssh_keys.contains(&public),
            Plan::Container(_) => false,
        };
        if !is_told && let Err(failure) = self.bring_key(name, user, &public) {
            // Whoever has another key gets in all the same.
            (self.warn)(&format!(
                "the home's SSH key could not be brought to {user} of '{name}': {}",
                failure.message
            ));
        }
        Ok(SshTarget {
            address,
            port,
            key,
            known_hosts: self.home.data().join("ssh/known_hosts"),
            alias: machine.id,
        })
    }

    fn bring_key(&self, name: &str, user: &str, public: &str) -> Result<(), Failure> {
        let words = ["sh", "-c", ACCEPT, "zmachine", public];
        let process = Process {
            user: Some(user.to_owned()),
            ..Process::new(words)
        };
        let (_input, output) = self.exec(name, process)?;
        FromGuest::new(output).end(|_| ())
    }
}

/// Where this host reaches the port of SSH: at the machine's own address, else where that is published.
fn place(attachments: &[Attachment]) -> Option<(IpAddr, u16)> {
    let own = attachments.iter().filter(|attachment| attachment.user.is_none());
    if let Some(address) = own.flat_map(|attachment| &attachment.addresses).next() {
        return Some((address.addr(), PORT));
    }
    let published = attachments.iter().flat_map(|attachment| &attachment.publish);
    published
        .filter(|publish| publish.protocol == Protocol::Tcp)
        .find_map(|publish| {
            let (port, _) = publish
                .host
                .ports()
                .zip(publish.guest.ports())
                .find(|(_, guest)| *guest == PORT)?;
            let address = publish.address.filter(|address| !address.is_unspecified());
            Some((address.unwrap_or(IpAddr::from([127, 0, 0, 1])), port))
        })
}
