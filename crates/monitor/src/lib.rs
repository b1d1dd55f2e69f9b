//! The monitor: one process per running machine, which owns all of it.
//!
//! ```text
//! lock ─> journal undone (if a run crashed) ─> starting ─> launch ─> running ─> event loop ─> teardown ─> stopped
//!           launch:  run folder, network, rootfs server, disk | hypervisor | agent configured | entrypoint started
//! ```
//! # Invariants
//! It holds `machines/<id>/lock` for its whole life. One task, `run::run`, writes `state.json`. Every resource is
//! claimed in the journal before it is made; teardown undoes the journal in reverse, whatever happened. Its children die
//! with it. It has one thread (but for making the disk, forwarding the log, trimming the cache, and the frames of an
//! interface through passt), closes what it inherits, and leads a session of its own.

use std::time::Duration;

use zmachine_spec::Failure;

mod activity;
mod add_file;
mod add_image;
mod agent_port;
mod agent_start;
mod alter;
mod appliance;
mod asleep;
mod backoff;
mod cache;
mod change;
mod commands;
mod confine;
mod console;
mod container;
mod context;
mod ending;
mod enospc;
mod entry;
mod exec_sessions;
mod execs;
mod files;
mod follow;
mod forwarding;
mod frozen;
mod grow;
mod guest;
mod health;
mod idle;
mod images;
mod inbox;
mod init;
mod launch;
mod life;
mod networks;
mod output;
mod passt;
mod quiet;
mod reconnect;
mod relays;
mod restart;
mod restored;
mod rootfs_child;
mod rootfs_memory;
mod rootfs_watch;
mod run;
mod running;
mod sandbox;
mod saving;
mod server;
mod share;
mod sockets;
mod standby;
mod streams;
mod template;
#[cfg(test)]
mod tests;
mod vm;

pub use frozen::Restore;
pub use run::MonitorArgs;

/// Runs one machine from start to end.
///
/// # Errors
/// When the machine could not be started; the failure is in its state, and reported, as well.
pub fn run(args: MonitorArgs) -> Result<(), Failure> {
    // Whatever it and its children make is its owner's alone, unless they say otherwise.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    // Known by the time that an emulated guest is to be told of it.
    zmachine_sys::clock::begin();
    zmachine_sys::clock::note_in(args.home.counter());
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Its threads have nothing more to do after what they were made for.
    let runtime = runtime.enable_all().thread_keep_alive(Duration::ZERO).build()?;
    let ended = runtime.block_on(run::run(args));
    // A thread may be waiting for a store: nobody waits for that.
    runtime.shutdown_background();
    ended
}
