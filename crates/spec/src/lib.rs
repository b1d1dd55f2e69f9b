//! A machine as values: what its user asks for, what becomes of it, what is said when something goes wrong.
//!
//! Values are typed: what flags and machine files write is read once, by whoever takes it ([`VolumeRequest::parse`] and the like),
//! and never below. What is on disk is the JSON of these types.
//!
//! | module | owns |
//! |---|---|
//! | `machine` | [`MachineSpec`], every setting of a machine, and its file |
//! | `version1` | specs of version 1, whose values were the texts of flags |
//! | `volume_request`, `network_request`, `signal`, `log_target`, `log_limits`, `user`, [`secret`], [`restart`], [`bytes`] | one setting's type each, and how users write it |
//! | `setting` | the names of settings in failures |
//! | [`cpus`] | how many CPUs, how much of them, and which |
//! | [`change`] | what of a machine may become something else |
//! | [`health`] | health checks, and what came of them |
//! | [`volume`] | what volumes are, apart from their files |
//! | [`state`] | where a machine is in its life |
//! | [`failure`] | what went wrong: class, causes, hint |
//! | [`control`] | what is said between a command and a machine's monitor |
//! | [`home`] | where all of it is |
//! | [`redact`], [`shown`] | what may be shown of it |
//! | [`saved`] | what is saved of a machine that runs |
//! | [`time`] | points in time |
//! | [`versioned`] | files with a format version |
//!
//! # Invariants
//! Nothing here prints, looks at the host beyond the files it is told to read, or reads the environment.

pub mod bytes;
pub mod change;
pub mod control;
pub mod cpus;
pub mod failure;
pub mod guest;
pub mod health;
pub mod home;
pub mod keep;
mod log_limits;
mod log_target;
mod machine;
mod network_request;
pub mod pod;
pub mod redact;
pub mod restart;
pub mod saved;
pub mod secret;
mod setting;
pub mod shown;
pub mod signal;
pub mod state;
pub mod time;
mod user;
mod version1;
pub mod versioned;
pub mod volume;
mod volume_request;

pub use change::Change;
pub use cpus::{CpuSet, Cpus};
pub use failure::{Class, Failure};
pub use guest::GuestSettings;
pub use health::{Health, HealthCheck, HealthRequest, HealthStatus, HealthTest};
pub use home::Home;
pub use log_limits::LogLimits;
pub use log_target::LogTarget;
pub use machine::{
    DEFAULT_MEMORY, DEFAULT_STOP_SIGNAL, DEFAULT_STOP_TIMEOUT_S, DEFAULT_VM_STOP_TIMEOUT_S, JailChoice, MachineSpec,
    ModeChoice, RootfsChoice, SPEC_VERSION, check_name, labels, public_keys, user_data_text,
};
pub use network_request::{NetworkRequest, check_alias};
pub use pod::{PodLink, PodNetwork, PodSettings};
pub use restart::RestartPolicy;
pub use setting::Setting;
pub use signal::Signal;
pub use state::{Exit, Kind, Phase, State};
pub use user::User;
pub use volume_request::{Origin, VolumeRequest};
