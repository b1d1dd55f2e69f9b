//! Why a container, or a process of it, does not start.

use rustix::io::Errno;
use thiserror::Error;
use zmachine_agent_protocol::ErrorKind;

/// Why a container, or a process of it, does not start.
#[derive(Debug, Error)]
pub(crate) enum ContainerError {
    /// Nothing that a container could have.
    #[error("{what} cannot be used")]
    Unusable { what: String },
    /// The program is nowhere.
    #[error("{program}: not found")]
    NotFound { program: String },
    /// The program is there.
    #[error("{program}: {reason}")]
    NotExecutable { program: String, reason: String },
    /// The working directory cannot be entered.
    #[error("working directory {path}: {source}")]
    WorkingDirectory { path: String, source: Errno },
    /// A file system is not there for it.
    #[error("mount {what} on {target}: {source}")]
    Mount {
        what: String,
        target: String,
        source: Errno,
    },
    /// A step that the guest's kernel refused.
    #[error("{step}: {source}")]
    Step { step: String, source: Errno },
    /// What the process said that was to become the program.
    #[error("{message}")]
    Child { kind: ErrorKind, message: String },
}

impl ContainerError {
    /// The class of the failure on the wire.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            ContainerError::Unusable { .. } => ErrorKind::BadRequest,
            ContainerError::NotFound { .. } => ErrorKind::CommandNotFound,
            ContainerError::NotExecutable { .. } => ErrorKind::CommandNotExecutable,
            ContainerError::WorkingDirectory { .. } => ErrorKind::WorkingDirectory,
            ContainerError::Mount { .. } => ErrorKind::Setup,
            ContainerError::Step { .. } => ErrorKind::Internal,
            ContainerError::Child { kind, .. } => *kind,
        }
    }
}

/// Names the step that an error of the kernel ended.
pub(super) fn step<E: Into<Errno>>(step: impl Into<String>) -> impl FnOnce(E) -> ContainerError {
    let step = step.into();
    move |source| ContainerError::Step {
        step,
        source: source.into(),
    }
}

/// The error number in an error of the standard library.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
