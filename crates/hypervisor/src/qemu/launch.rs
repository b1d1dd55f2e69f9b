//! Starting QEMU: descriptors, process, handshake. On every error no process is left.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Child;
use zmachine_sys::process::{ChildSetup, prepare_child};

use crate::driver::check_files;
use crate::process_log::Log;
use crate::{ControlError, Disk, LaunchError, Platform, Resources, RunDir, VmSpec};

use super::arguments::{AGENT_SOCKET, Channels, arguments};
use super::qmp::Qmp;
use super::vm::QemuVm;
use super::{BINARY, Qemu};

/// QEMU answers 0.1 s after its start; under emulation on a host with ten times more work than CPUs it took 8 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long whoever serves a disk may refuse connections: it may be restarting.
const UNSERVED_PATIENCE: Duration = Duration::from_secs(5);

/// The ends of the socket pairs that stay with us, and the other ends that QEMU inherits.
struct Pairs {
    qmp: (StdStream, StdStream),
    console: (StdStream, StdStream),
    agent: Option<(StdStream, StdStream)>,
}

pub(super) async fn launch(
    qemu: &Qemu,
    vm: &VmSpec,
    resources: Resources,
    run: &RunDir,
) -> Result<QemuVm, LaunchError> {
    check_files(vm)?;
    check_sockets(vm)?;
    let channel = |what| move |source| LaunchError::Channel { what, source };
    let pairs = Pairs {
        qmp: StdStream::pair().map_err(channel("control channel"))?,
        console: StdStream::pair().map_err(channel("console"))?,
        agent: (vm.agent && vm.platform == Platform::Lean)
            .then(StdStream::pair)
            .transpose()
            .map_err(channel("agent channel"))?,
    };
    let taps = taps(vm, &resources.taps)?;
    let mut child = spawn(qemu, vm, &pairs, taps, run)?;
    let log = Log::collect(child.stderr.take(), BINARY);
    let Pairs { qmp, console, agent } = pairs;
    // Our copies of QEMU's ends must go, or its death would not show as the end of the streams.
    let ours = |pair: (StdStream, StdStream), what| into_tokio(pair.0).map_err(channel(what));
    let console = ours(console, "console")?;
    let agent = agent.map(|pair| ours(pair, "agent channel")).transpose()?;
    drop(resources);
    let qmp = ours(qmp, "control channel")?;
    let greeted = tokio::select! {
        greeted = handshake(qmp) => greeted,
        said = unserved_disk(&log) => {
            let _ = child.kill().await; // also reaps it; it can only fail when it is gone already
            return Err(LaunchError::Unserved { said });
        }
    };
    match greeted {
        Ok(qmp) => Ok(QemuVm::new(
            child,
            qmp,
            console,
            (agent, run.path().join(AGENT_SOCKET)),
            log,
        )),
        Err(error) => Err(post_mortem(error, child, log).await),
    }
}

/// Checks what QEMU would not: it waits forever for a socket that is not there.
fn check_sockets(vm: &VmSpec) -> Result<(), LaunchError> {
    let missing = |path: &Path| {
        let (what, path) = ("the disk's socket", path.to_owned());
        move |source| LaunchError::Missing { what, path, source }
    };
    for disk in &vm.disks {
        if let Disk::VhostUser { socket, .. } = disk {
            let kind = std::fs::metadata(socket).map_err(missing(socket))?.file_type();
            if !kind.is_socket() {
                return Err(missing(socket)(std::io::Error::other("it is not a socket")));
            }
        }
    }
    Ok(())
}

fn taps(vm: &VmSpec, given: &HashMap<String, OwnedFd>) -> Result<HashMap<String, RawFd>, LaunchError> {
    let find = |id: &String| given.get(id).map(|fd| (id.clone(), fd.as_raw_fd()));
    vm.nics
        .iter()
        .map(|nic| find(&nic.id).ok_or_else(|| LaunchError::NoTap { nic: nic.id.clone() }))
        .collect()
}

fn spawn(
    qemu: &Qemu,
    vm: &VmSpec,
    pairs: &Pairs,
    taps: HashMap<String, RawFd>,
    run: &RunDir,
) -> Result<Child, LaunchError> {
    let channels = Channels {
        qmp: pairs.qmp.1.as_raw_fd(),
        console: pairs.console.1.as_raw_fd(),
        agent: pairs.agent.as_ref().map(|pair| pair.1.as_raw_fd()),
        taps,
    };
    let mut keep = vec![channels.qmp, channels.console];
    keep.extend(channels.agent);
    keep.extend(channels.taps.values());
    let mut command = Command::new(&qemu.binary);
    command.args(arguments(vm, qemu, &channels)).current_dir(run.path());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    prepare_child(
        &mut command,
        ChildSetup {
            keep,
            die_with_parent: true,
            new_session: true,
        },
    );
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command.spawn().map_err(|source| LaunchError::Spawn {
        binary: qemu.binary.clone(),
        source,
    })
}

async fn handshake(stream: UnixStream) -> Result<Qmp, ControlError> {
    match tokio::time::timeout(PATIENCE, Qmp::connect(stream)).await {
        Ok(connected) => connected,
        Err(_) => Err(ControlError::Silent {
            command: "greeting".into(),
            patience: PATIENCE,
        }),
    }
}

/// From a failed handshake to the reason QEMU gave; its process is gone afterwards.
async fn post_mortem(error: ControlError, mut child: Child, log: Log) -> LaunchError {
    match error {
        ControlError::Gone => {
            let status = child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
            LaunchError::Refused {
                status,
                stderr: log.finish().await,
            }
        }
        error => {
            let _ = child.kill().await; // also reaps it; it can only fail when it is gone already
            let stderr = log.finish().await;
            match error {
                ControlError::Silent { patience, .. } => LaunchError::Silent { patience, stderr },
                other => LaunchError::Control(other),
            }
        }
    }
}

fn into_tokio(stream: StdStream) -> std::io::Result<UnixStream> {
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Returns when QEMU has said that a disk's socket refuses it, and the patience for that is over. QEMU itself would try
/// forever, without answering on its control channel.
async fn unserved_disk(log: &Log) -> String {
    loop {
        if let Some(said) = log.find("Unable to connect character") {
            tokio::time::sleep(UNSERVED_PATIENCE).await;
            return said;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
