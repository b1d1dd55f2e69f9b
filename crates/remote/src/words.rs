//! The command lines: those of `zmachine` that make sense for another host. They mean the same.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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

/// The machine is read from a descriptor: its options were read by `zmachine` itself.
#[derive(Debug, Args)]
pub struct Run {
    /// Where the wanted machine can be read
    #[arg(long, hide = true)]
    pub spec_fd: i32,
    /// Print its name, and let it run
    #[arg(short, long)]
    pub detach: bool,
    /// Show what would be made, and make nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A stop.
#[derive(Debug, Args)]
pub struct Stop {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long = "time", value_name = "SECONDS")]
    pub time: Option<u64>,
    /// Which
    #[command(flatten)]
    pub names: Names,
}

/// An end.
#[derive(Debug, Args)]
pub struct Kill {
    /// Send this signal to the entrypoint instead of ending the machine
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Which
    #[command(flatten)]
    pub names: Names,
}

/// A removal.
#[derive(Debug, Args)]
pub struct Rm {
    /// Kill machines that run
    #[arg(short, long)]
    pub force: bool,
    /// Volumes that were made for them without a name always go with them; taken for docker's habit
    #[arg(short = 'v', long)]
    pub volumes: bool,
    /// Which
    #[command(flatten)]
    pub names: Names,
}

/// A listing of machines.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Those alone that have this label: KEY or KEY=VALUE (repeatable)
    #[arg(short, long, value_name = "LABEL")]
    pub label: Vec<String>,
    /// How
    #[command(flatten)]
    pub listing: Listing,
}

/// A span of events.
#[derive(Debug, Args)]
pub struct Events {
    /// Go on with what comes
    #[arg(short, long)]
    pub follow: bool,
    /// Begin at this time (RFC 3339, or seconds since 1970)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// How they are printed
    #[arg(short, long, alias = "format", value_enum, default_value = "table")]
    pub output: Format,
}

/// Figures.
#[derive(Debug, Args)]
pub struct Stats {
    /// Once, and not again and again; always so here
    #[arg(long)]
    pub no_stream: bool,
    /// How they are printed
    #[arg(short, long, alias = "format", value_enum, default_value = "table")]
    pub output: Format,
    /// Which; all that run when not given
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Which part of a log, and how.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the machine ends
    #[arg(short, long)]
    pub follow: bool,
    /// The last lines alone
    #[arg(short = 'n', long, value_name = "N")]
    pub tail: Option<u64>,
    /// Begin at this time (RFC 3339, or seconds since 1970)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// End at this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// With the time of each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// stdout, stderr, console, agent, hypervisor, monitor
    #[arg(long, value_delimiter = ',')]
    pub source: Vec<String>,
    /// The machine
    pub name: String,
}

/// A command in a machine.
#[derive(Debug, Args)]
pub struct Exec {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Set or pass on an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// The machine
    pub name: String,
    /// The program and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<String>,
}

/// Somebody who looks, or types.
#[derive(Debug, Args)]
pub struct Follow {
    /// Only look
    #[arg(long)]
    pub no_stdin: bool,
    /// The machine
    pub name: String,
}

/// A wanted image.
#[derive(Debug, Args)]
pub struct Pull {
    /// What: a name in a registry, or the URL of a flist
    pub image: String,
    /// What it is called there
    pub name: Option<String>,
}

/// Commands on images.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Image {
    /// List images
    Ls(Listing),
    /// Bring an image to the host
    Pull(Pull),
    /// Remove images
    Rm(Names),
}

/// Commands on volumes.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Volume {
    /// List volumes
    Ls(Listing),
    /// Create a volume
    Create {
        /// Its name
        name: String,
        /// Its size: 10G
        #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
        size: Option<u64>,
        /// Its file system
        #[arg(long, value_name = "FS")]
        fs: Option<String>,
        /// A label (repeatable)
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Show volumes, as JSON
    Inspect(Names),
    /// Remove volumes with their data
    Rm(Names),
}

/// Commands on networks.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Network {
    /// List networks
    Ls(Listing),
    /// Create a network
    Create {
        /// Its name
        name: String,
        /// Its IPv4 subnet
        #[arg(long, value_name = "CIDR")]
        subnet: Option<String>,
        /// Without a way out
        #[arg(long)]
        internal: bool,
        /// A label (repeatable)
        #[arg(short, long, value_name = "KEY=VALUE")]
        label: Vec<String>,
    },
    /// Show networks, as JSON
    Inspect(Names),
    /// Remove networks that no machine is in
    Rm(Names),
}

/// Commands on kernels.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Kernel {
    /// List guest kernels
    Ls(Listing),
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
