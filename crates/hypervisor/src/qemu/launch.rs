//! Starting QEMU: descriptors, process, handshake. On every error no process is left.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zmachine_sys::jail::{self, Jail, Jailed};
use zmachine_sys::process::ChildSetup;

use crate::{Boot, ControlError, Disk, LaunchError, LogLines, Platform, Resources, RunDir, VmSpec};

use super::arguments::{AGENT_SOCKET, Channels, FIRMWARE_CODE, FIRMWARE_VARIABLES, arguments};
use super::qmp::Qmp;
use super::vm::QemuVm;
use super::{BINARY, Qemu};

/// QEMU answers 0.1 s after its start; under emulation on a host with ten times more work than CPUs it took 8 s.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long whoever serves a disk may refuse connections: it may be restarting.
const UNSERVED_PATIENCE: Duration = Duration::from_secs(5);
/// Lines of QEMU's messages that are kept for error texts.
const KEPT_LINES: usize = 20;
/// Lines of QEMU's messages that wait for whoever takes the log.
const WAITING_LINES: usize = 256;
/// No line is shown longer than this.
const MAX_LINE_BYTES: usize = 4096;

/// The ends of the socket pairs that stay with us, and the other ends that QEMU inherits.
struct Pairs {
    qmp: (StdStream, StdStream),
    console: (StdStream, StdStream),
    agent: Option<(StdStream, StdStream)>,
}

/// What QEMU inherits open, since its jail has no path to it.
struct Opened {
    agent_listener: Option<UnixListener>,
    vhost: HashMap<String, File>,
    files: BTreeMap<String, File>,
}

pub(super) async fn launch(
    qemu: &Qemu,
    vm: &VmSpec,
    resources: Resources,
    run: &RunDir,
) -> Result<QemuVm, LaunchError> {
    check_files(vm)?;
    let opened = open(qemu, vm, run)?;
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
    let channels = Channels {
        qmp: pairs.qmp.1.as_raw_fd(),
        console: pairs.console.1.as_raw_fd(),
        agent: pairs.agent.as_ref().map(|pair| pair.1.as_raw_fd()),
        agent_listener: opened.agent_listener.as_ref().map(AsRawFd::as_raw_fd),
        taps,
        vhost: numbers(&opened.vhost).collect(),
        files: numbers(&opened.files).collect(),
    };
    let jailed = match &resources.jail {
        Some(base) => in_jail(base, qemu, vm, &opened)?,
        None => {
            let mut command = Command::new(&qemu.binary);
            command.current_dir(run.path());
            Jailed::free(command)
        }
    };
    let mut child = spawn(qemu, jailed, vm, &channels)?;
    drop(opened);
    let log = Log::collect(child.stderr.take());
    let Pairs { qmp, console, agent } = pairs;
    // Our copies of QEMU's ends must go, or its death would not show as the end of the streams.
    let ours = |pair: (StdStream, StdStream), what| into_tokio(pair.0).map_err(channel(what));
    let console = ours(console, "console")?;
    let agent = agent.map(|pair| ours(pair, "agent channel")).transpose()?;
    drop(resources);
    let qmp = ours(qmp, "control channel")?;
    let greeted = tokio::select! {
        greeted = handshake(qmp) => greeted,
        said = log.unserved_disk() => {
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
fn check_files(vm: &VmSpec) -> Result<(), LaunchError> {
    let missing = |what, path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Missing { what, path, source }
    };
    match &vm.boot {
        Boot::Kernel { kernel, initrd, .. } => {
            File::open(kernel).map_err(missing("the kernel", kernel))?;
            if let Some(initrd) = initrd {
                File::open(initrd).map_err(missing("the initramfs", initrd))?;
            }
        }
        Boot::Firmware { code, variables } => {
            File::open(code).map_err(missing("the firmware", code))?;
            File::open(variables).map_err(missing("the firmware's variables", variables))?;
        }
    }
    for disk in &vm.disks {
        if let Disk::VhostUser { socket, .. } = disk {
            let what = "the disk's socket";
            let kind = std::fs::metadata(socket).map_err(missing(what, socket))?.file_type();
            if !kind.is_socket() {
                return Err(missing(what, socket)(std::io::Error::other("it is not a socket")));
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

/// Opens what QEMU reads and writes.
fn open(qemu: &Qemu, vm: &VmSpec, run: &RunDir) -> Result<Opened, LaunchError> {
    let open = |what, path: &Path, writable: bool| {
        let missing = |source| LaunchError::Missing {
            what,
            path: path.to_owned(),
            source,
        };
        File::options().read(true).write(writable).open(path).map_err(missing)
    };
    let mut files = BTreeMap::new();
    if let Boot::Firmware { code, variables } = &vm.boot {
        files.insert(FIRMWARE_CODE.to_owned(), open("the firmware", code, false)?);
        files.insert(
            FIRMWARE_VARIABLES.to_owned(),
            open("the firmware's variables", variables, true)?,
        );
    }
    for disk in &vm.disks {
        if let Disk::File {
            id, path, read_only, ..
        } = disk
        {
            files.insert(id.clone(), open("the disk", path, !read_only)?);
        }
    }
    let mut vhost = HashMap::new();
    if qemu.vhost_net {
        for nic in &vm.nics {
            vhost.insert(nic.id.clone(), open("the device", Path::new("/dev/vhost-net"), true)?);
        }
    }
    let agent_listener = (vm.agent && vm.platform == Platform::Pc)
        .then(|| listen(&run.path().join(AGENT_SOCKET)))
        .transpose()
        .map_err(|source| LaunchError::Channel {
            what: "agent channel",
            source,
        })?;
    Ok(Opened {
        agent_listener,
        vhost,
        files,
    })
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // Of an earlier attempt of this run.
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path)
}

fn numbers<'a>(files: impl IntoIterator<Item = (&'a String, &'a File)>) -> impl Iterator<Item = (String, RawFd)> {
    files.into_iter().map(|(id, file)| (id.clone(), file.as_raw_fd()))
}

/// The command that enters the jail and becomes QEMU.
fn in_jail(base: &Jail, qemu: &Qemu, vm: &VmSpec, opened: &Opened) -> Result<Jailed, LaunchError> {
    let spawn = |source| LaunchError::Spawn {
        binary: qemu.binary.clone(),
        source,
    };
    let binary = jail::find_program(&qemu.binary).ok_or_else(|| spawn(io::ErrorKind::NotFound.into()))?;
    super::jail::make_readable(&vm.boot).map_err(spawn)?;
    let sizes = opened
        .files
        .values()
        .filter_map(|file| Some(file.metadata().ok()?.len()));
    let jail = super::jail::of(base, &binary, vm, sizes.max().unwrap_or_default());
    Jailed::program(&jail, &binary).map_err(spawn)
}

fn spawn(qemu: &Qemu, mut jailed: Jailed, vm: &VmSpec, channels: &Channels) -> Result<Child, LaunchError> {
    let mut keep = vec![channels.qmp, channels.console];
    keep.extend(channels.agent);
    keep.extend(channels.agent_listener);
    keep.extend(
        channels
            .taps
            .values()
            .chain(channels.vhost.values())
            .chain(channels.files.values()),
    );
    jailed
        .command()
        .args(arguments(vm, qemu, channels))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let setup = ChildSetup {
        keep,
        die_with_parent: true,
        new_session: true,
    };
    let start = |command| tokio::process::Command::from(command).kill_on_drop(true).spawn();
    jailed.spawn(setup, start).map_err(|source| LaunchError::Spawn {
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

/// QEMU's standard error: read by a task of its own, so that QEMU never waits for us to read it.
#[derive(Debug)]
pub(super) struct Log {
    kept: Arc<Mutex<VecDeque<String>>>,
    pub(super) lines: Option<LogLines>,
    task: Option<JoinHandle<()>>,
}

impl Log {
    fn collect(stderr: Option<ChildStderr>) -> Self {
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, lines) = mpsc::channel(WAITING_LINES);
        let task = stderr.map(|stderr| tokio::spawn(read_lines(stderr, kept.clone(), sender)));
        Self {
            kept,
            lines: Some(lines),
            task,
        }
    }

    /// Returns when QEMU has said that a disk's socket refuses it, and the patience for that is over. QEMU itself would try
    /// forever, without answering on its control channel.
    async fn unserved_disk(&self) -> String {
        let find = |kept: &VecDeque<String>| kept.iter().find(|l| l.contains("Unable to connect character")).cloned();
        loop {
            let said = find(&self.kept.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(said) = said {
                tokio::time::sleep(UNSERVED_PATIENCE).await;
                return said;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The last lines, after QEMU has ended and all was read.
    pub(super) async fn finish(mut self) -> Vec<String> {
        self.last_lines().await
    }

    /// As [`Self::finish`]. Bounded, in case somebody else holds QEMU's standard error open.
    pub(super) async fn last_lines(&mut self) -> Vec<String> {
        if let Some(task) = self.task.take() {
            let _ = tokio::time::timeout(Duration::from_secs(2), task).await;
        }
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}

async fn read_lines(stderr: ChildStderr, kept: Arc<Mutex<VecDeque<String>>>, sender: mpsc::Sender<String>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await.is_ok_and(|n| n > 0) {
        line.truncate(MAX_LINE_BYTES);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let text = text
            .strip_prefix(BINARY)
            .and_then(|t| t.strip_prefix(": "))
            .unwrap_or(&text)
            .to_owned();
        let _ = sender.try_send(text.clone()); // nobody may be listening, or not fast enough
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_LINES {
            kept.pop_front();
        }
        kept.push_back(text);
        line.clear();
    }
}
