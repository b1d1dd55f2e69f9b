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
    ExitCode::from(match failure.class {
        Class::Usage => 2,
        Class::NotFound => 3,
        Class::Conflict => 4,
        Class::Fetch => 5,
        Class::Unsupported => 6,
        _ => 1,
    })
}
