//! Command lines for machines.

use std::path::PathBuf;

use clap::Args;

use super::{Format, Listing, Names, bytes};

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
    /// Once, not again and again
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
    /// Leave it running and print its id; what it writes is dropped
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub detach: bool,
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

/// A copy.
#[derive(Debug, Args)]
pub struct Cp {
    /// Keep owners and groups, as numbers
    #[arg(short, long)]
    pub archive: bool,
    /// What to copy: a path of this host, or NAME:PATH; 'DIR/.' is what is in DIR; '-' a tar archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    pub source: String,
    /// Where to: a directory that is there, or the new place; '-' for a tar archive on standard output
    #[arg(value_name = "TARGET", allow_hyphen_values = true)]
    pub target: String,
}

/// One thing, and how it is printed.
#[derive(Debug, Args)]
pub struct Diff {
    /// How it is printed
    #[arg(short, long, alias = "format", value_enum, default_value = "table")]
    pub output: Format,
    /// The machine
    pub name: String,
}

/// A wanted image of a machine.
#[derive(Debug, Args)]
pub struct Commit {
    /// Who made it
    #[arg(short, long, value_name = "TEXT")]
    pub author: Option<String>,
    /// What for
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// An instruction of a Dockerfile that says how the image is run: 'CMD ["/server"]', 'ENV A=1' (repeatable)
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// Let its processes go on while what they wrote is read
    #[arg(long)]
    pub no_pause: bool,
    /// Show no progress; there is none here
    #[arg(short, long)]
    pub quiet: bool,
    /// The machine
    pub name: String,
    /// What the image is called; it has a digest alone when not given
    #[arg(value_name = "IMAGE")]
    pub image: Option<String>,
}

/// What goes into a file.
#[derive(Debug, Args)]
pub struct Export {
    /// Write to this file of this host, not to standard output
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Which
    pub name: String,
}

/// What of machines is to be something else.
#[derive(Debug, Args)]
pub struct Update {
    /// What happens when they end by themselves: no, on-failure or on-failure:N, always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub restart: Option<String>,
    /// A label they have from now on
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub label: Vec<String>,
    /// A label they have no more
    #[arg(long, value_name = "KEY")]
    pub label_rm: Vec<String>,
    /// CPUs; while they run, only the part of the last one can be another
    #[arg(long, value_name = "N")]
    pub cpus: Option<String>,
    /// CPUs of their host that they run on; "" for all
    #[arg(long, value_name = "CPUS")]
    pub cpuset_cpus: Option<String>,
    /// Guest memory; only while they do not run
    #[arg(short, long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
    /// After how long without anybody they are saved, and their hypervisors end; 0: never
    #[arg(long, value_name = "TIME")]
    pub idle_timeout: Option<String>,
    /// Which
    #[command(flatten)]
    pub names: Names,
}

/// Wanted forks.
#[derive(Debug, Args)]
pub struct Fork {
    /// A snapshot; without a tag, the machine as it is now
    #[arg(value_name = "MACHINE[@TAG]")]
    pub source: String,
    /// How many
    #[arg(short = 'n', long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub number: u16,
    /// Its name; of several, what is before '-1', '-2' ...
    #[arg(long)]
    pub name: Option<String>,
    /// Set an environment variable of what is started in it from now on
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
}

/// A reservation.
#[derive(Debug, Args)]
pub struct Deploy {
    /// The name of its machine
    #[arg(long)]
    pub name: Option<String>,
    /// Print what each field does there; create nothing
    #[arg(long)]
    pub explain: bool,
    /// The data of a zmachine workload, as JSON; '-' for standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}
