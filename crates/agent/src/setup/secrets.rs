//! Secrets: files in memory on `/run/secrets`, never on a disk.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use rustix::mount::MountFlags;
use zmachine_agent_protocol::Secret;

use super::error::SetupError;
use super::root::mount_at;

/// Where they are.
const FOLDER: &str = "/run/secrets";

/// Writes the secrets, in file systems of memory that cannot be swapped out of a guest without swap. Readable by all
/// processes of the container, as with docker: its program may be any user.
///
/// # Errors
/// [`SetupError`] when one cannot be written: a program that finds no secret must not run.
pub(super) fn write_all(secrets: &[Secret]) -> Result<(), SetupError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| SetupError::File { path, source }
    };
    fs::create_dir_all(FOLDER).map_err(failed(FOLDER))?;
    mount_at("tmpfs".as_ref(), FOLDER, "tmpfs", flags, "mode=0755,size=8m")?;
    for secret in secrets {
        let path = format!("{FOLDER}/{}", secret.name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
        file.and_then(|mut file| file.write_all(&secret.content))
            .map_err(failed(&path))?;
    }
    let sealed = rustix::mount::mount_remount(FOLDER, flags | MountFlags::RDONLY, "mode=0755,size=8m");
    sealed.map_err(|source| failed(FOLDER)(source.into()))
}
