//! Starting Cloud Hypervisor: sockets, process, description, boot. On every error no process is left.
//!
//! ```text
//! files there, vhost-user sockets served ─> folder, events, agent's socket ─> process in its jail ─> vmm.ping
//!   ─> vm.create ─> vm.add-net (taps) ─> vm.info: all understood? ─> serial console ─> vm.boot
//! ```

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use zmachine_sys::jail::{Jail, Jailed, SEARCH_PATH, find_program};
use zmachine_sys::process::ChildSetup;

use crate::driver::check_files;
use crate::process_log::Log;
use crate::{AgentStream, Boot, ControlError, Disk, LaunchError, Platform, Resources, RunDir, Saved, VmSpec};

use super::client::{ApiError, Client};
use super::config::{NetConfig, RestoreConfig, RestoredNet, VmConfig, difference};
use super::events::EventPipe;
use super::folder::Folder;
use super::jail::Files;
use super::save::Saves;
use super::vm::{ChVm, Parts};
use super::{AGENT_PORT, BINARY, CloudHypervisor, OLDEST, agent, serial, unsupported};

/// How long whoever serves a device may refuse connections: it may be restarting.
const UNSERVED_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause between two looks for a socket.
const PAUSE: Duration = Duration::from_millis(5);
/// Hints that wait to be looked at.
const HINTS: usize = 64;

/// What a step needs that the process of the machine is not told about.
struct Starting<'a> {
    vm: &'a VmSpec,
    folder: Arc<Folder>,
    client: Client,
    taps: Vec<(NetConfig, OwnedFd)>,
    saves: Option<&'a Arc<Saves>>,
    saved: Mutex<Option<Saved>>,
    patience: Duration,
}

pub(super) async fn launch(
    host: &CloudHypervisor,
    vm: &VmSpec,
    mut resources: Resources,
    run: &RunDir,
) -> Result<ChVm, LaunchError> {
    check_files(vm)?;
    check_firmware(vm)?;
    require_served(vm).await?;
    let wanted = resources.jail.as_ref().and_then(|jail| jail.user);
    let files = Files::of(vm, wanted)?;
    let folder = Folder::make(run.path(), files.user).map_err(channel("sockets"))?;
    let made = |path: &PathBuf| Saves::make(path, files.user, vm.memory_bytes).map(Arc::new);
    let saves = resources.saves.as_ref().filter(|_| vm.is_saveable).map(made);
    let saves = saves.transpose().map_err(channel("folder to save it in"))?;
    let mut find = |nic: &crate::Nic| {
        let tap = resources.taps.remove(&nic.id);
        let tap = tap.ok_or_else(|| LaunchError::NoTap { nic: nic.id.clone() })?;
        Ok((NetConfig::new(nic), tap))
    };
    let taps = vm.nics.iter().map(&mut find).collect::<Result<_, LaunchError>>()?;
    let ours = folder.reached();
    let events = EventPipe::create(&ours.events).and_then(|pipe| folder.give(&ours.events).map(|()| pipe));
    let events = events.map_err(channel("events"))?;
    let port = ours.port(AGENT_PORT);
    let listen = || agent::listen(&port).and_then(|listener| folder.give(&port).map(|()| listener));
    let listener = vm.agent.then(listen).transpose().map_err(channel("agent channel"))?;
    let (hints, hinted) = mpsc::channel(HINTS);
    let (end, over) = watch::channel(false);
    let jailed = match &resources.jail {
        Some(base) => in_jail(base, host, vm, &files, (&folder, saves.as_deref()))?,
        None => free(host, run),
    };
    let mut child = spawn(host, jailed, &files, (&folder, saves.as_deref()))?;
    drop(files);
    let log = Log::collect(child.stderr.take(), BINARY);
    let folder = Arc::new(folder);
    let starting = Starting {
        vm,
        client: Client::in_folder(Arc::clone(&folder)),
        folder,
        taps,
        saves: saves.as_ref(),
        saved: Mutex::new(resources.saved.take()),
        patience: host.patience,
    };
    let started = tokio::select! {
        started = starting.start(hints.clone(), over) => started,
        _ = child.wait() => Err(LaunchError::Control(ControlError::Gone)),
    };
    let (version, console, relay) = match started {
        Ok(started) => started,
        Err(error) => return Err(post_mortem(error, child, log, host.patience).await),
    };
    let mut tasks = vec![relay, tokio::spawn(events.follow(hints.clone()))];
    let mut stream = None;
    if let Some(listener) = listener {
        let task;
        if vm.platform == Platform::Lean {
            let called;
            (called, task) = agent::expect_one(listener);
            stream = Some(AgentStream::Expected(called));
        } else {
            task = agent::expect_many(listener, hints);
        }
        tasks.push(task);
    }
    Ok(ChVm::new(Parts {
        child,
        client: starting.client,
        patience: host.patience,
        platform: vm.platform,
        version,
        console,
        agent: stream,
        log,
        hints: hinted,
        over: end,
        tasks,
        saves,
    }))
}

fn channel(what: &'static str) -> impl Fn(std::io::Error) -> LaunchError {
    move |source| LaunchError::Channel { what, source }
}

/// The command that enters the jail and becomes the hypervisor.
fn in_jail(
    base: &Jail,
    host: &CloudHypervisor,
    vm: &VmSpec,
    files: &Files,
    (folder, saves): (&Folder, Option<&Saves>),
) -> Result<Jailed, LaunchError> {
    let binary = find_program(&host.binary).ok_or_else(|| not_spawned(host)(io::ErrorKind::NotFound.into()))?;
    crate::jail::make_readable(&vm.boot).map_err(not_spawned(host))?;
    let jail = super::jail::of(base, &binary, vm, files, folder, saves);
    Jailed::program(&jail, &binary).map_err(not_spawned(host))
}

/// The command of the hypervisor without a jail.
fn free(host: &CloudHypervisor, run: &RunDir) -> Jailed {
    let mut command = Command::new(&host.binary);
    command.env_clear().env("PATH", SEARCH_PATH).current_dir(run.path());
    Jailed::free(command)
}

fn spawn(
    host: &CloudHypervisor,
    mut jailed: Jailed,
    files: &Files,
    (folder, saves): (&Folder, Option<&Saves>),
) -> Result<Child, LaunchError> {
    let path = |path: &Path| format!("path={}", path.display());
    let sockets = folder.reported();
    let command = jailed.command();
    command.args(["--api-socket", &path(&sockets.api)]);
    command.args(["--event-monitor", &path(&sockets.events)]);
    // A guest that powers off leaves the process, one that ends by a triple fault takes it along: what else tells them apart
    // would be lost with the process.
    command.arg("--no-shutdown");
    command.args(["--seccomp", "true"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let setup = ChildSetup {
        keep: files
            .descriptors()
            .chain(folder.mount())
            .chain(saves.and_then(Saves::mount))
            .collect(),
        die_with_parent: true,
        new_session: true,
        ..ChildSetup::default()
    };
    let start = |command| tokio::process::Command::from(command).kill_on_drop(true).spawn();
    jailed.spawn(setup, start).map_err(not_spawned(host))
}

fn not_spawned(host: &CloudHypervisor) -> impl Fn(io::Error) -> LaunchError {
    let binary = host.binary.clone();
    move |source| LaunchError::Spawn {
        binary: binary.clone(),
        source,
    }
}

/// That the firmware is the one whose hash is pinned: it is the first thing that runs in the guest.
fn check_firmware(vm: &VmSpec) -> Result<(), LaunchError> {
    let Boot::Firmware {
        code,
        sha256: Some(pinned),
        ..
    } = &vm.boot
    else {
        return Ok(());
    };
    let missing = |source| LaunchError::Missing {
        what: "the firmware",
        path: code.clone(),
        source,
    };
    let found = crate::firmware::sha256_of(code).map_err(missing)?;
    if found != *pinned {
        let reason = format!("its SHA-256 is {found}, and {pinned} is pinned");
        return Err(missing(std::io::Error::other(reason)));
    }
    Ok(())
}

/// Tries every socket that the machine's description will name.
async fn require_served(vm: &VmSpec) -> Result<(), LaunchError> {
    let disks = vm.disks.iter().filter_map(|disk| match disk {
        Disk::VhostUser { socket, .. } => Some((socket, true)),
        Disk::File { .. } | Disk::Nbd { .. } => None,
    });
    // A server of a directory ends with its first connection, so a trial would be its end.
    let shares = vm.shares.iter().map(|share| (&share.socket, false));
    for (socket, takes_more) in disks.chain(shares) {
        let deadline = Instant::now() + UNSERVED_TIMEOUT;
        loop {
            let tried = match takes_more {
                true => tokio::net::UnixStream::connect(socket).await.map(drop),
                false => listened_to(socket),
            };
            match tried {
                Ok(()) => break,
                Err(_) if Instant::now() < deadline => tokio::time::sleep(PAUSE * 10).await,
                Err(error) => {
                    let output = format!("{}: {error}", socket.display());
                    return Err(LaunchError::Unserved { output });
                }
            }
        }
    }
    Ok(())
}

/// Whether somebody listens on the unix socket that was bound by the name `path`, by the kernel's list.
fn listened_to(path: &Path) -> std::io::Result<()> {
    let table = std::fs::read_to_string("/proc/net/unix")?;
    let named = format!(" {}", path.display());
    // Num RefCount Protocol Flags Type St Inode Path; the flag 0x10000 is "listens" (__SO_ACCEPTCON).
    let listens = |line: &str| {
        let flags = line.split_ascii_whitespace().nth(3);
        line.ends_with(&named)
            && flags.is_some_and(|flags| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x10000 != 0))
    };
    match table.lines().any(listens) {
        true => Ok(()),
        false => Err(std::io::ErrorKind::ConnectionRefused.into()),
    }
}

type Started = (String, tokio::net::UnixStream, tokio::task::JoinHandle<()>);

impl Starting<'_> {
    /// From a fresh process to a running guest.
    async fn start(
        &self,
        hints: mpsc::Sender<super::vm::Hint>,
        over: watch::Receiver<bool>,
    ) -> Result<Started, LaunchError> {
        let version = self.greet().await?;
        let mut config = VmConfig::new(self.vm, self.folder.path(), &self.folder.reported());
        if let Some(saves) = self.saves {
            config = config.with_saves(saves.path());
        }
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(saved) = saved {
            self.restore(saved, &config, &version).await?;
            self.confirm(&config).await?;
            // It stands still until it is told to go on.
            let relay = serial::relay(Arc::clone(&self.folder), hints, over).await;
            let (console, relay) = relay.map_err(channel("console"))?;
            return Ok((version, console, relay));
        }
        let refused = |command: &'static str| move |error: ApiError| LaunchError::Control(error.of(command));
        let created = self.client.put_with("vm.create", &config, &[], self.patience).await;
        created.map_err(refused("vm.create"))?;
        for (net, tap) in &self.taps {
            let added = self
                .client
                .put_with("vm.add-net", net, &[tap.as_fd()], self.patience)
                .await;
            added.map_err(refused("vm.add-net"))?;
        }
        self.confirm(&config).await?;
        let relay = serial::relay(Arc::clone(&self.folder), hints, over).await;
        let (console, relay) = relay.map_err(channel("console"))?;
        let booted = self.client.put("vm.boot", self.patience * 2).await;
        if let Err(error) = booted {
            relay.abort();
            return Err(refused("vm.boot")(error));
        }
        Ok((version, console, relay))
    }

    /// Has the hypervisor make the machine that was saved.
    async fn restore(&self, saved: Saved, config: &VmConfig, version: &str) -> Result<(), LaunchError> {
        let refused = |reason: String| {
            let command = "restore".to_owned();
            LaunchError::Control(ControlError::Refused { command, reason })
        };
        if saved.version != version {
            let reason = format!("the machine was saved by {}, and this is {version}", saved.version);
            return Err(refused(reason));
        }
        let Some(saves) = self.saves else {
            return Err(refused("there is no folder for what was saved".to_owned()));
        };
        let nets = self.taps.iter().map(|(net, _)| net.with_descriptor());
        let described = serde_json::to_value(config).and_then(|own| Ok((own, nets.collect::<Result<Vec<_>, _>>()?)));
        let (mut own, nets) = described.map_err(|error| refused(error.to_string()))?;
        own["net"] = Value::Array(nets);
        // As much as the guest has of memory: nobody else is to wait for that.
        let (copy, state) = (Arc::clone(saves), saved.state);
        let unpacked = tokio::task::spawn_blocking(move || copy.unpack(state, &own)).await;
        let unpacked = unpacked.unwrap_or_else(|error| Err(io::Error::other(error)));
        let found = unpacked.map_err(|error| refused(format!("what was saved cannot be used: {error}")))?;
        let wanted: Vec<&str> = self.taps.iter().map(|(net, _)| net.id()).collect();
        if found.iter().any(|id| !wanted.contains(&id.as_str())) || found.len() != wanted.len() {
            let reason = format!("it was saved with the interfaces {}", found.join(", "));
            return Err(refused(reason));
        }
        let net_fds = self.taps.iter().map(|(net, _)| RestoredNet {
            id: net.id().to_owned(),
            num_fds: 1,
        });
        let body = RestoreConfig {
            source_url: saves.url(),
            net_fds: net_fds.collect(),
            resume: false,
        };
        let taps: Vec<_> = self.taps.iter().map(|(_, tap)| tap.as_fd()).collect();
        let restored = self.client.put_with("vm.restore", &body, &taps, saves.patience()).await;
        restored.map_err(|error| LaunchError::Control(error.of("vm.restore")))?;
        saves.clear().map_err(channel("folder to save it in"))
    }

    /// Waits for the API; the version that answers.
    async fn greet(&self) -> Result<String, LaunchError> {
        let deadline = Instant::now() + self.patience * 2;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.client.get("vmm.ping", left.min(self.patience)).await {
                Ok(answer) => {
                    let version = answer["version"].as_str().unwrap_or_default();
                    require_supported(version)?;
                    return Ok(format!("{BINARY} {version}"));
                }
                // Not there yet. Whether its process is, somebody else watches.
                Err(ApiError::Gone) if !left.is_zero() => tokio::time::sleep(PAUSE).await,
                Err(ApiError::Gone) => {
                    return Err(LaunchError::Control(ApiError::Silent(self.patience * 2).of("vmm.ping")));
                }
                Err(error) => return Err(LaunchError::Control(error.of("vmm.ping"))),
            }
        }
    }

    /// That the hypervisor has understood all it was told.
    async fn confirm(&self, config: &VmConfig) -> Result<(), LaunchError> {
        let info = self.client.get("vm.info", self.patience).await;
        let info = info.map_err(|e| LaunchError::Control(e.of("vm.info")))?;
        let nets = self.taps.iter().map(|(net, _)| serde_json::to_value(net));
        let described = serde_json::to_value(config).and_then(|sent| Ok((sent, nets.collect::<Result<Vec<_>, _>>()?)));
        // What cannot be described cannot be compared either, so it is nothing that was understood.
        let Ok((mut sent, nets)) = described else {
            return Err(LaunchError::Misunderstood { field: "all".into() });
        };
        if let Some(sent) = sent.as_object_mut()
            && !nets.is_empty()
        {
            sent.insert("net".into(), Value::Array(nets));
        }
        match difference(&sent, &info["config"]) {
            None => Ok(()),
            Some(field) => Err(LaunchError::Misunderstood { field }),
        }
    }
}

/// That `version`, as `vmm.ping` tells it (`53.0.0`), is one that the driver knows.
fn require_supported(version: &str) -> Result<(), LaunchError> {
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let found: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match found < OLDEST {
        true => {
            let reason = format!("its version {version} is older than {}.{}", OLDEST.0, OLDEST.1);
            Err(LaunchError::Unsupported(unsupported(reason)))
        }
        false => Ok(()),
    }
}

/// From a failed start to the reason the hypervisor gave; its process is gone afterwards.
async fn post_mortem(error: LaunchError, mut child: Child, log: Log, patience: Duration) -> LaunchError {
    match error {
        LaunchError::Control(ControlError::Gone) => {
            // Not heard of any more. It may hang on while it goes.
            let waited = tokio::time::timeout(patience, child.wait()).await;
            let _ = child.kill().await; // also reaps it; it can only fail when it is gone already
            let status = match waited {
                Ok(Ok(status)) => status.to_string(),
                _ => "it closed its API and was killed".to_owned(),
            };
            let stderr = log.finish().await;
            LaunchError::Refused { status, stderr }
        }
        LaunchError::Control(ControlError::Silent { patience, .. }) => {
            let _ = child.kill().await;
            let stderr = log.finish().await;
            LaunchError::Silent { patience, stderr }
        }
        other => {
            let _ = child.kill().await;
            other
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_is_there_and_has_no_listener_is_not_served() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listened_to(&socket).unwrap();
        // To be listened to is not to be connected to.
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
        drop(listener);
        // A process that another test starts at this moment has a copy of the listener until it becomes its program.
        let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while listened_to(&socket).is_ok() {
            assert!(std::time::Instant::now() < patience, "still listened to");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
