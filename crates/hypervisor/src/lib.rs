//! The hypervisor drivers: from a [`VmSpec`] to a running virtual machine, and what happens to it.
//!
//! # What it owns
//! The process of one hypervisor per machine, its control channel, and the meaning of its events. There is no prepared
//! state: [`Driver::launch`] gives a running [`Vm`] or an error, so no illegal order of calls can be written.
//!
//! # Invariants
//! * A hypervisor dies with the thread that launched it, and inherits exactly the descriptors it was given.
//! * Control, agent channel and console are socket pairs made before the start: nobody can connect to them, there is no
//!   race, and nothing is left in the file system.
//! * Why a machine ended is read from the hypervisor's events, never from its exit status alone.
//! * Command lines are made by pure functions of values ([`qemu::arguments`], [`kernel_cmdline`]).
//!
//! It knows no image, no network setup and no state directory; it reads no environment.
#![forbid(unsafe_code)]

pub mod accel;
pub mod choice;
pub mod cloud_hypervisor;
mod cmdline;
mod driver;
pub mod fake;
pub mod firmware;
mod jail;
pub mod lines;
mod process_log;
pub mod qemu;
mod spec;

pub use cmdline::kernel_cmdline;
pub use driver::{
    AgentStream, ControlError, Driver, ExitReason, LaunchError, LogLines, Resources, RunDir, Saved, Unsupported, Vm,
    VmEvent,
};
pub use spec::{Accel, Boot, Disk, LaterDisk, LaterFile, Nic, NicKind, Platform, Share, VmSpec};
