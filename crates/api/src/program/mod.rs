//! The command lines of this program.

mod serve;
mod token;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use zmachine_spec::{Class, Failure};

/// What `zmachine` has besides: its server
#[derive(Debug, Parser)]
#[command(name = "zmachine", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The zmachine whose roles the processes of machines have
    #[arg(long, hide = true)]
    program: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the machines of this home to other programs: by Docker's API on one socket, by a REST API of our own on another
    Serve(serve::ServeArgs),
    /// Make, list and remove the tokens by which others may use the server
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Give other hosts names, and use one
    #[command(disable_help_flag = true)]
    Context(Words),
    /// Machines of another host
    #[command(hide = true, disable_help_flag = true)]
    Client(Words),
}

/// Read by who carries them out.
#[derive(Debug, clap::Args)]
struct Words {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<std::ffi::OsString>,
}

/// Does what a command line says, and gives the exit code.
pub(crate) fn run(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Serve(args) => serve::serve(&args, cli.program.as_deref()),
        Command::Token(command) => token::token(&command),
        Command::Context(words) => {
            zmachine_remote::commands::context::run(words.words, |name| std::env::var(name).ok())
        }
        Command::Client(words) => zmachine_remote::commands::run(words.words, |name| std::env::var(name).ok()),
    }
}

/// The folders of the state: kept, and lost at reboot; as for every command.
fn state_dirs() -> Result<(PathBuf, PathBuf), Failure> {
    if let Some(home) = std::env::var_os("ZMACHINE_HOME").filter(|home| !home.is_empty()) {
        let home = std::path::absolute(home)?;
        let run = home.join("run");
        return Ok((home, run));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(("/var/lib/zmachine".into(), "/run/zmachine".into()));
    }
    let folder = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let data = folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    match (data, folder("XDG_RUNTIME_DIR")) {
        (Some(data), Some(run)) => Ok((data.join("zmachine"), run.join("zmachine"))),
        _ => Err(Failure::new(
            Class::Usage,
            "there is no place for the state: HOME or XDG_RUNTIME_DIR is not set",
        )
        .hint("set ZMACHINE_HOME to a folder that you may write")),
    }
}
