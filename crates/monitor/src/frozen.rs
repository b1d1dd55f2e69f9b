//! A machine that is being saved, and one that goes on from what was saved, as values.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use tokio::sync::oneshot;
use zmachine_spec::Failure;
use zmachine_spec::control::Reply;

use zmachine_agent_client::clock::GuestClock;

/// A saving that is under way: its guest stands still, or not.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Where it is saved.
    pub(super) folder: PathBuf,
    /// Who is told of its end.
    pub(super) client: oneshot::Sender<Reply>,
    /// What the guest's agent said, and its clock.
    pub(super) result: Result<Option<GuestClock>, Failure>,
    /// It is saved to be ended, as nobody has to do with it.
    pub(super) to_sleep: bool,
}

/// What a machine goes on from.
#[derive(Debug)]
pub struct Restore {
    /// The folder of the snapshot.
    pub folder: PathBuf,
    /// Its memory, as it was.
    pub memory: OwnedFd,
    /// The memory is that of others as well.
    pub is_shared: bool,
    /// The machine is another one than was saved.
    pub is_fork: bool,
}
