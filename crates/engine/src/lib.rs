//! The engine: every operation on machines, for the command line and any other front end.
//!
//! It parents nothing: a started machine belongs to its monitor. Calls block the calling thread.
//!
//! # Invariants
//! [`Engine::reconcile`] comes before every operation, so nobody ever sees a machine "running" whose monitor is dead, or
//! a resource that such a machine left.

pub mod attach;
mod client;
mod create;
mod history;
mod image_facts;
mod images;
mod measure;
mod networks;
mod prune;
mod published;
mod reconcile;
mod remove;
mod start;
pub mod stats;
mod tree;
mod vm;

use std::path::PathBuf;

use zmachine_network::Networks;
use zmachine_spec::{Class, Failure, Home};
use zmachine_store::catalog::{self, Machine};
use zmachine_store::killpoint::Killpoints;
use zmachine_store::volume::Volumes;

pub use self::create::CreateOptions;
pub use self::history::History;
pub use self::images::{FoundImage, ImageRequest, RegistryFiles, Removed, guest_level, import_failure};
pub use self::prune::Shared;
pub use self::start::Starting;

/// The engine over one home.
#[derive(Debug)]
pub struct Engine {
    home: Home,
    agent: PathBuf,
    kill: Killpoints,
    monitor_abort_at: Option<u32>,
    registry_files: RegistryFiles,
}

/// One machine of a listing; for one whose state cannot be read, its id and why.
pub type Listed = Result<Machine, (String, Failure)>;

/// Where a test wants a process to end; see [`zmachine_store::killpoint`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AbortAt {
    /// In the calling process.
    pub engine: Option<u32>,
    /// In the monitors it starts.
    pub monitor: Option<u32>,
}

impl Engine {
    /// An engine over `home`, which puts the static guest agent `agent` into its machines.
    pub fn new(home: Home, agent: PathBuf, abort_at: AbortAt) -> Engine {
        Engine {
            registry_files: RegistryFiles::of(&home),
            home,
            agent,
            kill: Killpoints::new(abort_at.engine),
            monitor_abort_at: abort_at.monitor,
        }
    }

    /// The state it works on.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// One machine, by name, id or unique prefix of its id.
    ///
    /// # Errors
    /// When there is none, or its state cannot be read.
    pub fn machine(&self, name: &str) -> Result<Machine, Failure> {
        Machine::load(&self.home, &catalog::find(&self.home, name)?)
    }

    /// All machines, oldest first; for one whose state cannot be read, its id and why.
    ///
    /// # Errors
    /// When the folder of machines cannot be read.
    pub fn machines(&self) -> Result<Vec<Listed>, Failure> {
        let mut all: Vec<Listed> = Vec::new();
        for id in catalog::ids(&self.home)? {
            match Machine::load(&self.home, &id) {
                Ok(machine) => all.push(Ok(machine)),
                // Removed since the listing.
                Err(failure) if failure.class == Class::NotFound => {}
                Err(failure) => all.push(Err((id, failure))),
            }
        }
        all.sort_by_key(|m| m.as_ref().map_or(jiff::Timestamp::MIN, |m| m.state.created_at));
        Ok(all)
    }

    /// What is wrong with the names of machines, a line each; nothing when all is well. No machine is lost by it.
    ///
    /// # Errors
    /// When names or machines cannot be listed.
    pub fn name_findings(&self) -> Result<Vec<String>, Failure> {
        let line = |id: String| {
            let name = Machine::load(&self.home, &id).map(|machine| format!(" ('{}')", machine.spec.name));
            format!("machine {id}{} has lost the link of its name", name.unwrap_or_default())
        };
        Ok(catalog::nameless(&self.home)?.into_iter().map(line).collect())
    }

    /// Gives machines that lost their name the one of their spec again: a line for each.
    ///
    /// # Errors
    /// When machines cannot be listed, or one cannot have its name: it is kept, and goes by its id.
    pub fn repair_names(&self) -> Result<Vec<String>, Failure> {
        let _catalog = catalog::lock(&self.home)?;
        let mut lines = Vec::new();
        let mut first = None;
        for repaired in catalog::repair_names(&self.home)? {
            match repaired {
                Ok(name) => lines.push(format!("machine '{name}' has its name again")),
                Err((id, failure)) => {
                    let failure = failure.context(format!("machine {id} cannot have its name again"));
                    first.get_or_insert(failure.hint(format!("'zmachine inspect {id}' shows it; it goes by its id")));
                }
            }
        }
        match first {
            Some(failure) => Err(failure),
            None => Ok(lines),
        }
    }

    /// The failure with machines' names in place of their ids, which is all that networks know.
    pub fn with_names(&self, mut failure: Failure) -> Failure {
        let readable = self.machines().unwrap_or_default().into_iter().flatten();
        for machine in readable {
            let (id, name) = (&machine.id, &machine.spec.name);
            let message = failure
                .message
                .replace(&format!("machine {id}"), &format!("the machine '{name}'"));
            failure.message = message.replace(id, &format!("'{name}'"));
        }
        failure
    }

    fn networks(&self) -> Result<Networks, Failure> {
        Ok(Networks::open(self.home.data())?.with_jail())
    }

    /// The volumes of its home.
    pub fn volumes(&self) -> Volumes {
        Volumes::new(&self.home)
    }

    /// Runs a future of the network crate to its end.
    fn block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, Failure> {
        Ok(tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(future))
    }
}
