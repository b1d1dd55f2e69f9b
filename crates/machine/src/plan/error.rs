//! Why a machine can not be planned: every refusal there is, with its class and what to do.

use thiserror::Error;

use super::{MIN_MEMORY, MIN_SIZE};
use crate::bytes::Human;
use crate::failure::{Class, Failure};

/// Why a machine can not be planned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("{cpus} CPUs are more than the {available} of this host")]
    Cpus { cpus: u32, available: u32 },
    #[error("a machine needs at least one CPU")]
    NoCpu,
    #[error("{} of memory are below the {} that a machine needs", Human(*bytes), Human(MIN_MEMORY))]
    MemoryTooSmall { bytes: u64 },
    #[error("{} of memory are more than the {} of this host", Human(*bytes), Human(*available))]
    MemoryTooLarge { bytes: u64, available: u64 },
    #[error("a root of {} is below the {} that a file system needs", Human(*bytes), Human(MIN_SIZE))]
    SizeTooSmall { bytes: u64 },
    #[error("'{key}' can not be the name of an environment variable")]
    EnvName { key: String },
    #[error("the working directory '{dir}' is not an absolute path")]
    WorkdirRelative { dir: String },
    #[error("'{hostname}' can not be a host name")]
    Hostname { hostname: String },
    #[error("'{text}' is not an IP address of a name server")]
    Dns { text: String },
    #[error("{0}")]
    Signal(String),
    #[error("ports are published, but the machine is on no network")]
    PublishWithoutNetwork,
}

impl PlanError {
    fn class(&self) -> Class {
        match self {
            PlanError::Cpus { .. } | PlanError::MemoryTooLarge { .. } => Class::Unsupported,
            _ => Class::Usage,
        }
    }

    fn hint(&self) -> &'static str {
        match self {
            PlanError::Cpus { .. } | PlanError::NoCpu => "choose --cpus from 1 to the number of CPUs of this host",
            PlanError::MemoryTooSmall { .. } => "sizes without a unit are bytes; for example --memory 512M",
            PlanError::MemoryTooLarge { .. } => "choose a smaller --memory",
            PlanError::SizeTooSmall { .. } => "sizes without a unit are bytes; for example --size 2G",
            PlanError::EnvName { .. } => "use -e NAME=VALUE, with a name that is not empty",
            PlanError::WorkdirRelative { .. } => "give -w a path that starts with '/'",
            PlanError::Hostname { .. } => "use letters, digits, '-' and '.', at most 64 characters",
            PlanError::Dns { .. } => "for example --dns 9.9.9.9",
            PlanError::Signal(_) => "use a name such as SIGTERM, or a number from 1 to 64",
            PlanError::PublishWithoutNetwork => "leave out -p, or use --network default",
        }
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Failure {
        Failure::from_error(error.class(), &error).hint(error.hint())
    }
}
