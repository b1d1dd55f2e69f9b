//! Failures, and how containerd is told of them.

use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::proto::Code;
use thiserror::Error;
use zmachine_spec::{Class, Failure};

/// Why something is not done.
#[derive(Debug, Error)]
pub(crate) enum ShimError {
    /// The caller asks for something that makes no sense, or that no machine has.
    #[error("{0}")]
    Invalid(String),
    /// There is no such container, process or sandbox, or it has ended.
    #[error("{0}")]
    NotFound(String),
    /// It is there already.
    #[error("{0}")]
    Exists(String),
    /// It does not go with the state that the thing is in.
    #[error("{0}")]
    State(String),
    /// Nothing here does that.
    #[error("{0}")]
    Unsupported(String),
    /// The machine, or this host.
    #[error("{0}")]
    Machine(#[from] Failure),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl ShimError {
    /// With what was tried in front of it.
    pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> ShimError {
        ShimError::Failed(format!("{what}: {error}"))
    }
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> ttrpc::Error {
        let code = match &error {
            ShimError::Invalid(_) => Code::INVALID_ARGUMENT,
            ShimError::NotFound(_) => Code::NOT_FOUND,
            ShimError::Exists(_) => Code::ALREADY_EXISTS,
            ShimError::State(_) => Code::FAILED_PRECONDITION,
            ShimError::Unsupported(_) => Code::UNIMPLEMENTED,
            ShimError::Machine(failure) => match failure.class {
                Class::Usage => Code::INVALID_ARGUMENT,
                Class::NotFound => Code::NOT_FOUND,
                _ => Code::UNKNOWN,
            },
            ShimError::Failed(_) => Code::UNKNOWN,
        };
        let message = match &error {
            ShimError::Machine(failure) => with_hint(failure),
            other => other.to_string(),
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
    }
}

/// What a failure says, and what to do about it, in one line.
pub(crate) fn with_hint(failure: &Failure) -> String {
    match &failure.hint {
        Some(hint) if !hint.is_empty() => format!("{failure} ({hint})"),
        _ => failure.to_string(),
    }
}
