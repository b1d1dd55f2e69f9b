//! The command lines: those of `zmachine` that make sense for another host. They mean the same.

mod compose;
mod host;
mod machines;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::compose::{Compose, ComposeCommand, Config, Ps as ComposePs, Services, Timed, Up};
pub use self::host::{
    History, Image, Kernel, Load, Network, Pull, Push, Save, Snapshot, System, Tag, Volume, VolumeSnapshot,
};
pub use self::machines::{
    Commit, Cp, Deploy, Diff, Events, Exec, Export, Follow, Fork, Kill, Logs, Ps, Rm, Run, Stats, Stop, Update,
};

/// Machines of another host
#[derive(Debug, Parser)]
#[command(name = "zmachine --host URL", max_term_width = 100, disable_version_flag = true)]
pub struct Words {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// In columns.
    Table,
    /// As the API gives it.
    Json,
}

/// A listing.
#[derive(Debug, Args)]
pub struct Listing {
    /// Names alone
    #[arg(short, long)]
    pub quiet: bool,
    /// How it is printed
    #[arg(short, long, alias = "format", value_enum, default_value = "table")]
    pub output: Format,
}

/// Things by their names.
#[derive(Debug, Args)]
pub struct Names {
    /// Names, ids, or unique beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a machine, start it, and follow it; exits with the guest's status
    Run(Run),
    /// Create a machine and print its name
    Create(Run),
    /// Start machines that were created or have stopped
    Start(Names),
    /// Stop machines in an orderly way
    Stop(Stop),
    /// Stop machines and start them again
    Restart(Stop),
    /// End machines at once, or send a signal to their entrypoints
    Kill(Kill),
    /// Halt the virtual CPUs of machines
    Pause(Names),
    /// Let the virtual CPUs of machines run again
    #[command(alias = "unpause")]
    Resume(Names),
    /// List the processes in a machine
    Top {
        /// The machine
        name: String,
    },
    /// Wait until machines have ended and print their exit statuses
    Wait(Names),
    /// Give a machine another name
    Rename {
        /// Its name now
        name: String,
        /// Its name from then on
        new: String,
    },
    /// Remove machines with their writable roots and logs
    Rm(Rm),
    /// List machines
    #[command(alias = "ls")]
    Ps(Ps),
    /// Show everything about machines, as JSON
    Inspect(Names),
    /// Tell why machines ended as they did, also those removed in the last seven days
    Why(Names),
    /// Show what happened to all machines
    Events(Events),
    /// Show what running machines use
    Stats(Stats),
    /// Print the figures of all machines for Prometheus
    Metrics,
    /// Show what a machine wrote
    Logs(Logs),
    /// Run a command in a running machine; exits with its status
    Exec(Exec),
    /// Follow the entrypoint of a running machine
    Attach(Follow),
    /// Follow the serial console of a running machine
    Console(Follow),
    /// List images
    Images(Listing),
    /// Bring an image to the host
    Pull(Pull),
    /// Remove images
    Rmi(Names),
    /// Copy files and directories to or from a machine
    Cp(Cp),
    /// List what a container has other than its image
    Diff(Diff),
    /// Make an image of a container and what it changed
    Commit(Commit),
    /// Write the whole root of a container as a tar archive, without what is mounted in it
    Export(Export),
    /// Change machines that are there: at once, or when they do not run
    Update(Update),
    /// Copy a machine that does not run, with its disk and the volumes it writes to
    #[command(alias = "copy")]
    Clone {
        /// Its name
        name: String,
        /// The name of the copy
        new: String,
    },
    /// Show which ports of the host lead to a machine
    Port {
        /// The machine
        name: String,
    },
    /// Save machines as they are while they run, and show and remove what was saved
    #[command(subcommand)]
    Snapshot(Snapshot),
    /// Let a machine that does not run go on from a snapshot of it
    Restore {
        /// The newest snapshot when no tag is given
        #[arg(value_name = "MACHINE[@TAG]")]
        name: String,
    },
    /// Make machines that go on from where another one is, or was
    Fork(Fork),
    /// Create and start the machine a Zero-OS reservation asks for; prints its result object
    Deploy(Deploy),
    /// Run the machines of a compose file of this host together, there
    Compose(Compose),
    /// Show and free what everything takes on the host
    #[command(subcommand)]
    System(System),
    /// Give an image another name
    Tag(Tag),
    /// Bring an image of the host to a registry
    Push(Push),
    /// Write images of the host into an archive here
    Save(Save),
    /// Bring the images of an archive here to the host
    Load(Load),
    /// Show the steps that made an image
    History(History),
    /// Images of the host
    #[command(subcommand)]
    Image(Image),
    /// Volumes of the host
    #[command(subcommand)]
    Volume(Volume),
    /// Networks of the host
    #[command(subcommand)]
    Network(Network),
    /// Guest kernels of the host
    #[command(subcommand)]
    Kernel(Kernel),
    /// Check what the host offers to machines
    Doctor(Listing),
    /// Show the version of the server
    Version,
}

/// Commands on contexts.
#[derive(Debug, Parser)]
#[command(name = "zmachine context", max_term_width = 100, disable_version_flag = true)]
#[allow(missing_docs)]
pub enum Context {
    /// Give a host a name
    Create {
        /// Its name
        name: String,
        /// Where: unix:///PATH or https://NAME:PORT
        #[arg(long, value_name = "URL")]
        host: String,
        /// The file with its token
        #[arg(long, value_name = "PATH")]
        token_file: Option<PathBuf>,
        /// Certificates that the host's own is checked against, in PEM; this system's when not given
        #[arg(long, value_name = "PATH")]
        ca_file: Option<PathBuf>,
    },
    /// List hosts that have names
    Ls(Listing),
    /// Use a host from now on; 'local' is this one
    Use {
        /// Its name
        name: String,
    },
    /// Forget hosts
    Rm(Names),
}

/// A number of bytes, as `10G`.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size: use 512M, 10G");
    let text = text.trim_end_matches("iB").trim_end_matches(['b', 'B']);
    let (digits, shift) = match text.chars().last().map(|unit| unit.to_ascii_uppercase()) {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        Some('T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_consistent() {
        use clap::CommandFactory;
        Words::command().debug_assert();
        Context::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        assert_eq!(bytes("10G"), Ok(10 << 30));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        for wrong in ["", "G", "-1", "1X", "99999999999T"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }
}
