//! Starts processes of the guest and carries their input and output.
//!
//! ```text
//! Process (wire) ──plan──> Plan: program candidates, C strings, identity      (plan)
//!                ──stdio─> pipes or a pseudo terminal                          (stdio)
//!                ──fork──> pid, or why the program does not run                (spawn)
//!                ──pump──> frames of the stream until `Exited`                 (pump)
//!                ──resume> the same on the stream of a host that takes over    (resume)
//! ```
//!
//! The entrypoint is PID 1 of PID and mount namespaces of its own, and every later process joins them: what is in the
//! container sees neither the agent nor its `/proc`. The agent is outside, so that it may signal PID 1 and reap it.

mod plan;
mod pump;
pub(crate) mod rehearsal;
mod resume;
mod spawn;
mod stdio;
mod transfer;

use rustix::io::Errno;
use thiserror::Error;
use zmachine_agent_protocol::ErrorKind;

use crate::users::UserError;
pub(crate) use plan::{DEFAULT_PATH, Plan, candidates};
pub(crate) use pump::Session;
pub(crate) use resume::{Ended, Handle, NextStreams, handle};
pub(crate) use spawn::{
    Namespaces, REPORT, Started, Step, check, connect_stdio, execute, fork_in, own_pids, pidfd, pointers, report,
    reset_signals, set_namespace, start, take_terminal, work,
};
pub(crate) use stdio::{AgentSide, ChildSide, open as open_stdio};

/// Why a process does not run.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    /// An argument or variable cannot be passed to a program.
    #[error("{what} cannot be passed to a program")]
    Unusable { what: String },
    /// Nobody to run as.
    #[error(transparent)]
    User(#[from] UserError),
    /// The program is nowhere.
    #[error("{program}: not found")]
    NotFound { program: String },
    /// The program is there.
    #[error("{program}: {reason}")]
    NotExecutable { program: String, reason: String },
    /// The working directory cannot be entered.
    #[error("working directory {path}: {source}")]
    WorkingDirectory { path: String, source: Errno },
    /// A step before the program failed.
    #[error("{step}: {source}")]
    Step { step: &'static str, source: Errno },
}

impl StartError {
    /// The class of the failure on the wire.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            StartError::Unusable { .. } => ErrorKind::BadRequest,
            StartError::User(UserError::Read { .. }) | StartError::Step { .. } => ErrorKind::Internal,
            StartError::User(_) => ErrorKind::UnknownUser,
            StartError::NotFound { .. } => ErrorKind::CommandNotFound,
            StartError::NotExecutable { .. } => ErrorKind::CommandNotExecutable,
            StartError::WorkingDirectory { .. } => ErrorKind::WorkingDirectory,
        }
    }
}
