//! Starting QEMU: descriptors, process, handshake. On every error no process is left.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Child;
use zmachine_sys::jail::{self, Jail, Jailed, SEARCH_PATH};
use zmachine_sys::process::ChildSetup;

use crate::driver::{Saved, check_files};
use crate::process_log::Log;
use crate::{Accel, Boot, ControlError, Disk, LaunchError, NicKind, Platform, Resources, RunDir, VmSpec};

use super::arguments::{AGENT_SOCKET, Channels, FIRMWARE_CODE, FIRMWARE_VARIABLES, Memory, arguments, nic_slots};
use super::qmp::Qmp;
use super::vm::QemuVm;
use super::{BINARY, Qemu};

/// QEMU answers 0.1 s after its start; under emulation on a host with ten times more work than CPUs it took 8 s.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How long whoever serves a disk may refuse connections: it may be restarting.
const UNSERVED_TIMEOUT: Duration = Duration::from_secs(5);

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
    memory: Option<OwnedFd>,
}

pub(super) async fn launch(
    qemu: &Qemu,
    vm: &VmSpec,
    mut resources: Resources,
    run: &RunDir,
) -> Result<QemuVm, LaunchError> {
    zmachine_sys::clock::begin();
    let (saved_memory, saved_state) = match resources.saved.take() {
        None => (None, None),
        Some(Saved {
            state,
            memory,
            version,
            is_private,
        }) => (Some((memory, is_private)), Some((state, version))),
    };
    if saved_state.is_none() {
        check_files(vm)?;
    }
    check_sockets(vm)?;
    let vm = &with_counter(vm);
    let is_private = saved_memory.as_ref().is_some_and(|(_, is_private)| *is_private);
    let memory = match saved_memory {
        Some((memory, _)) => Some(memory),
        None if vm.is_saveable => Some(new_memory(vm)?),
        None => None,
    };
    let mut opened = open(qemu, vm, run, memory)?;
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
        memory: opened.memory.as_ref().map(|memory| Memory {
            fd: memory.as_raw_fd(),
            is_private,
        }),
        is_restored: saved_state.is_some(),
        files: numbers(&opened.files).collect(),
    };
    let jailed = match &resources.jail {
        Some(base) => in_jail(base, qemu, vm, &opened, is_private)?,
        None => {
            let mut command = Command::new(&qemu.binary);
            command.env_clear().env("PATH", SEARCH_PATH).current_dir(run.path());
            Jailed::free(command)
        }
    };
    let mut child = spawn(qemu, jailed, vm, &channels)?;
    let memory = opened.memory.take().filter(|_| !is_private);
    drop(opened);
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
        output = unserved_disk(&log) => {
            let _ = child.kill().await; // also reaps it; it can only fail when it is gone already
            return Err(LaunchError::Unserved { output });
        }
    };
    let ready = match (greeted, saved_state) {
        (Ok(mut qmp), Some((state, version))) => super::save::restore(&mut qmp, state, &version).await.map(|()| qmp),
        (greeted, _) => greeted,
    };
    match ready {
        Ok(qmp) => {
            let agent = (agent, run.path().join(AGENT_SOCKET));
            Ok(QemuVm::new(child, qmp, console, agent, log)
                .with_memory(memory)
                .with_slots(nic_slots(vm).len()))
        }
        Err(error) => Err(post_mortem(error, child, log).await),
    }
}

/// The machine, whose kernel is told the speed of this host's counter if it is one of ours that is emulated. Not in its plan:
/// that may be started on another host.
fn with_counter(vm: &VmSpec) -> VmSpec {
    let mut vm = vm.clone();
    if vm.accel == Accel::Tcg
        && vm.platform == Platform::Lean
        && let Boot::Kernel { cmdline, .. } = &mut vm.boot
    {
        *cmdline = crate::cmdline::with_counter(cmdline, zmachine_sys::clock::tsc_khz());
    }
    vm
}

/// Checks what QEMU would not: it waits forever for a socket that is not there.
fn check_sockets(vm: &VmSpec) -> Result<(), LaunchError> {
    let missing = |path: &Path| {
        let (what, path) = ("the disk's socket", path.to_owned());
        move |source| LaunchError::Missing { what, path, source }
    };
    let later = vm.later_disks.iter().map(|disk| disk.socket.as_path());
    for socket in vm.disks.iter().filter_map(Disk::socket).chain(later) {
        let kind = std::fs::metadata(socket).map_err(missing(socket))?.file_type();
        if !kind.is_socket() {
            return Err(missing(socket)(std::io::Error::other("it is not a socket")));
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

/// Memory of zeros that two processes can have.
fn new_memory(vm: &VmSpec) -> Result<OwnedFd, LaunchError> {
    let make = || {
        let memory = rustix::fs::memfd_create(c"guest-memory", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, vm.memory_bytes)?;
        Ok(memory)
    };
    make().map_err(|source: rustix::io::Errno| LaunchError::Channel {
        what: "memory",
        source: source.into(),
    })
}

/// Opens what QEMU reads and writes.
fn open(qemu: &Qemu, vm: &VmSpec, run: &RunDir, memory: Option<OwnedFd>) -> Result<Opened, LaunchError> {
    let open = |what, path: &Path, writable: bool| {
        let missing = |source| LaunchError::Missing {
            what,
            path: path.to_owned(),
            source,
        };
        File::options().read(true).write(writable).open(path).map_err(missing)
    };
    let mut files = BTreeMap::new();
    if let Boot::Firmware { code, variables, .. } = &vm.boot {
        files.insert(FIRMWARE_CODE.to_owned(), open("the firmware", code, false)?);
        if let Some(variables) = variables {
            let file = open("the firmware's variables", variables, true)?;
            files.insert(FIRMWARE_VARIABLES.to_owned(), file);
        }
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
        for nic in vm.nics.iter().filter(|nic| nic.kind == NicKind::Tap) {
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
        memory,
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
fn in_jail(
    base: &Jail,
    qemu: &Qemu,
    vm: &VmSpec,
    opened: &Opened,
    has_private_memory: bool,
) -> Result<Jailed, LaunchError> {
    let spawn = |source| LaunchError::Spawn {
        binary: qemu.binary.clone(),
        source,
    };
    let binary = jail::find_program(&qemu.binary).ok_or_else(|| spawn(io::ErrorKind::NotFound.into()))?;
    crate::jail::make_readable(&vm.boot).map_err(spawn)?;
    let sizes = opened
        .files
        .values()
        .filter_map(|file| Some(file.metadata().ok()?.len()));
    let jail = super::jail::of(base, &binary, vm, sizes.max().unwrap_or_default(), has_private_memory);
    Jailed::program(&jail, &binary).map_err(spawn)
}

fn spawn(qemu: &Qemu, mut jailed: Jailed, vm: &VmSpec, channels: &Channels) -> Result<Child, LaunchError> {
    let mut keep = vec![channels.qmp, channels.console];
    keep.extend(channels.agent);
    keep.extend(channels.agent_listener);
    keep.extend(channels.memory.map(|memory| memory.fd));
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
        no_huge_pages: vm.accel == Accel::Tcg && channels.memory.is_some(),
    };
    let start = |command| tokio::process::Command::from(command).kill_on_drop(true).spawn();
    jailed.spawn(setup, start).map_err(|source| LaunchError::Spawn {
        binary: qemu.binary.clone(),
        source,
    })
}

async fn handshake(stream: UnixStream) -> Result<Qmp, ControlError> {
    match tokio::time::timeout(TIMEOUT, Qmp::connect(stream)).await {
        Ok(connected) => connected,
        Err(_) => Err(ControlError::Silent {
            command: "greeting".into(),
            patience: TIMEOUT,
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
        if let Some(output) = log.find("Unable to connect character") {
            tokio::time::sleep(UNSERVED_TIMEOUT).await;
            return output;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
