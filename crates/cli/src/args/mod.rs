//! The command line as values. Nothing is looked up here; the one conversion to a spec is in [`run`].

pub(crate) mod compose;
pub(crate) mod file;
pub(crate) mod flist;
pub(crate) mod guest;
pub(crate) mod health;
pub(crate) mod image;
mod image_ends;
pub(crate) mod resources;
pub(crate) mod roles;
pub(crate) mod run;
pub(crate) mod snapshot;
pub(crate) mod spelling;
pub(crate) mod words;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use zmachine_spec::Failure;

use crate::listing::ListingArgs;

pub(crate) use compose::ComposeArgs;
pub(crate) use flist::FlistCommand;
pub(crate) use image::{CacheCommand, ImageCommand};
pub(crate) use resources::{NetworkCommand, VolumeCommand, VolumeSnapshotCommand};
pub(crate) use roles::{CompleteRole, JailRole, MemoryRole, MonitorRole, RootfsRole, ShareRole, StandbyRole};
pub(crate) use run::{CreateArgs, RunArgs, size};
pub(crate) use snapshot::{ForkArgs, RestoreArgs, SnapshotCommand};

const ELSEWHERE: &str = "On another host: zmachine --host URL [--token-file PATH] [--ca-file PATH] COMMAND, or --context NAME (docs/api.md)";

/// Run Zmachines: virtual machines started from flists.
#[derive(Debug, Parser)]
#[command(name = "zmachine", version, max_term_width = 100, after_help = ELSEWHERE)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Why a command line was not understood.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Its words, or a wish for help.
    Words(clap::Error),
    /// The machine file it names.
    File(Failure),
}

impl From<clap::Error> for Refused {
    fn from(error: clap::Error) -> Refused {
        Refused::Words(error)
    }
}

/// Reads a command line, its program's name first, and the machine file it names.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, Refused> {
    let mut command = Cli::command();
    let words = image_ends::marked(words, &mut command);
    let matches = command.try_get_matches_from_mut(&words)?;
    match file::expanded(&words, &mut command, &matches).map_err(Refused::File)? {
        Some(words) => Ok(Cli::try_parse_from(image_ends::marked(words, &mut command))?),
        None => Ok(Cli::from_arg_matches(&matches)?),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a machine, start it, and follow it; exits with the guest's status
    Run(Box<RunArgs>),
    /// Create a machine and print its name
    Create(Box<CreateArgs>),
    /// Start machines that were created or have stopped
    Start(StartArgs),
    /// Stop machines in an orderly way
    Stop(StopArgs),
    /// Stop machines and start them again
    Restart(StopArgs),
    /// End machines at once, or send a signal to their entrypoints
    Kill(KillArgs),
    /// Halt the virtual CPUs of machines
    Pause(NamesArgs),
    /// Let the virtual CPUs of machines run again
    #[command(alias = "unpause")]
    Resume(NamesArgs),
    /// List the processes in a machine
    Top(TopArgs),
    /// Show and free what everything takes on this host
    #[command(subcommand)]
    System(SystemCommand),
    /// Change machines that are there: at once, or when they do not run
    Update(UpdateArgs),
    /// Give a machine another name
    Rename(RenameArgs),
    /// Copy a machine that does not run, with its disk and the volumes it writes to
    #[command(alias = "copy")]
    Clone(RenameArgs),
    /// Save machines as they are while they run, and show and remove what was saved
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Let a machine that does not run go on from a snapshot of it
    Restore(RestoreArgs),
    /// Make machines that go on from where another one is, or was
    Fork(ForkArgs),
    /// Wait until machines have ended and print their exit statuses, or for something else to hold of them
    Wait(WaitArgs),
    /// Remove machines with their writable roots and logs
    Rm(RmArgs),
    /// List machines
    #[command(alias = "ls")]
    Ps(PsArgs),
    /// Show which ports of this host lead to a machine
    Port(PortArgs),
    /// Show everything about machines, as JSON
    Inspect(InspectArgs),
    /// Tell why machines ended as they did, also those removed in the last seven days
    Why(WhyArgs),
    /// Show what happened to all machines
    Events(EventsArgs),
    /// Show what running machines use: CPU, memory, disks, networks
    Stats(StatsArgs),
    /// Print the figures of all machines for Prometheus, or serve them
    Metrics(MetricsArgs),
    /// Show what a machine wrote
    Logs(LogsArgs),
    /// Run a command in a running machine; exits with its status
    Exec(ExecArgs),
    /// Copy files and directories to or from a machine
    Cp(CpArgs),
    /// List what a container has other than its image
    Diff(DiffArgs),
    /// Make an image of a container and what it changed
    Commit(CommitArgs),
    /// Write the whole root of a container as a tar archive, without what is mounted in it
    Export(ExportArgs),
    /// Run the machines of a compose file together
    Compose(ComposeArgs),
    /// Create and start the machine a Zero-OS reservation asks for; prints its result object
    Deploy(DeployArgs),
    /// Follow a running machine's entrypoint (detach with ctrl-p ctrl-q on a terminal)
    Attach(AttachArgs),
    /// Use a machine's serial console (leave with ctrl-p ctrl-q on a terminal)
    Console(ConsoleArgs),
    /// Log in to a running machine by SSH, or run a command there
    Ssh(SshArgs),
    /// Pack directories into flists and look into flists
    #[command(subcommand)]
    Flist(FlistCommand),
    /// Local images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Bring an image here ('zmachine image pull')
    Pull(image::PullArgs),
    /// List local images ('zmachine image ls')
    Images(image::ImagesArgs),
    /// Remove images ('zmachine image rm')
    Rmi(image::RmiArgs),
    /// Show the steps that made an image ('zmachine image history')
    History(image::HistoryArgs),
    /// Write images into an archive ('zmachine image save')
    Save(image::SaveArgs),
    /// Bring an image to a registry ('zmachine image push')
    Push(image::PushArgs),
    /// Log in to a registry; docker and podman know it then as well
    Login(image::LoginArgs),
    /// Forget the credentials of a registry
    Logout(image::LogoutArgs),
    /// Give an image another name ('zmachine image tag')
    Tag(image::TagArgs),
    /// Bring the images of an archive here ('zmachine image load')
    Load(image::LoadArgs),
    /// Disks with a life of their own
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Networks of machines
    #[command(subcommand)]
    Network(NetworkCommand),
    /// The firmware that Cloud Hypervisor starts disks with
    #[command(subcommand)]
    Firmware(FirmwareCommand),
    /// Guest kernels
    #[command(subcommand)]
    Kernel(KernelCommand),
    /// Write systemd units that start machines at boot
    InstallUnits(InstallUnitsArgs),
    /// Be a snapshotter for containerd until it is stopped: images that are pulled through it come to pods as disks (--help tells more)
    #[command(disable_help_flag = true)]
    Snapshotter(PassedArgs),
    /// Serve the machines of this home to other programs until it is stopped: by Docker's API, and by a REST API of our own
    Serve(ServeArgs),
    /// Make, list and remove the tokens by which others may use that server (create, ls, rm; --help tells more)
    #[command(disable_help_flag = true)]
    Token(PassedArgs),
    /// Give other hosts names, and use one: 'zmachine --host URL ...' without the URL (create, ls, use, rm; --help tells more)
    #[command(disable_help_flag = true)]
    Context(PassedArgs),
    /// Check what this host offers to machines
    Doctor(DoctorArgs),
    /// Print what a shell needs to complete command lines: 'zmachine completion bash'
    Completion(CompletionArgs),
    /// Show the version of this program
    Version,
    /// Show where the state is, what machines run on, and how many there are
    Info(InfoArgs),
    /// A machine's own process
    #[command(hide = true)]
    Monitor(MonitorRole),
    /// The server of a machine's root disk
    #[command(hide = true)]
    Rootfs(RootfsRole),
    /// Bring the rest of an image
    #[command(hide = true)]
    Complete(CompleteRole),
    /// Make machines that stand by
    #[command(hide = true)]
    Standby(StandbyRole),
    /// Keep the memory of a snapshot open
    #[command(hide = true)]
    Memory(MemoryRole),
    /// The server of a directory for a machine
    #[command(hide = true)]
    Share(ShareRole),
    /// A process that locks itself in and becomes another program
    #[command(hide = true)]
    Jail(JailRole),
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names, ids, or unique beginnings of ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// All machines whose --restart policy wants them to run, as at boot
    #[arg(long, conflicts_with = "names")]
    pub(crate) all_enabled: bool,
    /// Follow it, one machine alone, as 'zmachine run' does
    #[arg(short, long, conflicts_with = "all_enabled")]
    pub(crate) attach: bool,
    /// Pass standard input on, with --attach
    #[arg(short, long, requires = "attach")]
    pub(crate) interactive: bool,
    /// Let one go on from a snapshot of it, as 'zmachine restore' does
    #[arg(long, value_name = "MACHINE[@TAG]", conflicts_with_all = ["names", "all_enabled", "attach"])]
    pub(crate) from: Option<String>,
    /// Names, ids, or unique beginnings of ids
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// Number of start attempts to tell of, newest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    pub(crate) attempts: usize,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// Once, not again and again
    #[arg(long)]
    pub(crate) no_stream: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Names, ids, or unique beginnings of ids; all that run when none is given
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct MetricsArgs {
    /// Serve them over HTTP, at /metrics
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Option<std::net::SocketAddr>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Begin at this time (a date, RFC 3339, seconds since 1970), or so long ago (10m, 1h30m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct InstallUnitsArgs {
    /// Where units go
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Seconds between the stop signal and SIGKILL
    #[arg(short = 't', long = "time", value_name = "SECONDS")]
    pub(crate) time: Option<u64>,
    #[command(flatten)]
    pub(crate) names: AllOrNamesArgs,
}

/// Machines by their names, or all of them.
#[derive(Debug, Args)]
pub(crate) struct AllOrNamesArgs {
    /// All machines
    #[arg(short, long, conflicts_with = "names")]
    pub(crate) all: bool,
    #[arg(required_unless_present = "all", value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Send this signal to the entrypoint instead of ending the machine
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// What happens when they end by themselves: no, on-failure or on-failure:N, always, unless-stopped
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    /// A label they have from now on
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(crate) label: Vec<String>,
    /// A label they have no more
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// CPUs; while they run, only the part of the last one can be another: 0.5 for 1, 1.5 for 2
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,
    /// CPUs of this host that they run on: 0-3,6; "" for all
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Guest memory; only while they do not run
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// After how long without anybody they are saved, and their hypervisors end; 0: never
    #[arg(long, value_name = "TIME")]
    pub(crate) idle_timeout: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    pub(crate) name: String,
    /// Its new name
    #[arg(value_name = "NEW-NAME")]
    pub(crate) new: String,
}

#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// What is waited for
    #[arg(long, value_enum, default_value = "not-running")]
    pub(crate) condition: Condition,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// What may be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Condition {
    /// It does not run; its exit status is printed
    NotRunning,
    /// A run ends, this one or the next; its exit status is printed
    NextExit,
    /// It is there no more; the exit status of its last run is printed
    Removed,
    /// Its health checks say that it is well
    Healthy,
    /// Its health checks say that it is not
    Unhealthy,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Kill machines that run
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Volumes that were made for them without a name always go with them; taken for docker's habit
    #[arg(short = 'v', long)]
    pub(crate) volumes: bool,
    #[command(flatten)]
    pub(crate) names: AllOrNamesArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Only the one that was made last, running or not
    #[arg(short, long, conflicts_with = "last")]
    pub(crate) latest: bool,
    /// Only the N that were made last, running or not
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// What each takes of this host's disk
    #[arg(short, long)]
    pub(crate) size: bool,
    /// Only pods of Kubernetes, by their names
    #[arg(long)]
    pub(crate) pods: bool,
    #[command(flatten)]
    pub(crate) listing: ListingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    pub(crate) name: String,
    /// A port of the machine: 80, 53/udp
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub(crate) port: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Print the machine file that asks for the same ('zmachine run -f')
    #[arg(long)]
    pub(crate) spec: bool,
    /// Print secrets too: variables named *_TOKEN, *_KEY, *_PASSWORD or *SECRET*, and credentials of stores
    #[arg(long)]
    pub(crate) show_secrets: bool,
    /// Show each by a template as docker's: '{{.State.Status}}', '{{json .Spec}}'
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "spec")]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) names: NamesArgs,
}

/// Which part of a log, and how.
#[derive(Debug, Args)]
pub(crate) struct LogSpanArgs {
    /// Go on with what comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Show the time of each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    /// Begin at this time (a date, RFC 3339, seconds since 1970), or so long ago (10m, 1h30m)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// End at this time (a date, RFC 3339, seconds since 1970), or so long ago (10m, 1h30m)
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Only the last lines; 'all' for all
    #[arg(short = 'n', long, value_name = "LINES", allow_hyphen_values = true)]
    pub(crate) tail: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) span: LogSpanArgs,
    /// stdout, stderr, console, agent, hypervisor, monitor [default: stdout,stderr; console of a VM]
    #[arg(long, value_delimiter = ',')]
    pub(crate) source: Vec<zmachine_store::log::Source>,
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: LogFormat,
    pub(crate) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Leave it running and print its id; what it writes is dropped
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set or pass on an environment variable
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// With all capabilities and no limits, whatever the machine was made with
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Set the variables of a file: NAME=VALUE or NAME, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    pub(crate) name: String,
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep owners and groups, as numbers
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// What to copy: a path of this host, or NAME:PATH; 'DIR/.' is what is in DIR; '-' a tar archive on standard input
    #[arg(value_name = "SOURCE", allow_hyphen_values = true)]
    pub(crate) source: String,
    /// Where to: a directory that is there, or the new place; '-' for a tar archive on standard output
    #[arg(value_name = "TARGET", allow_hyphen_values = true)]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    /// Whom to be there
    #[arg(short = 'l', long = "login", value_name = "USER", default_value = "root")]
    pub(crate) user: String,
    /// Another private key than the home's own
    #[arg(short, long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The machine
    #[arg(value_name = "[USER@]NAME")]
    pub(crate) name: String,
    /// What to run there; words that begin with '-' before any other are options of ssh
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who made it
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) author: Option<String>,
    /// What for
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// An instruction of a Dockerfile that says how the image is run: 'CMD ["/server"]', 'ENV A=1' (repeatable)
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub(crate) changes: Vec<String>,
    /// Let its processes stand still while what they wrote is read, so that the image is of one instant; --pause=false lets them go on
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) pause: bool,
    /// The same as --pause=false
    #[arg(long, conflicts_with = "pause")]
    pub(crate) no_pause: bool,
    /// Show no progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// What the image is called; it has a digest alone when not given
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Write to this file, not to standard output
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Its name; two words when not given
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Print what each field does on this host; create nothing
    #[arg(long)]
    pub(crate) explain: bool,
    /// The data of a zmachine workload, as JSON; '-' for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Do not pass standard input on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct ConsoleArgs {
    /// Do not pass standard input on
    #[arg(long)]
    pub(crate) no_stdin: bool,
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    pub(crate) name: String,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what images, blocks, machines and volumes take on this host
    Df {
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Remove machines that do not run, networks nobody is in, images and blocks nobody needs
    Prune {
        /// Volumes without a name that no machine uses, too, with their data
        #[arg(long)]
        volumes: bool,
        /// Ask nothing
        #[arg(short, long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FirmwareCommand {
    /// Show the configured one
    Show,
    /// Take a file of this host: CLOUDHV.fd of EDK2, or hypervisor-fw. Its hash is pinned
    Set {
        /// The file
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The SHA-256 that it must have
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// List installed kernels
    Ls {
        #[arg(short, long)]
        quiet: bool,
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Install Debian's cloud kernel, or one of your own; nothing on the host changes but zmachine's state
    Install {
        /// Its name here
        #[arg(long)]
        name: Option<String>,
        /// A kernel package on this host
        #[arg(long, value_name = "FILE", conflicts_with = "vmlinux")]
        deb: Option<PathBuf>,
        /// A kernel on this host: ELF vmlinux or bzImage
        #[arg(long, value_name = "FILE")]
        vmlinux: Option<PathBuf>,
        /// The modules that belong to --vmlinux
        #[arg(long, value_name = "DIR", requires = "vmlinux")]
        modules: Option<PathBuf>,
    },
    /// Compile a small kernel of our own from Debian's kernel source (takes long)
    Build {
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove kernels
    Rm {
        /// Also those that machines start with
        #[arg(short, long)]
        force: bool,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Choose the kernel that machines get by default
    Default { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub(crate) shell: CompletionShell,
}

/// A shell that command lines can be completed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where the socket of Docker's API is made; by default docker.sock in the folder of this home's sockets
    #[arg(long, value_name = "PATH")]
    pub(crate) docker: Option<PathBuf>,
    /// Where the socket of the REST API is made; by default api.sock there
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// A group of this host whose members may use the sockets, and by that do everything that their owner can
    #[arg(long, value_name = "NAME|GID")]
    pub(crate) group: Option<String>,
    /// Serve both APIs here as well, by HTTPS, to those who have a token ('zmachine token create')
    #[arg(long, value_name = "IP:PORT", requires = "tls_cert")]
    pub(crate) listen: Option<std::net::SocketAddr>,
    /// Its certificate and those above it, in PEM; read again when they are renewed
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM, which others on this host must not be able to read
    #[arg(long, value_name = "PATH", requires = "listen")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// Read by the program that carries them out.
#[derive(Debug, Args)]
pub(crate) struct PassedArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Mend what can be mended without a loss: machines that lost their names get them back
    #[arg(long)]
    pub(crate) repair: bool,
    /// Also what a node of Kubernetes needs
    #[arg(long)]
    pub(crate) kubernetes: bool,
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Format,
}
