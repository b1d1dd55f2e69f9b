//! `compose` and its subcommands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::run::Pull;
use super::{ExecArgs, LogSpanArgs};
use crate::listing::ListingArgs;

/// `compose`
#[derive(Debug, Args)]
pub(crate) struct ComposeArgs {
    /// Read this compose file, later ones over earlier ones; compose.yaml here or above when not given
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Vec<PathBuf>,
    /// Name of the project; that of its folder when nothing is said
    #[arg(short, long, value_name = "NAME")]
    pub(crate) project_name: Option<String>,
    /// Services of this profile count, too; '*' for all
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Vec<String>,
    /// Read variables from this file in place of .env
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Relative paths are relative to this folder, not to that of the first file
    #[arg(long, value_name = "DIR")]
    pub(crate) project_directory: Option<PathBuf>,
    /// Machines that are made and started at once; as many as this host has CPUs when not given
    #[arg(long, value_name = "N")]
    pub(crate) parallel: Option<usize>,
    #[command(subcommand)]
    pub(crate) command: ComposeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ComposeCommand {
    /// Make what the files say so: make, start, and replace what has changed; then show its logs
    Up(Box<UpArgs>),
    /// Stop and remove the machines and networks of a project
    Down(DownArgs),
    /// List the machines of a project
    Ps(ComposePsArgs),
    /// Show what the machines of a project wrote
    Logs(ComposeLogsArgs),
    /// Run a command in a running machine of a service; exits with its status
    Exec(ComposeExecArgs),
    /// Run a command in a machine of its own, made as those of a service; exits with its status
    Run(Box<ComposeRunArgs>),
    /// Stop machines, what needs others first
    Stop(ComposeStopArgs),
    /// Start machines that have stopped
    Start(ServicesArgs),
    /// Stop machines and start them again
    Restart(ComposeStopArgs),
    /// End machines at once, or send a signal to their entrypoints
    Kill(ComposeKillArgs),
    /// Halt the virtual CPUs of machines
    Pause(ServicesArgs),
    /// Let the virtual CPUs of machines run again
    #[command(alias = "resume")]
    Unpause(ServicesArgs),
    /// Remove machines that have stopped
    Rm(ComposeRmArgs),
    /// Bring the images of services here
    Pull(ServicesArgs),
    /// List the processes in machines
    Top(ServicesArgs),
    /// Show what the files say together
    #[command(alias = "convert")]
    Config(ConfigArgs),
    /// List projects
    Ls(ComposeLsArgs),
}

impl ComposeCommand {
    /// Whether the exit code is otherwise that of a program in the guest.
    pub(crate) fn covers_guest(&self) -> bool {
        matches!(self, ComposeCommand::Exec(_) | ComposeCommand::Run(_))
    }
}

/// Services by name.
#[derive(Debug, Args)]
pub(crate) struct ServicesArgs {
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Do not show logs; leave the machines running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// How many machines a service has
    #[arg(long, value_name = "SERVICE=N")]
    pub(crate) scale: Vec<String>,
    /// Make machines anew that have not changed, too
    #[arg(long, conflicts_with = "no_recreate")]
    pub(crate) force_recreate: bool,
    /// Leave machines as they are that have changed
    #[arg(long)]
    pub(crate) no_recreate: bool,
    /// Leave the services alone that those named need
    #[arg(long)]
    pub(crate) no_deps: bool,
    /// Make machines and start none
    #[arg(long)]
    pub(crate) no_start: bool,
    /// Wait until all run, and those with a health check are healthy; implies --detach
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait so many seconds at most
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub(crate) wait_timeout: Option<u64>,
    /// Remove machines of services that the files do not have any more
    #[arg(long)]
    pub(crate) remove_orphans: bool,
    /// When images are asked for again
    #[arg(long, value_enum)]
    pub(crate) pull: Option<Pull>,
    /// Taken for docker's sake: images are not built here
    #[arg(long, hide = true)]
    pub(crate) build: bool,
    /// Stop all when one ends
    #[arg(long, conflicts_with = "detach")]
    pub(crate) abort_on_container_exit: bool,
    /// Stop all when one ends, and exit with the status of this service's
    #[arg(long, value_name = "SERVICE", conflicts_with = "detach")]
    pub(crate) exit_code_from: Option<String>,
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// Services, with those that they need; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

/// How lines of several logs are told apart.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LookArgs {
    /// Lines do not begin with the name of their machine
    #[arg(long)]
    pub(crate) no_log_prefix: bool,
    /// No colours
    #[arg(long)]
    pub(crate) no_color: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Remove the project's volumes with all their data, too
    #[arg(short, long)]
    pub(crate) volumes: bool,
    /// Remove machines of services that the files do not have any more
    #[arg(long)]
    pub(crate) remove_orphans: bool,
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposePsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Names of services
    #[arg(long)]
    pub(crate) services: bool,
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeLogsArgs {
    #[command(flatten)]
    pub(crate) span: LogSpanArgs,
    #[command(flatten)]
    pub(crate) look: LookArgs,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeExecArgs {
    /// Which of the service's machines
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) index: u32,
    /// No terminal, although this is one
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// NAME is that of a service
    #[command(flatten)]
    pub(crate) exec: ExecArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeRunArgs {
    /// Do not follow it; print its name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove it when it has stopped
    #[arg(long)]
    pub(crate) rm: bool,
    /// Its name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Set or pass on an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Attach a volume or share a directory, as `zmachine run` has it
    #[arg(short = 'v', long, value_name = "NAME|DIR:/PATH[:OPTION,...]")]
    pub(crate) volume: Vec<String>,
    /// Publish a port
    #[arg(short, long, value_name = "[[IP:][HOST]:]GUEST[/tcp|udp]")]
    pub(crate) publish: Vec<String>,
    /// Publish the service's ports
    #[arg(short = 'P', long)]
    pub(crate) service_ports: bool,
    /// Program in place of the service's
    #[arg(long, value_name = "STRING")]
    pub(crate) entrypoint: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// Leave the services alone that it needs
    #[arg(long)]
    pub(crate) no_deps: bool,
    /// No terminal, although this is one
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// Standard input is passed on in any case
    #[arg(short, long, hide = true)]
    pub(crate) interactive: bool,
    pub(crate) service: String,
    /// Command and arguments in place of the service's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeStopArgs {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeKillArgs {
    /// Send this signal to the entrypoint instead of ending the machine
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeRmArgs {
    /// Ask nothing
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Stop them first
    #[arg(short, long)]
    pub(crate) stop: bool,
    /// Volumes that were made for them without a name always go with them; taken for docker's habit
    #[arg(short = 'v', long)]
    pub(crate) volumes: bool,
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) services: Vec<String>,
}

#[derive(Debug, Args)]
#[group(id = "what", multiple = false, args = ["services", "volumes", "networks", "images", "profiles", "quiet"])]
pub(crate) struct ConfigArgs {
    /// Names of services, one a line
    #[arg(long)]
    pub(crate) services: bool,
    /// Names of volumes, one a line
    #[arg(long)]
    pub(crate) volumes: bool,
    /// Names of networks, one a line
    #[arg(long)]
    pub(crate) networks: bool,
    /// Images of services, one a line
    #[arg(long)]
    pub(crate) images: bool,
    /// Names of profiles, one a line
    #[arg(long)]
    pub(crate) profiles: bool,
    /// Nothing: only check
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[arg(long, value_enum, default_value = "yaml")]
    pub(crate) format: ConfigFormat,
    /// Of these services alone; all when none is named
    #[arg(value_name = "SERVICE")]
    pub(crate) names: Vec<String>,
}

/// How `config` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConfigFormat {
    Yaml,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ComposeLsArgs {
    /// Also those of which nothing runs
    #[arg(short, long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
}
