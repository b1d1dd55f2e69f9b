//! A home on disk: machines, volumes, logs, and what is known of them.
//!
//! | module | owns |
//! |---|---|
//! | [`catalog`] | the machines: their folders, names and ids |
//! | [`tombstones`] | what is left of removed machines |
//! | [`journal`], [`leftovers`] | what a run has on the host, by its journal and by its places |
//! | [`cgroup`], [`user`] | two of those: control groups, and users of the host |
//! | [`attempt`], [`events`], [`log`] | what happened, and what was written |
//! | [`snapshot`] | machines as they were while they ran |
//! | [`restoring`] | disks of a machine that become all at once what they were |
//! | [`idle`] | machines that nobody has had to do with |
//! | [`template`] | guests that are set up, for starts that do not boot |
//! | [`volume`] | volumes: making, finding, growing, removing, locking |
//! | [`cache`], [`disk_source`] | what of the image library machines need |
//! | [`firmware`], [`secret`] | files of the host that machines are given |
//! | [`killpoint`] | where a test may end a process |
//!
//! # Invariants
//! All truth is in files (see [`zmachine_spec::home`]). A machine is alive exactly while its monitor holds `machines/<id>/lock`.
//! A resource is written to the machine's journal before it is made and undone in reverse; undoing twice is fine.
//! Nothing here prints, or reads the environment.

pub mod attempt;
pub mod cache;
pub mod catalog;
pub mod cgroup;
pub mod disk_source;
pub mod events;
pub mod firmware;
pub mod idle;
pub mod journal;
pub mod killpoint;
pub mod leftovers;
pub mod log;
pub mod restoring;
pub mod secret;
pub mod snapshot;
pub mod template;
pub mod tombstones;
pub mod user;
pub mod volume;
