//! `zmachine serve` and `zmachine token`: the server of the APIs and what belongs to it, as a program of its own.
//!
//! These commands of `zmachine` become this program, which is beside it or in `lib/zmachine`.

mod program;

use std::process::ExitCode;

use clap::Parser;
use zmachine_spec::Class;

use self::program::Cli;

fn main() -> ExitCode {
    let failure = match program::run(Cli::parse()) {
        Ok(code) => return ExitCode::from(code),
        Err(failure) => failure,
    };
    eprintln!("error: {}", failure.message);
    for cause in &failure.causes {
        eprintln!("caused by: {cause}");
    }
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    // As for every other command of zmachine: where its exit code is otherwise that of a program in the guest, ours are others.
    let words: Vec<String> = std::env::args().skip(1).take(2).collect();
    let covers_guest = matches!(words.as_slice(), [client, command] if client == "client" && ["run", "exec"].contains(&command.as_str()));
    ExitCode::from(match failure.class {
        Class::CommandNotFound => 127,
        Class::CommandNotExecutable => 126,
        _ if covers_guest => 125,
        Class::Usage => 2,
        Class::NotFound => 3,
        Class::Conflict => 4,
        Class::Fetch => 5,
        Class::Unsupported => 6,
        _ => 1,
    })
}
