//! Run Zmachines: machines started from flists.
//!
//! This crate turns flags into values ([`args`]), calls the engine ([`commands`]), and turns what comes back into
//! output and an exit code ([`failure`], [`output`]). It is the only place that reads the environment or prints. The
//! hidden roles `monitor`, `rootfs` and `share` of this same program are in [`roles`].

mod args;
mod commands;
mod context;
mod failure;
mod logs;
mod machine_file;
mod output;
mod progress;
mod roles;
mod terminal;

use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::args::{Command, Refused};

fn main() -> ExitCode {
    let cli = match args::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(Refused::Words(error)) => return usage(&error),
        Err(Refused::File(error)) => {
            failure::print(&error);
            return ExitCode::from(failure::exit_code(error.class, is_guests_code()));
        }
    };
    let covers_guest = matches!(cli.command, Command::Run(_) | Command::Exec(_));
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            failure::print(&error);
            ExitCode::from(failure::exit_code(error.class, covers_guest))
        }
    }
}

/// Prints a help text, or what is wrong with the command line. For `run` and `exec` the code is 125, since 2 may be the
/// guest command's own.
fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ if is_guests_code() => ExitCode::from(125),
        _ => ExitCode::from(2),
    }
}

/// Whether the exit code is otherwise that of a program in the guest.
fn is_guests_code() -> bool {
    let word = std::env::args().nth(1);
    word.is_some_and(|word| word == "run" || word == "exec")
}
