//! The memory that a machine goes on with: its snapshot's file, or what other machines of the same snapshot have of it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use zmachine_spec::{Class, Failure};
use zmachine_store::snapshot::holders::Holders;
use zmachine_store::snapshot::{MEMORY, Snapshot, memory};

use crate::Engine;
use crate::snapshots::open;

impl Engine {
    /// The snapshot's memory for a machine that shares it: that of those that run, or else of the file.
    pub(super) fn shared_memory(&self, snapshot: &Snapshot, folder: &Path) -> Result<(OwnedFd, Holders), Failure> {
        let holders = Holders::of(&self.home, snapshot);
        let memory = match holders.find() {
            Some(memory) => memory,
            None => {
                let memory = load(snapshot, folder, Some(&holders))?;
                self.keep_memory_of(folder, &memory);
                memory
            }
        };
        Ok((memory, holders))
    }
}

/// The snapshot's memory, held against what was saved.
pub(super) fn load(snapshot: &Snapshot, folder: &Path, holders: Option<&Holders>) -> Result<OwnedFd, Failure> {
    let name = snapshot.name();
    let saved = snapshot.require_memory()?;
    let read = open(folder, MEMORY)
        .map_err(Failure::from)
        .and_then(|file| memory::load(&file, &saved.memory, holders).map_err(Failure::from));
    read.map_err(|failure| {
        failure
            .context(format!("the memory of the snapshot '{name}' cannot be read"))
            .hint(format!("remove it: zmachine snapshot rm {name}"))
    })
}

/// Shared memory that is read in a thread, while the first machine that begins with it is made.
#[derive(Debug)]
pub(super) struct Reading {
    reader: Mutex<Option<JoinHandle<Result<OwnedFd, Failure>>>>,
    memory: OnceLock<Result<OwnedFd, Failure>>,
    /// Nobody had it, and nobody has been told of it.
    is_new: AtomicBool,
}

impl Reading {
    pub(super) fn begin(snapshot: &Snapshot, folder: &Path, holders: &Holders) -> Result<Reading, Failure> {
        if let Some(memory) = holders.find() {
            return Ok(Reading {
                reader: Mutex::new(None),
                memory: OnceLock::from(Ok(memory)),
                is_new: AtomicBool::new(false),
            });
        }
        let (snapshot, folder, holders) = (snapshot.clone(), folder.to_owned(), holders.clone());
        let read = move || load(&snapshot, &folder, Some(&holders));
        let reader = std::thread::Builder::new().name("memory".to_owned()).spawn(read)?;
        Ok(Reading {
            reader: Mutex::new(Some(reader)),
            memory: OnceLock::new(),
            is_new: AtomicBool::new(true),
        })
    }

    /// Whether it was read from the file, the first time that somebody asks.
    pub(super) fn was_read(&self) -> bool {
        self.is_new.swap(false, Ordering::Relaxed)
    }

    /// The memory, once it is whole.
    pub(super) fn end(&self) -> Result<OwnedFd, Failure> {
        let join = || {
            let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
            let joined = reader.and_then(|reader| reader.join().ok());
            let early = || Failure::new(Class::Failed, "the thread that reads the snapshot's memory ended early");
            joined.unwrap_or_else(|| Err(early()))
        };
        match self.memory.get_or_init(join) {
            Ok(memory) => Ok(memory.try_clone()?),
            Err(failure) => Err(failure.clone()),
        }
    }
}
