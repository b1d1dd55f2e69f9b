//! Starting, finding, telling and ending the dnsmasq of a network.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use zmachine_sys::file::{self, FileError};
use zmachine_sys::jail::{Access, Jail, Jailed, Limits};
use zmachine_sys::process::{ChildSetup, ProcessId};

use super::config::{self, Account};
use crate::dns;
use crate::endpoint::Endpoint;
use crate::error::NetworkError;
use crate::home::Networks;
use crate::network::Network;

/// Where distributions put it; a user's search path often lacks the sbin folders.
const PLACES: [&str; 4] = [
    "/usr/sbin/dnsmasq",
    "/sbin/dnsmasq",
    "/usr/local/sbin/dnsmasq",
    "/usr/bin/dnsmasq",
];

/// `CAP_SETGID`, `CAP_SETUID`, `CAP_NET_BIND_SERVICE`, `CAP_NET_ADMIN` (for neighbours of DHCP), `CAP_NET_RAW` (for router
/// advertisements).
const CAPABILITIES: [u32; 5] = [6, 7, 10, 12, 13];

/// Private memory it may have in bytes: names and leases of its machines, a thousand cached answers.
const PRIVATE_BYTES: u64 = 256 << 20;

/// How long one may take to end after SIGTERM.
const END_TIMEOUT: Duration = Duration::from_secs(5);

const SIGHUP: i32 = rustix::process::Signal::HUP.as_raw();
const SIGTERM: i32 = rustix::process::Signal::TERM.as_raw();
const SIGKILL: i32 = rustix::process::Signal::KILL.as_raw();

fn program() -> &'static str {
    PLACES.into_iter().find(|p| Path::new(p).exists()).unwrap_or("dnsmasq")
}

/// Whether this host has the program.
pub(crate) fn is_installed() -> bool {
    Path::new(program()).exists()
}

fn folder(networks: &Networks, network: &Network) -> PathBuf {
    networks.host_dir().join(network.bridge())
}

fn conf_path(networks: &Networks, network: &Network) -> PathBuf {
    folder(networks, network).join("dnsmasq.conf")
}

/// The dnsmasq of the network, when it runs.
pub(crate) fn find(networks: &Networks, network: &Network) -> Option<ProcessId> {
    let mut wanted = OsString::from("--conf-file=");
    wanted.push(conf_path(networks, network));
    let wanted = wanted.as_encoded_bytes();
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        // One that has ended and was not collected yet has no command line.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"dnsmasq")) && words.any(|word| word == wanted)
    })
    .find_map(ProcessId::of)
}

/// Has the network's dnsmasq run and know these machines. `fresh`: the bridge is a new one, which an old process does not
/// listen on. The caller holds the network's lock.
pub(crate) async fn ensure(
    networks: &Networks,
    network: &Network,
    endpoints: &[Endpoint],
    fresh: bool,
) -> Result<(), NetworkError> {
    let dir = folder(networks, network);
    file::make_dirs(&dir)?;
    for open in [networks.host_dir(), &dir] {
        readable(open, 0o755)?;
    }
    let is_news = inform(networks, network, endpoints)?;
    let conf = config::conf(network, &dir, &account());
    let running = find(networks, network);
    let is_another = write(&dir.join("dnsmasq.conf"), &conf)?;
    match running {
        Some(process) if !is_another && !fresh => {
            if is_news {
                process
                    .signal(SIGHUP)
                    .map_err(|source| NetworkError::NoDnsmasq { source })?;
                networks.step("dnsmasq told");
            }
            return Ok(());
        }
        Some(process) => end(process)?,
        None => {}
    }
    start(networks, network).await
}

/// Tells a running dnsmasq of the machines and of whom to ask, if that is news. The caller holds the network's lock.
pub(super) fn refresh(networks: &Networks, network: &Network, endpoints: &[Endpoint]) -> Result<(), NetworkError> {
    if let Some(process) = find(networks, network)
        && inform(networks, network, endpoints)?
    {
        process
            .signal(SIGHUP)
            .map_err(|source| NetworkError::NoDnsmasq { source })?;
    }
    Ok(())
}

/// Writes what dnsmasq reads again at SIGHUP; whether it is news.
fn inform(networks: &Networks, network: &Network, endpoints: &[Endpoint]) -> Result<bool, NetworkError> {
    let dir = folder(networks, network);
    let others = others(networks, endpoints);
    let texts = [
        ("hosts", config::hosts(network, endpoints)),
        ("dhcp", config::dhcp(network, endpoints)),
        (
            "servers",
            config::servers(network, endpoints, &others, &dns::own_resolvers()),
        ),
    ];
    let mut is_news = false;
    for (name, text) in &texts {
        is_news |= write(&dir.join(name), text)?;
    }
    Ok(is_news)
}

/// Ends the network's dnsmasq, and removes its files.
pub(crate) fn stop(networks: &Networks, network: &Network) -> Result<(), NetworkError> {
    if let Some(process) = find(networks, network) {
        end(process)?;
        networks.step("dnsmasq ended");
    }
    let dir = folder(networks, network);
    if dir.exists() {
        file::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn end(process: ProcessId) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::NoDnsmasq { source };
    process.signal(SIGTERM).map_err(failed)?;
    if process.wait_gone(END_TIMEOUT) {
        return Ok(());
    }
    process.signal(SIGKILL).map_err(failed)?;
    match process.wait_gone(END_TIMEOUT) {
        true => Ok(()),
        false => Err(failed(io::Error::other(format!(
            "process {} does not end",
            process.pid
        )))),
    }
}

/// Starts it. It opens its sockets before it leaves the one who started it, so success means that it serves.
async fn start(networks: &Networks, network: &Network) -> Result<(), NetworkError> {
    let mut jailed = match networks.has_jail() {
        true => in_jail(&folder(networks, network), networks.launcher())?,
        false => Jailed::free(std::process::Command::new(program())),
    };
    let mut argument = OsString::from("--conf-file=");
    argument.push(conf_path(networks, network));
    jailed
        .command()
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .current_dir("/")
        .env_clear()
        // Whose it is, for those who look at processes.
        .env("ZMACHINE_NETWORK", networks.folder(network.name())?);
    let setup = ChildSetup {
        new_session: true,
        ..ChildSetup::default()
    };
    let failed = |source| NetworkError::NoDnsmasq { source };
    let child = jailed
        .spawn(setup, |command| Command::from(command).spawn())
        .map_err(failed)?;
    let output = child.wait_with_output().await.map_err(failed)?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr);
        let output = output.lines().map(|l| l.trim().trim_start_matches("dnsmasq: "));
        let output: Vec<&str> = output.filter(|l| !l.is_empty()).collect();
        return Err(NetworkError::Dnsmasq {
            name: network.name().to_owned(),
            output: output.join("; "),
        });
    }
    networks.step("dnsmasq started");
    Ok(())
}

/// What it needs of the host's files: itself, its folder, and who its account is. Of what root may do, it keeps what its sockets
/// and its change of account need; it gives up more itself then.
fn in_jail(dir: &Path, launcher: Option<PathBuf>) -> Result<Jailed, NetworkError> {
    let ground = dir.join("jail");
    file::make_dirs(&ground)?;
    let program = Path::new(program());
    let mut jail = Jail::new(ground, None).see_program(program).see(dir, Access::Read);
    for path in ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf"] {
        jail = jail.see(path, Access::Read);
    }
    jail.network = true;
    jail.launcher = launcher;
    jail.capabilities = CAPABILITIES.to_vec();
    jail.limits = Limits {
        file_bytes: Some(0),
        private_bytes: Some(PRIVATE_BYTES),
        ..Limits::default()
    };
    Ok(Jailed::daemon(&jail, program))
}

/// The networks that one of these machines is in as well.
fn others(networks: &Networks, endpoints: &[Endpoint]) -> Vec<Network> {
    let mut names: Vec<&String> = endpoints.iter().flat_map(|s| &s.membership.also_in).collect();
    names.sort();
    names.dedup();
    // One that is gone has no names either.
    names.into_iter().filter_map(|name| networks.get(name).ok()).collect()
}

/// Writes a file that everybody may read, in one step; whether it is news.
fn write(path: &Path, text: &str) -> Result<bool, NetworkError> {
    if fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
        return Ok(false);
    }
    let new = path.with_extension("new");
    fs::write(&new, text).map_err(|e| FileError::io("write", &new, e))?;
    readable(&new, 0o644)?;
    fs::rename(&new, path).map_err(|e| FileError::io("write", path, e))?;
    Ok(true)
}

fn readable(path: &Path, mode: u32) -> Result<(), NetworkError> {
    let set = fs::set_permissions(path, fs::Permissions::from_mode(mode));
    Ok(set.map_err(|e| FileError::io("open to readers", path, e))?)
}

/// The unprivileged account: Debian's package makes one.
fn account() -> Account {
    let has = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.split(':').next() == Some(name))
    };
    let pick = |file: &str, names: [&'static str; 2]| names.into_iter().find(|n| has(file, n)).unwrap_or(names[1]);
    Account {
        user: pick("/etc/passwd", ["dnsmasq", "nobody"]),
        group: pick("/etc/group", ["nogroup", "nobody"]),
    }
}
