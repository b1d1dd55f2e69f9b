//! Processes of a machine that have an id: they live on when their client goes, and another one finds them by it.
//!
//! The process and what it wrote are kept by the agent in the guest (`exec_sessions` asks for them). Here is the record of
//! each: what it is, since when it runs, how it ended.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;
use zmachine_spec::control::ExecRecord;
use zmachine_spec::{Class, Failure};

/// Of so many processes that ended, the record is kept.
const ENDED_KEPT: usize = 256;

/// The longest id, as the agent has it.
const ID_LIMIT: usize = 128;

/// The records of one run of the machine.
#[derive(Debug, Clone, Default)]
pub(super) struct Execs(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Oldest first.
    known: Vec<watch::Sender<ExecRecord>>,
    /// Ids of processes that are about to start.
    starting: BTreeSet<String>,
}

impl Table {
    fn find(&self, id: &str) -> Option<&watch::Sender<ExecRecord>> {
        self.known.iter().find(|known| known.borrow().id == id)
    }
}

impl Execs {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every record, oldest first.
    pub(super) fn all(&self) -> Vec<ExecRecord> {
        self.lock().known.iter().map(|known| known.borrow().clone()).collect()
    }

    /// The record of a process that has ended, once it has.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub(super) async fn wait(&self, id: &str) -> Result<ExecRecord, Failure> {
        let mut known = self
            .lock()
            .find(id)
            .map(watch::Sender::subscribe)
            .ok_or_else(|| unknown(id))?;
        let record = match known.wait_for(|record| record.ended.is_some()).await {
            Ok(record) => Some(record.clone()),
            Err(_) => None,
        };
        Ok(record.unwrap_or_else(|| known.borrow().clone()))
    }

    /// The record of one process.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub(super) fn get(&self, id: &str) -> Result<ExecRecord, Failure> {
        let table = self.lock();
        let known = table.find(id).ok_or_else(|| unknown(id))?;
        Ok(known.borrow().clone())
    }

    /// Takes the id, or makes one up.
    ///
    /// # Errors
    /// [`Class::Usage`] for what is no id, [`Class::Conflict`] for one in use.
    pub(super) fn reserve(&self, id: Option<String>) -> Result<Reserved, Failure> {
        let mut table = self.lock();
        let is_used = |table: &Table, id: &str| table.starting.contains(id) || table.find(id).is_some();
        let id = match id {
            Some(id) => {
                let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
                if id.is_empty() || id.len() > ID_LIMIT || !id.bytes().all(is_plain) {
                    let message = format!("'{id}' cannot be the id of a process");
                    let hint = format!("an id has 1 to {ID_LIMIT} of a-z A-Z 0-9 _ . -");
                    return Err(Failure::new(Class::Usage, message).hint(hint));
                }
                if is_used(&table, &id) {
                    let message = format!("there is a process '{id}' in this machine already");
                    return Err(Failure::new(Class::Conflict, message).hint("choose another id, or none"));
                }
                id
            }
            None => loop {
                let id = zmachine_store::catalog::new_id();
                if !is_used(&table, &id) {
                    break id;
                }
            },
        };
        table.starting.insert(id.clone());
        Ok(Reserved {
            execs: self.clone(),
            id,
        })
    }
}

/// An id whose process is about to start; free again when this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    execs: Execs,
    pub(super) id: String,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.execs.lock().starting.remove(&self.id);
    }
}

impl Reserved {
    /// The process runs; its record.
    pub(super) fn started(self, args: Vec<String>, pid: u32) -> watch::Sender<ExecRecord> {
        let (known, _) = watch::channel(ExecRecord {
            id: self.id.clone(),
            args,
            pid,
            started_at: Timestamp::now(),
            ended: None,
        });
        let mut table = self.execs.lock();
        table.known.push(known.clone());
        let ended = table
            .known
            .iter()
            .filter(|known| known.borrow().ended.is_some())
            .count();
        if ended > ENDED_KEPT {
            let oldest = table.known.iter().position(|known| known.borrow().ended.is_some());
            oldest.map(|index| table.known.remove(index));
        }
        drop(table);
        known
    }
}

fn unknown(id: &str) -> Failure {
    Failure::new(Class::NotFound, format!("there is no process '{id}' in this machine"))
        .hint("ids are known until the machine ends")
}
