//! Whether anybody has to do with the machine: clients of its control socket.
//!
//! While it is asleep nobody is served. Those who come then are kept with what they want, and are served when it runs again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;
use zmachine_spec::control::Request;

use zmachine_agent_client::session::{Reader, Writer};

/// Clients that wait for a machine that is asleep; those beyond are refused.
const WAITING: usize = 256;

/// A client, and what it wants.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: Request,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
}

/// Who has to do with the machine.
#[derive(Debug, Clone, Default)]
pub(super) struct Activity(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    table: Mutex<Table>,
    came: Notify,
}

#[derive(Debug)]
struct Table {
    /// Clients that are being served.
    served: usize,
    /// When the last one went.
    last: Instant,
    is_asleep: bool,
    /// Somebody has done something in the guest.
    is_touched: bool,
    waiting: Vec<Waiting>,
}

impl Default for Table {
    fn default() -> Table {
        Table {
            served: 0,
            last: Instant::now(),
            is_asleep: false,
            is_touched: false,
            waiting: Vec::new(),
        }
    }
}

/// A client that is being served.
#[derive(Debug)]
pub(super) struct Served(Activity);

impl Drop for Served {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.served -= 1;
        table.last = Instant::now();
    }
}

/// Whether what a client wants is a reason to keep a machine awake, or to wake it: not what only looks at it, or waits for its end.
pub(super) fn counts(request: &Request) -> bool {
    !matches!(
        request,
        Request::Wait
            | Request::Kill
            | Request::Change(_)
            | Request::Traffic
            | Request::Capacity
            | Request::Processes
            | Request::Execs
    )
}

/// Whether what a client wants may leave something behind in the guest.
fn touches(request: &Request) -> bool {
    matches!(
        request,
        Request::Exec(_) | Request::StartExec { .. } | Request::Transfer(_) | Request::Dial { .. } | Request::Signal(_)
    )
}

impl Activity {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client is being served from here on; `None` while the machine is asleep.
    pub(super) fn serve(&self, request: &Request) -> Option<Served> {
        let mut table = self.table();
        table.is_touched |= touches(request);
        if table.is_asleep {
            return None;
        }
        table.served += 1;
        Some(Served(self.clone()))
    }

    /// Whether a client has done something in the guest that it would not have done by itself.
    pub(super) fn is_touched(&self) -> bool {
        self.table().is_touched
    }

    /// Keeps a client until the machine runs again.
    ///
    /// # Errors
    /// It comes back when there are too many.
    pub(super) fn keep(&self, client: Waiting) -> Result<(), Box<Waiting>> {
        let mut table = self.table();
        if table.waiting.len() >= WAITING {
            return Err(Box::new(client));
        }
        table.waiting.push(client);
        self.0.came.notify_one();
        Ok(())
    }

    /// Whether the machine is asleep, or on its way back.
    pub(super) fn is_asleep(&self) -> bool {
        self.table().is_asleep
    }

    /// Since when nobody has been served; `None` while somebody is.
    pub(super) fn quiet_since(&self) -> Option<Instant> {
        let table = self.table();
        (table.served == 0).then_some(table.last)
    }

    /// Serves nobody from here on, unless somebody is being served.
    pub(super) fn fall_asleep(&self) -> bool {
        let mut table = self.table();
        table.is_asleep = table.served == 0;
        table.is_asleep
    }

    /// Resolves when a client waits.
    pub(super) async fn somebody_came(&self) {
        loop {
            let came = self.0.came.notified();
            if !self.table().waiting.is_empty() {
                return;
            }
            came.await;
        }
    }

    /// Serves everybody again; those who have waited.
    pub(super) fn wake(&self) -> Vec<Waiting> {
        let mut table = self.table();
        table.is_asleep = false;
        table.last = Instant::now();
        std::mem::take(&mut table.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_comes_while_it_is_asleep_is_served_afterwards() {
        let activity = Activity::default();
        let served = activity.serve(&Request::Pause).unwrap();
        assert!(activity.quiet_since().is_none());
        assert!(!activity.fall_asleep(), "somebody is being served");
        drop(served);
        assert!(activity.quiet_since().is_some());
        assert!(activity.fall_asleep());
        assert!(activity.serve(&Request::Pause).is_none());
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let (read, write) = ours.into_split();
        let client = Waiting {
            request: Request::Pause,
            reader: zmachine_agent_client::session::FrameReader::new(read),
            writer: zmachine_agent_client::session::FrameWriter::new(write),
        };
        activity.keep(client).unwrap();
        activity.somebody_came().await;
        let waiting = activity.wake();
        assert_eq!(waiting.len(), 1);
        assert!(activity.serve(&Request::Pause).is_some());
    }

    #[test]
    fn who_does_something_in_the_guest_has_touched_it() {
        let activity = Activity::default();
        drop(activity.serve(&Request::Processes));
        assert!(!activity.is_touched());
        drop(activity.serve(&Request::Signal(1)));
        assert!(activity.is_touched());
    }

    #[test]
    fn looking_at_a_machine_is_no_reason_to_wake_it() {
        assert!(!counts(&Request::Processes) && !counts(&Request::Wait));
        assert!(counts(&Request::Pause) && counts(&Request::Stop { grace_ms: None }));
    }
}
