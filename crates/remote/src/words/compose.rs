//! `compose` and its subcommands: files of this host, machines of another one.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Exec, Listing};

/// `compose`
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Compose {
    /// Read this compose file, later ones over earlier ones; compose.yaml here or above when not given
    #[arg(short, long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Name of the project; that of its folder when nothing is said
    #[arg(short, long, value_name = "NAME")]
    pub project_name: Option<String>,
    /// Services of this profile count, too; '*' for all
    #[arg(long, value_name = "PROFILE")]
    pub profile: Vec<String>,
    /// Read variables from this file in place of .env
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// Relative paths are relative to this folder, not to that of the first file
    #[arg(long, value_name = "DIR")]
    pub project_directory: Option<PathBuf>,
    /// What to do
    #[command(subcommand)]
    pub command: Option<ComposeCommand>,
}

/// What to do with a project.
#[derive(Debug, Subcommand)]
pub enum ComposeCommand {
    /// Make what the files say so: make, start, and replace what has changed; then show its logs
    Up(Box<Up>),
    /// Stop and remove the machines and networks of a project
    Down {
        /// Remove the project's volumes with all their data, too
        #[arg(short, long)]
        volumes: bool,
        /// Remove machines of services that the files do not have any more
        #[arg(long)]
        remove_orphans: bool,
        /// Seconds between the stop signal and SIGKILL
        #[arg(short = 't', long, value_name = "SECONDS")]
        timeout: Option<u64>,
    },
    /// List the machines of a project
    Ps(Ps),
    /// Show what the machines of a project wrote
    Logs {
        /// Go on with what comes
        #[arg(short, long)]
        follow: bool,
        /// Show the time of each line
        #[arg(short, long)]
        timestamps: bool,
        /// Begin at this time, or so long ago (10m)
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// End at this time, or so long ago
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Only the last lines; 'all' for all
        #[arg(short = 'n', long, value_name = "LINES")]
        tail: Option<String>,
        /// Lines do not begin with the name of their machine
        #[arg(long)]
        no_log_prefix: bool,
        /// Which
        #[command(flatten)]
        services: Services,
    },
    /// Run a command in a running machine of a service; exits with its status
    Exec {
        /// Which of the service's machines
        #[arg(long, value_name = "N", default_value_t = 1)]
        index: u32,
        /// No terminal, although this is one
        #[arg(short = 'T', long)]
        no_tty: bool,
        /// NAME is that of a service
        #[command(flatten)]
        exec: Box<Exec>,
    },
    /// Stop machines, what needs others first
    Stop(Timed),
    /// Start machines that have stopped
    Start(Services),
    /// Stop machines and start them again
    Restart(Timed),
    /// End machines at once, or send a signal to their entrypoints
    Kill {
        /// Send this signal to the entrypoint instead of ending the machine
        #[arg(short, long, value_name = "SIGNAL")]
        signal: Option<String>,
        /// Which
        #[command(flatten)]
        services: Services,
    },
    /// Halt the virtual CPUs of machines
    Pause(Services),
    /// Let the virtual CPUs of machines run again
    #[command(alias = "resume")]
    Unpause(Services),
    /// Remove machines that have stopped
    Rm {
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
        /// Stop them first
        #[arg(short, long)]
        stop: bool,
        /// Volumes that were made for them without a name always go with them; taken for docker's habit
        #[arg(short = 'v', long)]
        volumes: bool,
        /// Which
        #[command(flatten)]
        services: Services,
    },
    /// Bring the images of services to the host
    Pull(Services),
    /// List the processes in machines
    Top(Services),
    /// Show what the files say together
    #[command(alias = "convert")]
    Config(Config),
    /// List projects of the host
    Ls(Listing),
}

/// Services by name.
#[derive(Debug, Args)]
pub struct Services {
    /// Services; all when none is named
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
}

/// Services by name, and how long their machines have.
#[derive(Debug, Args)]
pub struct Timed {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Which
    #[command(flatten)]
    pub services: Services,
}

/// Wanted machines.
#[derive(Debug, Args)]
pub struct Up {
    /// Do not show logs; leave the machines running
    #[arg(short, long)]
    pub detach: bool,
    /// How many machines a service has
    #[arg(long, value_name = "SERVICE=N")]
    pub scale: Vec<String>,
    /// Make machines anew that have not changed, too
    #[arg(long, conflicts_with = "no_recreate")]
    pub force_recreate: bool,
    /// Leave machines as they are that have changed
    #[arg(long)]
    pub no_recreate: bool,
    /// Leave the services alone that those named need
    #[arg(long)]
    pub no_deps: bool,
    /// Make machines and start none
    #[arg(long)]
    pub no_start: bool,
    /// Wait until all run, and those with a health check are healthy; implies --detach
    #[arg(long)]
    pub wait: bool,
    /// Wait so many seconds at most
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    pub wait_timeout: Option<u64>,
    /// Remove machines of services that the files do not have any more
    #[arg(long)]
    pub remove_orphans: bool,
    /// When images are asked for again
    #[arg(long, value_parser = ["missing", "always", "never", "newer"])]
    pub pull: Option<String>,
    /// Taken for docker's sake: images are not built here
    #[arg(long, hide = true)]
    pub build: bool,
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Lines do not begin with the name of their machine
    #[arg(long)]
    pub no_log_prefix: bool,
    /// Which, with those that they need
    #[command(flatten)]
    pub services: Services,
}

/// A listing of a project's machines.
#[derive(Debug, Args)]
pub struct Ps {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// How
    #[command(flatten)]
    pub listing: Listing,
    /// Which
    #[command(flatten)]
    pub services: Services,
}

/// What is shown of the files.
#[derive(Debug, Args)]
pub struct Config {
    /// Nothing: only check
    #[arg(short, long)]
    pub quiet: bool,
    /// How it is printed
    #[arg(long, value_parser = ["yaml", "json"], default_value = "yaml")]
    pub format: String,
}
