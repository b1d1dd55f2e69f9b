//! `delete`: what is left of a container whose shim is gone.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};
use zmachine_sys::process::{ChildSetup, prepare_child};

use crate::address;
use crate::arguments::Arguments;
use crate::cgroup::{self, PodGroup};
use crate::error::ShimError;
use crate::events::timestamp;
use crate::log::Log;
use crate::oci::Spec;
use crate::pod;
use crate::role::Role;
use crate::share::PodFolder;

/// The status of what its shim has taken with it.
const LOST: u32 = 128 + 9;

/// How long a shim that is ending may take.
const ENDING: Duration = Duration::from_secs(20);

/// How long containerd is kept waiting: it ends a command that has not answered after five seconds, whatever it is doing.
const ANSWER: Duration = Duration::from_secs(3);

/// Tells this program that it is the process that cleans up.
const CLEANS: &str = "ZMACHINE_SHIM_CLEANS";

/// Cleans up after a container, and tells containerd how it ended. The work is another process's, which goes on where it takes longer than
/// containerd waits: a machine on a busy host needs its time to end, and nothing of it may stay.
///
/// # Errors
/// When something of it stays.
pub(crate) fn delete(arguments: &Arguments) -> Result<(), ShimError> {
    if std::env::var_os(CLEANS).is_some() {
        return clean(arguments);
    }
    let failed = |e: io::Error| ShimError::failed("cannot clean up", e);
    let mut cleaning = start_cleaning().map_err(failed)?;
    let deadline = Instant::now() + ANSWER;
    loop {
        match cleaning.try_wait().map_err(failed)? {
            Some(status) if status.success() => break,
            Some(_) => {
                let mut said = String::new();
                let said = cleaning
                    .stderr
                    .take()
                    .map(|stderr| stderr.take(4096).read_to_string(&mut said))
                    .map(|_| said);
                return Err(ShimError::failed(
                    "cannot clean up",
                    io::Error::other(said.unwrap_or_default()),
                ));
            }
            None if Instant::now() >= deadline => break,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    let response = DeleteResponse {
        exit_status: LOST,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().unwrap_or_default();
    let told = io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush());
    told.map_err(|e| ShimError::failed("cannot answer", e))
}

fn start_cleaning() -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).env(CLEANS, "1");
    // containerd waits for the end of everybody who has its pipes.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let setup = ChildSetup {
        new_session: true,
        ..ChildSetup::default()
    };
    prepare_child(&mut command, setup);
    command.spawn()
}

fn clean(arguments: &Arguments) -> Result<(), ShimError> {
    let bundle = arguments.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    // Where the bundle is gone, the id is all that is known.
    let spec = Spec::read(&bundle).unwrap_or_default();
    let role = Role::of(&spec.annotations);
    let key = address::key(&arguments.address, &arguments.namespace, role.group(&arguments.id));
    remove(&key, &role, &arguments.id)?;
    let group = PodGroup::of(Path::new(cgroup::ROOT), &spec.linux.cgroups_path);
    if let (Role::Sandbox | Role::Alone, Some(group)) = (&role, group) {
        // One with a shim in it that is ending goes with that; the kubelet removes what is left below its own.
        let _ = group.remove();
    }
    Ok(())
}

fn remove(key: &str, role: &Role, id: &str) -> Result<(), ShimError> {
    let (_, run) = pod::state_dirs()?;
    let folder = PodFolder::of(&run, key);
    let stays = |error: io::Error| ShimError::failed(&format!("the files of {id} stay"), error);
    let socket = address::socket(key);
    let is_served = UnixStream::connect(&socket).is_ok();
    // One that is just ending removes all of it by itself.
    let lock = match is_served {
        true => None,
        false => folder.lock(ENDING).map_err(stays)?,
    };
    let is_served = lock.is_none();
    if !is_served {
        // It ended with its shim; this waits until nothing of it is here any more.
        let engine = pod::open_engine(&Log::default())?;
        pod::remove_machine(&engine, &pod::machine_name(key))?;
    }
    match role {
        Role::Member { .. } => folder.remove_container(id).map_err(stays),
        Role::Sandbox | Role::Alone if is_served => Ok(()),
        Role::Sandbox | Role::Alone => {
            remove_file(&socket).map_err(stays)?;
            folder.remove().map_err(stays)
        }
    }
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
