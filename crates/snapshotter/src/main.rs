//! `zmachine snapshotter`: a proxy snapshotter for containerd. Images that are pulled through it come into the library of this host, and
//! pods get them as disks.
//!
//! | module | owns |
//! |---|---|
//! | `wire` | the messages |
//! | `grpc` | the service on the wire |
//! | `service` | what each call does |
//! | `table`, `filter` | the snapshots that containerd knows of |
//! | `images` | images in the library, and as directories of the host |

mod filter;
mod grpc;
mod images;
mod service;
mod table;
mod wire;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use zmachine_engine::{AbortAt, Engine, Programs, RegistryFiles};
use zmachine_spec::{Class, Failure, Home};

use self::grpc::Server;
use self::images::Images;
use self::service::Snapshots;
use self::table::Table;

/// Where containerd's configuration looks for it, unless another place is said.
const SOCKET: &str = "/run/zmachine/snapshotter.sock";

/// A snapshotter for containerd: images that are pulled through it come to pods as disks
#[derive(Debug, Parser)]
#[command(name = "zmachine-snapshotter")]
struct Cli {
    /// The zmachine that this belongs to
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// The word by which zmachine becomes this program
    #[arg(hide = true)]
    word: Option<String>,
    /// Where containerd connects to
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    socket: PathBuf,
}

fn main() -> ExitCode {
    let Err(failure) = run(&Cli::parse()) else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {}", failure.message);
    for cause in &failure.causes {
        eprintln!("caused by: {cause}");
    }
    if let Some(hint) = &failure.hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(if failure.class == Class::Usage { 2 } else { 1 })
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let (data, run) = state_dirs()?;
    let programs = match &cli.program {
        Some(program) => Programs::at(program),
        None => Programs::find()?,
    };
    let engine = Engine::open(Home::open(&data, &run)?, programs, AbortAt::default(), |line| {
        eprintln!("{line}")
    })?;
    let files = RegistryFiles {
        auth: auth_files(),
        ..engine.registry_files().clone()
    };
    let engine = engine.with_registry_files(files);
    let root = data.join("snapshotter");
    zmachine_sys::file::make_dirs(&root)?;
    let table =
        Table::open(&root.join("snapshots.json")).map_err(|error| Failure::from_error(Class::Failed, &error))?;
    let snapshots = Arc::new(Snapshots::new(Images::new(engine, &root), table));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(serve(&cli.socket, Server(Arc::clone(&snapshots))));
    snapshots.end();
    served
}

async fn serve(socket: &Path, server: Server) -> Result<(), Failure> {
    let listener = listen(socket)
        .map_err(|error| Failure::from(error).context(format!("cannot listen on {}", socket.display())))?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let end = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    };
    eprintln!("containerd finds the snapshotter at {}", socket.display());
    let served = grpc::serve(server, listener, end).await;
    let _ = fs::remove_file(socket);
    served.map_err(|error| Failure::new(Class::Failed, format!("the snapshotter ended: {error}")))
}

/// Binds the socket, for root alone: in the place of one that nobody listens on any more.
fn listen(socket: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder)?;
    }
    if UnixStream::connect(socket).is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another snapshotter listens there",
        ));
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Where the credentials of registries are: containerd does not hand on those that it was given.
fn auth_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        docker.map(|folder| folder.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The folders of the state, which the command line has as well.
fn state_dirs() -> Result<(PathBuf, PathBuf), Failure> {
    match std::env::var_os("ZMACHINE_HOME").filter(|home| !home.is_empty()) {
        Some(home) => {
            let home = std::path::absolute(home)?;
            let run = home.join("run");
            Ok((home, run))
        }
        None => Ok(("/var/lib/zmachine".into(), "/run/zmachine".into())),
    }
}
