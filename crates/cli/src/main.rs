//! Run Zmachines: machines started from flists.
//!
//! This crate turns flags into values ([`args`]), calls the engine ([`commands`]), and turns what comes back into
//! output and an exit code ([`failure`], [`output`]). It is the only place that reads the environment or prints. The
//! hidden roles `monitor`, `rootfs` and `share` of this same program are in [`roles`].

mod args;
mod commands;
mod context;
mod failure;
#[cfg(test)]
mod from_docker;
mod listing;
mod logs;
mod machine_file;
#[cfg(test)]
mod reference;
mod roles;
mod usage;

use std::process::ExitCode;

pub(crate) use zmachine_term::{output, progress, terminal};

use crate::args::{Command, Refused};

fn main() -> ExitCode {
    let words = match commands::elsewhere(std::env::args_os().collect()) {
        Ok(words) => words,
        Err(error) => {
            failure::print(&error);
            return ExitCode::from(failure::exit_code(error.class, is_guests_code()));
        }
    };
    let cli = match args::parse(words) {
        Ok(cli) => cli,
        Err(Refused::Words(error)) => return usage::explain(error, is_guests_code()),
        Err(Refused::File(error)) => {
            failure::print(&error);
            return ExitCode::from(failure::exit_code(error.class, is_guests_code()));
        }
    };
    let covers_guest = match &cli.command {
        Command::Run(_) | Command::Exec(_) => true,
        Command::Compose(args) => args.command.covers_guest(),
        _ => false,
    };
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::print(&error);
            ExitCode::from(failure::exit_code(error.class, covers_guest))
        }
    }
}

/// Whether the exit code is otherwise that of a program in the guest.
fn is_guests_code() -> bool {
    let word = std::env::args().nth(1);
    word.is_some_and(|word| word == "run" || word == "exec")
}
