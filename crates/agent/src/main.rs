//! PID 1 of container machines: sets the guest up as the host says, runs the entrypoint, and powers off cleanly. Beside
//! another init it is a service, for the host to run commands in a whole operating system; see [`service`].
//!
//! # Life of PID 1
//! ```text
//! boot      early mounts, kernel modules, the channel to the host        (boot, modules, port, vsock)
//! serve     one yamux connection, one task per stream                     (server)
//!   Configure   disks, overlay root, switch_root, names, network, mounts  (setup)
//!   Run, Exec   a process and the pump between its pipes and its stream   (process, users)
//!   Resume      the stream of a process for a host that takes over        (sessions, host)
//!               in front of an entrypoint, when asked for, a small init   (init)
//! stop      signals, SIGKILL, sync, unmount, power off                    (shutdown)
//! ```
//!
//! # Invariants
//! * One thread: a child may be forked at any time, and every `Rc` is enough. (The one exception is the watchdog that
//!   cuts the power when the very last steps hang.)
//! * Nothing of the guest is trusted beyond harming itself: guest files are read with a limit and never waited for.
//! * PID 1 never returns from `main`: every path ends in a power-off, a panic included.

mod boot;
mod capacity;
mod clock;
mod console;
mod container;
mod dial;
mod freeze;
mod host;
mod init;
mod modules;
mod pollable;
mod port;
mod power;
mod process;
mod processes;
mod ready;
mod reaper;
mod server;
mod service;
mod sessions;
mod setup;
mod shutdown;
mod users;
mod vsock;

use std::path::PathBuf;
use std::time::Instant;

fn main() {
    let started = Instant::now();
    // This one is a PID 1 as well, of a container.
    if std::env::args_os().next().is_some_and(|name| name == init::NAME) {
        std::process::exit(init::run(std::env::args_os()));
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == process::rehearsal::WORD)
    {
        process::rehearsal::run();
    }
    if std::process::id() != 1 {
        std::process::exit(service::run(std::env::args_os().nth(1).map(PathBuf::from)));
    }
    console::report_panics();
    match boot::boot(started) {
        Ok(booted) => server::serve(booted),
        Err(error) => console::error(&format!("boot: {error}")),
    }
    power::power_off();
}
