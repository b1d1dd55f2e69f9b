//! `start`: finds the shim of a container's pod, or starts one, and says where it listens.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use zmachine_sys::process::{ChildSetup, prepare_child};

use crate::address;
use crate::arguments::Arguments;
use crate::bootstrap;
use crate::error::ShimError;
use crate::oci::Spec;
use crate::role::Role;

/// Where containerd looks for the address of a running shim, in the bundle.
const ADDRESS: &str = "address";

/// Says which version of the task API containerd speaks at most.
const MAX_VERSION: &str = "MAX_SHIM_VERSION";

/// Where containerd takes events.
pub(crate) const EVENTS_ADDRESS: &str = "TTRPC_ADDRESS";

/// By which the shim is found among processes.
const PROGRAM: &str = "containerd-shim-zmachine-v2";

/// Finds or starts the shim; the working directory is the container's bundle.
///
/// # Errors
/// Why there is none.
pub(crate) fn start(mut arguments: Arguments) -> Result<(), ShimError> {
    let params = bootstrap::params(&standard_input()?);
    if let Some(params) = &params {
        bootstrap::complete(&mut arguments, params);
    }
    let form = bootstrap::form(params.as_ref(), std::env::var(MAX_VERSION).ok().as_deref());
    if arguments.id.is_empty() || arguments.namespace.is_empty() {
        return Err(ShimError::Invalid(
            "containerd has not said which container it is".to_owned(),
        ));
    }
    let bundle = Path::new(".");
    let spec = match bundle.join("config.json").is_file() {
        true => Spec::read(bundle)?,
        // A sandbox of the sandbox API has none.
        false => Spec::default(),
    };
    let role = Role::of(&spec.annotations);
    let key = address::key(&arguments.address, &arguments.namespace, role.group(&arguments.id));
    let socket = address::socket(&key);
    if UnixStream::connect(&socket).is_err() {
        if let Role::Member { sandbox } = &role {
            return Err(ShimError::NotFound(format!(
                "the shim of the pod {sandbox} is gone, and its machine with it"
            )));
        }
        let events = params
            .map(|params| params.events_address)
            .filter(|address| !address.is_empty());
        spawn(&arguments, &socket, events.as_deref())?;
    }
    let address = address::to_text(&socket);
    fs::write(bundle.join(ADDRESS), &address).map_err(|e| ShimError::failed("cannot write the address", e))?;
    let answer = bootstrap::answer(form, &address);
    let said = io::stdout().write_all(&answer).and_then(|()| io::stdout().flush());
    said.map_err(|e| ShimError::failed("cannot answer", e))
}

fn standard_input() -> Result<Vec<u8>, ShimError> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(bootstrap::MESSAGE_LIMIT).read_to_end(&mut bytes);
    read.map_err(|e| ShimError::failed("cannot read standard input", e))?;
    Ok(bytes)
}

fn spawn(arguments: &Arguments, socket: &Path, events: Option<&str>) -> Result<(), ShimError> {
    let failed = |error: io::Error| ShimError::failed("cannot start the shim", error);
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    // Of one that was killed.
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(PROGRAM)
        .args(["-namespace", &arguments.namespace])
        .args(["-id", &arguments.id])
        .args(["-address", &arguments.address])
        .args(["-listener-fd", &listener.as_raw_fd().to_string()]);
    if arguments.debug {
        command.arg("-debug");
    }
    command.arg("serve");
    if let Some(events) = events {
        command.env(EVENTS_ADDRESS, events);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let setup = ChildSetup {
        keep: vec![listener.as_raw_fd()],
        new_session: true,
        ..ChildSetup::default()
    };
    prepare_child(&mut command, setup);
    command.spawn().map(drop).map_err(failed)
}
