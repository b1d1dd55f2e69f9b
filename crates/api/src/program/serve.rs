//! `serve`: sockets, threads, and the end.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use zmachine_access::tls::Identity;
use zmachine_api::app::App;
use zmachine_api::listen::{self, Given};
use zmachine_api::server::{self, Speaks};
use zmachine_engine::{AbortAt, Engine, Programs, RegistryFiles};
use zmachine_spec::{Class, Failure, Home};

use super::state_dirs;

/// Threads for calls that block; each waits for a machine or a client.
const THREADS: usize = 512;

/// Descriptors at most.
const FILES: u64 = 65_536;

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Where the socket of Docker's API is made; by default docker.sock in the folder of this home's sockets
    #[arg(long, value_name = "PATH")]
    docker: Option<PathBuf>,
    /// Where the socket of the REST API is made; by default api.sock there
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The group of this host whose members may use the sockets. They can do everything that its owner can on this host
    #[arg(long, value_name = "NAME|GID")]
    group: Option<String>,
    /// Serve both APIs here as well, by HTTPS, to those who have a token ('zmachine token create')
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Its certificate and those above it, in PEM; read again when they are renewed
    #[arg(long, value_name = "PATH")]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, in PEM, which others on this host must not be able to read
    #[arg(long, value_name = "PATH")]
    tls_key: Option<PathBuf>,
}

pub(crate) fn serve(args: &ServeArgs, program: Option<&Path>) -> Result<u8, Failure> {
    // Many threads come and go: each with memory of its own would keep what it once had.
    zmachine_sys::heap::keep_small();
    raise_files();
    let inherited = listen::inherited(|name| std::env::var(name).ok())?;
    let is_activated = !inherited.is_empty();
    let (local, mut ports) = apart(inherited);
    ports.extend(port(args)?);
    let networks = networks(args, ports)?;
    let (data, run) = state_dirs()?;
    let home = Home::open(&data, &run)?;
    let (docker, native) = (
        place(&args.docker, &run, "docker.sock")?,
        place(&args.socket, &run, "api.sock")?,
    );
    let programs = Programs::at(&program_of(program)?);
    let engine = Engine::open(home, programs, AbortAt::default(), |line| eprintln!("warning: {line}"))?;
    let files = RegistryFiles {
        auth: auth_files(),
        ..engine.registry_files().clone()
    };
    let group = args.group.as_deref();
    let mut own = Vec::new();
    let (listeners, socket) = match is_activated {
        false => {
            let listeners = vec![
                (Speaks::Docker, listen::bind(&docker, group)?),
                (Speaks::Native, listen::bind(&native, group)?),
            ];
            own = vec![docker.clone(), native.clone()];
            eprintln!("Docker's API: unix://{}", docker.display());
            eprintln!("REST API:     unix://{}", native.display());
            (listeners, Some(docker))
        }
        true => given(local),
    };
    let app = Arc::new(App::new(engine.with_registry_files(files), socket)?);
    for (listener, _) in &networks {
        eprintln!("Both:         https://{}", listener.local_addr()?);
    }
    if !networks.is_empty() && app.guard.tokens.list()?.0.is_empty() {
        eprintln!("warning: there is no token yet: 'zmachine token create NAME --role viewer' makes one");
    }
    run_all(&app, listeners, networks)?;
    for socket in own {
        let _ = std::fs::remove_file(socket);
    }
    // Clients see the end of their streams; threads that wait for machines are not waited for.
    std::process::exit(0)
}

fn run_all(
    app: &Arc<App>,
    listeners: Vec<(Speaks, UnixListener)>,
    networks: Vec<(TcpListener, Identity)>,
) -> Result<(), Failure> {
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
            servers.spawn(server::serve(Arc::clone(app), listener, speaks));
        }
        for (listener, identity) in networks {
            servers.spawn(server::serve_network(Arc::clone(app), listener, identity));
        }
        let [terminate, interrupt] = &mut ends;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            Some(ended) = servers.join_next() => ended.unwrap_or(Ok(())),
        }
    })?;
    runtime.shutdown_background();
    Ok(())
}

/// The sockets that systemd hands over: those of this host, and those for clients from elsewhere.
fn apart(inherited: Vec<Given>) -> (Vec<(String, UnixListener)>, Vec<TcpListener>) {
    let (mut local, mut network) = (Vec::new(), Vec::new());
    for given in inherited {
        match given {
            Given::Local(name, listener) => local.push((name, listener)),
            Given::Network(listener) => network.push(listener),
        }
    }
    (local, network)
}

/// The Unix sockets that systemd hands over. One without a name is Docker's, as is that of the unit that comes with the package.
fn given(local: Vec<(String, UnixListener)>) -> (Vec<(Speaks, UnixListener)>, Option<PathBuf>) {
    let speaks = |name: &str| if name == "api" { Speaks::Native } else { Speaks::Docker };
    let listeners: Vec<_> = local
        .into_iter()
        .map(|(name, listener)| (speaks(&name), listener))
        .collect();
    let first = listeners.iter().find(|(speaks, _)| *speaks == Speaks::Docker);
    let address = first.and_then(|(_, listener)| listener.local_addr().ok());
    let socket = address.and_then(|address| address.as_pathname().map(Path::to_owned));
    (listeners, socket)
}

/// The port of `--listen`.
fn port(args: &ServeArgs) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = args.listen else { return Ok(None) };
    // Before anything is bound.
    let _ = identity(args)?;
    let listener = TcpListener::bind(address).map_err(|e| {
        Failure::from(e)
            .context(format!("cannot listen on {address}"))
            .hint("use an address of this host, and a port that nobody else has")
    })?;
    Ok(Some(listener))
}

/// The sockets for clients from elsewhere, with their certificate: there is none without TLS, not even for this host alone, as whatever
/// runs here, a browser too, could send to it and listen.
fn networks(args: &ServeArgs, ports: Vec<TcpListener>) -> Result<Vec<(TcpListener, Identity)>, Failure> {
    if ports.is_empty() && (args.tls_cert.is_some() || args.tls_key.is_some()) {
        let message = "--tls-cert and --tls-key are for --listen, or a port that systemd hands over";
        return Err(Failure::new(Class::Usage, message).hint("add --listen IP:PORT"));
    }
    ports.into_iter().map(|port| Ok((port, identity(args)?))).collect()
}

fn identity(args: &ServeArgs) -> Result<Identity, Failure> {
    match (&args.tls_cert, &args.tls_key) {
        (Some(certificate), Some(key)) => Identity::load(certificate, key),
        _ => Err(Failure::new(Class::Usage, "TCP is served with TLS alone")
            .hint("add --tls-cert and --tls-key; on this host, clients can use the Unix sockets")),
    }
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
fn program_of(said: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(program) = said {
        return Ok(program.to_owned());
    }
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let candidates = [folder.join("zmachine"), folder.join("../../bin/zmachine")];
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let message = format!("there is no zmachine beside {}", own.display());
        Failure::new(Class::Unsupported, message).hint("start the server by 'zmachine serve'")
    })
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
