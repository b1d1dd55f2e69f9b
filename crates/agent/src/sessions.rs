//! The processes that outlive their streams, by id. `None` is the entrypoint.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use futures::io::AsyncWriteExt;
use tokio::sync::Notify;
use zmachine_agent_protocol::{ExitStatus, FrameDecoder, SessionState};

use crate::process::{Ended, Handle, NextStreams, handle};

/// The longest id, in bytes.
const ID_LIMIT: usize = 128;

/// Of so many that ended, the end and the last output are kept for a host that comes later.
const ENDED_KEPT: usize = 16;

type Id = Option<String>;

#[derive(Debug)]
struct Running {
    /// 0 until it is known.
    pid: i32,
    handle: Handle,
    /// How its process ended, where somebody said so while its output is still on its way.
    exited: Option<ExitStatus>,
}

/// All of a boot.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    running: RefCell<BTreeMap<Id, Running>>,
    ended: RefCell<VecDeque<(Id, Ended)>>,
    one_ended: Notify,
}

impl Sessions {
    /// Takes an id, for a process that is about to start.
    ///
    /// # Errors
    /// When it is no id, or in use.
    pub(crate) fn begin(&self, id: Id) -> Result<NextStreams, String> {
        if let Some(id) = &id
            && (id.is_empty() || id.len() > ID_LIMIT)
        {
            return Err(format!("a session's id has 1 to {ID_LIMIT} bytes"));
        }
        let is_ended = self.ended.borrow().iter().any(|(other, _)| *other == id);
        if is_ended || self.running.borrow().contains_key(&id) {
            return Err(format!("there is a session {:?} already", id.unwrap_or_default()));
        }
        let (handle, next) = handle();
        self.running.borrow_mut().insert(
            id,
            Running {
                pid: 0,
                handle,
                exited: None,
            },
        );
        Ok(next)
    }

    /// Its process runs.
    pub(crate) fn started(&self, id: &Id, pid: i32) {
        if let Some(running) = self.running.borrow_mut().get_mut(id) {
            running.pid = pid;
        }
    }

    /// Its process has ended, and its output may wait for whoever reads it.
    pub(crate) fn exited(&self, id: &Id, status: ExitStatus) {
        if let Some(running) = self.running.borrow_mut().get_mut(id) {
            running.exited = Some(status);
        }
        self.one_ended.notify_waiters();
    }

    /// Its process is gone, or never was.
    pub(crate) fn end(&self, id: Id, ended: Option<Ended>) {
        self.running.borrow_mut().remove(&id);
        if let Some(ended) = ended {
            let mut all = self.ended.borrow_mut();
            all.push_back((id, ended));
            if all.len() > ENDED_KEPT {
                all.pop_front();
            }
        }
        self.one_ended.notify_waiters();
    }

    /// Waits for a session's end, or for that of its process where somebody tells of it; `None` when there is no such session.
    pub(crate) async fn wait(&self, id: &Id) -> Option<ExitStatus> {
        loop {
            if let Some((_, ended)) = self.ended.borrow().iter().find(|(other, _)| other == id) {
                return Some(ended.status);
            }
            let exited = self.running.borrow().get(id).map(|running| running.exited)?;
            if exited.is_some() {
                return exited;
            }
            self.one_ended.notified().await;
        }
    }

    /// Gives a session the stream of a host that has `received` bytes of its output.
    ///
    /// # Errors
    /// The stream, when there is no such session.
    pub(crate) async fn resume(
        &self,
        id: &Id,
        mut stream: yamux::Stream,
        decoder: FrameDecoder,
        received: u64,
    ) -> Result<(), yamux::Stream> {
        if let Some(running) = self.running.borrow().get(id) {
            running.handle.resume(stream, decoder, received);
            return Ok(());
        }
        let ended = self
            .ended
            .borrow()
            .iter()
            .find(|(other, _)| other == id)
            .map(|(_, ended)| ended.resumed(received));
        let Some(bytes) = ended else { return Err(stream) };
        // A host that is gone again asks again.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.close().await;
        Ok(())
    }

    /// Bytes of output of the entrypoint that were sent so far.
    pub(crate) fn sent_of_entrypoint(&self) -> u64 {
        let running = self.running.borrow();
        running.get(&None).map_or(0, |running| running.handle.sent())
    }

    /// All of them, the entrypoint first.
    pub(crate) fn states(&self) -> Vec<SessionState> {
        let mut all: Vec<SessionState> = Vec::new();
        for (id, running) in &*self.running.borrow() {
            all.push(SessionState {
                id: id.clone(),
                pid: running.pid as u32,
                exited: None,
            });
        }
        for (id, ended) in &*self.ended.borrow() {
            all.push(SessionState {
                id: id.clone(),
                pid: ended.pid() as u32,
                exited: Some(ended.status),
            });
        }
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }
}
