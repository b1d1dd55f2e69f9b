//! `delete`: what is left of a container whose shim is gone.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message, MessageField};

use crate::address;
use crate::arguments::Arguments;
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

/// Cleans up after a container, and tells containerd how it ended.
///
/// # Errors
/// When something of it stays.
pub(crate) fn delete(arguments: &Arguments) -> Result<(), ShimError> {
    let bundle = arguments.bundle.clone().unwrap_or_else(|| PathBuf::from("."));
    // Where the bundle is gone, the id is all that is known.
    let role = Spec::read(&bundle).map_or(Role::Alone, |spec| Role::of(&spec.annotations));
    let key = address::key(&arguments.address, &arguments.namespace, role.group(&arguments.id));
    remove(&key, &role, &arguments.id)?;
    let response = DeleteResponse {
        exit_status: LOST,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().unwrap_or_default();
    let told = io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush());
    told.map_err(|e| ShimError::failed("cannot answer", e))
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
