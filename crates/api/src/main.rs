//! `zmachine serve`: the server of the APIs, as a program of its own.
//!
//! `zmachine serve` becomes this program, which is beside it or in `lib/zmachine`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use zmachine_api::app::App;
use zmachine_api::listen;
use zmachine_api::server::{self, Speaks};
use zmachine_engine::{AbortAt, Engine, Programs, RegistryFiles};
use zmachine_spec::{Class, Failure, Home};

/// Threads for calls that block; each waits for a machine or a client.
const THREADS: usize = 512;

/// Descriptors at most.
const FILES: u64 = 65_536;

/// Serve the machines of this home to other programs: by Docker's API on one socket, by a REST API of our own on another
#[derive(Debug, Parser)]
#[command(name = "zmachine serve", version, max_term_width = 100)]
struct Args {
    /// Where the socket of Docker's API is made; by default docker.sock in the folder of this home's sockets
    #[arg(long, value_name = "PATH")]
    docker: Option<PathBuf>,
    /// Where the socket of the REST API is made; by default api.sock there
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The group of this host whose members may use the sockets. They can do everything that its owner can on this host
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
    /// The zmachine whose roles the processes of machines have
    #[arg(long, hide = true)]
    program: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Many threads come and go: each with memory of its own would keep what it once had.
    zmachine_sys::heap::keep_small();
    raise_files();
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            if let Some(hint) = &failure.hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(match failure.class {
                Class::Usage => 2,
                Class::NotFound => 3,
                Class::Conflict => 4,
                Class::Unsupported => 6,
                _ => 1,
            })
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let inherited = listen::inherited(|name| std::env::var(name).ok())?;
    let (data, run) = state_dirs()?;
    let home = Home::open(&data, &run)?;
    let (docker, native) = (
        place(&args.docker, &run, "docker.sock")?,
        place(&args.socket, &run, "api.sock")?,
    );
    let programs = Programs::at(&program(args)?);
    let engine = Engine::open(home, programs, AbortAt::default(), |line| eprintln!("warning: {line}"))?;
    let files = RegistryFiles {
        auth: auth_files(),
        ..engine.registry_files().clone()
    };
    let group = args.group.as_deref();
    let mut own = Vec::new();
    let (listeners, socket) = match inherited.is_empty() {
        true => {
            let listeners = vec![
                (Speaks::Docker, listen::bind(&docker, group)?),
                (Speaks::Native, listen::bind(&native, group)?),
            ];
            own = vec![docker.clone(), native.clone()];
            eprintln!("Docker's API: unix://{}", docker.display());
            eprintln!("REST API:     unix://{}", native.display());
            (listeners, Some(docker))
        }
        // One without a name is Docker's, as is that of the unit that comes with the package.
        false => {
            let speaks = |name: &str| if name == "api" { Speaks::Native } else { Speaks::Docker };
            let listeners: Vec<_> = inherited
                .into_iter()
                .map(|(name, listener)| (speaks(&name), listener))
                .collect();
            let first = listeners.iter().find(|(speaks, _)| *speaks == Speaks::Docker);
            let address = first.and_then(|(_, listener)| listener.local_addr().ok());
            let socket = address.and_then(|address| address.as_pathname().map(Path::to_owned));
            (listeners, socket)
        }
    };
    let app = Arc::new(App::new(engine.with_registry_files(files), socket)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(THREADS)
        .thread_stack_size(512 << 10)
        .build()?;
    runtime.block_on(async {
        let mut ends = [
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?,
        ];
        let mut servers = tokio::task::JoinSet::new();
        for (speaks, listener) in listeners {
            servers.spawn(server::serve(Arc::clone(&app), listener, speaks));
        }
        let [terminate, interrupt] = &mut ends;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            Some(ended) = servers.join_next() => ended.unwrap_or(Ok(())),
        }
    })?;
    for socket in own {
        let _ = std::fs::remove_file(socket);
    }
    // Clients see the end of their streams; threads that wait for machines are not waited for.
    runtime.shutdown_background();
    std::process::exit(0)
}

/// Each client has a few descriptors: as many as may be had are.
fn raise_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(limit.maximum.unwrap_or(FILES).min(FILES)).max(limit.current);
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The path of a socket: as it was said, or by its name in the folder of sockets.
fn place(said: &Option<PathBuf>, folder: &Path, name: &str) -> Result<PathBuf, Failure> {
    let path = said.clone().unwrap_or_else(|| folder.join(name));
    Ok(std::path::absolute(path)?)
}

/// The `zmachine` that belongs to this program.
fn program(args: &Args) -> Result<PathBuf, Failure> {
    if let Some(program) = &args.program {
        return Ok(program.clone());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let candidates = [folder.join("zmachine"), folder.join("../../bin/zmachine")];
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!("there is no zmachine beside {}", own.display());
        Failure::new(Class::Unsupported, message).hint("start the server by 'zmachine serve'")
    })
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

/// Where the credentials of registries are that are used when a client sends none.
fn auth_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(variable("HOME")?.join(".docker")));
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}
