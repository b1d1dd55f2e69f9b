//! The domain: what a machine is, how it is planned, started, watched, stopped and cleaned up after.
//!
//! ```text
//! spec + image + host ──Plan::new──> plan           pure; every refusal happens here
//! Engine  (in the command line's process)           create, start, stop, kill, remove, list, inspect, logs, reconcile
//! Monitor (one process per running machine)         owns the machine: journal, network, rootfs server, hypervisor, agent
//! ```
//!
//! # Invariants
//! All truth is in files (see [`home`]). A machine is alive exactly while its monitor holds `machines/<id>/lock`.
//! A resource is written to the machine's journal before it is made and undone in reverse; undoing twice is fine.
//! One task of the monitor writes `state.json`. Nothing here prints, or reads the environment.

pub mod attach;
pub mod attempt;
pub mod bytes;
pub mod catalog;
pub mod cgroup;
pub mod control;
pub mod engine;
pub mod events;
pub mod failure;
pub mod firmware;
pub mod graveyard;
pub mod home;
pub mod journal;
pub mod killpoint;
mod leftovers;
pub mod log;
pub mod monitor;
pub mod plan;
pub mod redact;
pub mod reservation;
pub mod restart;
pub mod secret;
pub mod shown;
pub mod spec;
pub mod state;
pub mod stats;
pub mod user;
mod versioned;
pub mod volume;

pub use engine::Engine;
pub use failure::{Class, Failure};
pub use home::Home;
pub use plan::{Plan, PlanError};
pub use restart::RestartPolicy;
pub use spec::MachineSpec;
pub use state::{Exit, Kind, Phase, State};
