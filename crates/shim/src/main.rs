//! `containerd-shim-zmachine-v2`: containerd starts it for pods whose runtime class says `zmachine`; each pod is a machine.
//!
//! ```text
//! containerd ──ttrpc──> shim (one per pod) ──engine──> monitor ──> hypervisor: the pod's machine
//!                         │                               └──────> virtiofsd: the pod's share
//!                         └─ hold: a process in the pod's network namespace
//! ```
//! The shim owns the machine: it ends with the shim. There is no daemon of ours.
//!
//! | module | owns |
//! |---|---|
//! | `arguments`, `bootstrap`, `start`, `info`, `cleanup` | the conversation of a start, what there is, and what is done when a shim is gone |
//! | `serve`, `service`, `sandbox` | the task and sandbox APIs on the wire |
//! | `shim`, `table` | tasks, and what is asked of them |
//! | `pod`, `share`, `host` | the pod's machine, and what of this host its guest sees |
//! | `oci`, `role`, `names`, `translate`, `seccomp` | from OCI specifications to containers of the agent; pure |
//! | `streams`, `events`, `stats`, `forward`, `log` | output, events, figures, forwarded ports |
//!
//! # Invariants
//! Whatever is asked in whatever order is answered; a machine that ends, ends all tasks of its pod. Nothing of a pod is on this host after
//! its last task is deleted, or after `delete` where its shim was killed.

mod address;
mod arguments;
mod bootstrap;
mod cgroup;
mod cleanup;
mod cri;
mod devices;
mod ending;
mod error;
mod etc;
mod events;
mod forward;
mod hold;
mod host;
mod info;
mod layers;
mod log;
mod names;
mod oci;
mod pod;
mod role;
mod sandbox;
mod seccomp;
mod serve;
mod service;
mod settings;
mod share;
mod shim;
mod start;
mod stats;
mod streams;
mod table;
mod translate;

use std::process::ExitCode;

use crate::arguments::Action;

fn main() -> ExitCode {
    let (action, arguments) = match arguments::parse(std::env::args().skip(1)) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("containerd-shim-zmachine-v2: {error}");
            return ExitCode::from(2);
        }
    };
    let done = match action {
        Action::Start => start::start(arguments),
        Action::Delete => cleanup::delete(&arguments),
        Action::Serve => serve::serve(&arguments),
        Action::Hold { namespace } => hold::hold(namespace.as_deref()),
        Action::Info => info::tell(),
        Action::Version => {
            println!("containerd-shim-zmachine-v2 {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows it with the failure.
            eprintln!("containerd-shim-zmachine-v2: {error}");
            ExitCode::FAILURE
        }
    }
}
