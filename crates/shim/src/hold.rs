//! The process that stands for those of a pod: containerd looks at its network namespace by its number.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use zmachine_sys::process::{ChildSetup, prepare_child};

use crate::error::ShimError;

/// Be that process: enter the namespace, say so, and end with the shim.
///
/// # Errors
/// When there is no such namespace.
pub(crate) fn hold(namespace: Option<&Path>) -> Result<(), ShimError> {
    if let Some(path) = namespace {
        let failed = |error: io::Error| ShimError::failed(&format!("cannot enter {}", path.display()), error);
        let file = File::open(path).map_err(failed)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|e| failed(e.into()))?;
    }
    let said = io::stdout().write_all(b".").and_then(|()| io::stdout().flush());
    said.map_err(|e| ShimError::failed("cannot answer", e))?;
    let _ = io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

/// Starts one. Call it in the thread that lives as long as the shim: it ends with that.
///
/// # Errors
/// When the namespace cannot be entered.
pub(crate) fn start(namespace: Option<&Path>) -> Result<Child, ShimError> {
    let failed = |error: io::Error| ShimError::failed("cannot start the process of the pod's network", error);
    let mut command = Command::new("/proc/self/exe");
    command.arg("hold");
    if let Some(path) = namespace {
        command.arg(path);
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let setup = ChildSetup {
        die_with_parent: true,
        ..ChildSetup::default()
    };
    prepare_child(&mut command, setup);
    let mut child = command.spawn().map_err(failed)?;
    let mut byte = [0];
    let entered = child.stdout.as_mut().map(|stdout| stdout.read_exact(&mut byte));
    match entered {
        Some(Ok(())) => Ok(child),
        _ => {
            let _ = child.kill();
            let _ = child.wait();
            let named = namespace.map(|path| path.display().to_string()).unwrap_or_default();
            Err(ShimError::Failed(format!(
                "the pod's network namespace {named} cannot be entered"
            )))
        }
    }
}
