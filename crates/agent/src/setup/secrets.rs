//! Secrets and other files of the host: copies in memory, never on a disk. Those with a name are in `/run/secrets`, those with a path are
//! there.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::mount::MountFlags;
use zmachine_agent_protocol::Secret;

use super::error::SetupError;
use super::root::mount_at;

/// Where those are that have a name.
const FOLDER: &str = "/run/secrets";

/// Where the others are until they are at their places: the kernel's own file system, so that nothing of it stays in the root.
const STAGE: &str = "/dev/.files";

/// Writes the secrets, in file systems of memory that cannot be swapped out of a guest without swap. Readable by all
/// processes of the container, as with docker: its program may be any user.
///
/// # Errors
/// [`SetupError`] when one cannot be written: a program that finds no secret must not run.
pub(super) fn write_all(secrets: &[Secret]) -> Result<(), SetupError> {
    let secrets: Vec<&Secret> = secrets.iter().filter(|secret| !secret.name.starts_with('/')).collect();
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

/// Puts the files that have a path at their places, over what is there. The container may write to them: what it writes is in its memory
/// alone, and gone with this run.
///
/// # Errors
/// [`SetupError`] when one cannot be there: a program that finds another file in its place must not run.
pub(super) fn place_all(files: &[Secret]) -> Result<(), SetupError> {
    let files: Vec<&Secret> = files.iter().filter(|file| file.name.starts_with('/')).collect();
    if files.is_empty() {
        return Ok(());
    }
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| SetupError::File { path, source }
    };
    fs::create_dir_all(STAGE).map_err(failed(STAGE))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs".as_ref(), STAGE, "tmpfs", flags, "mode=0755,size=8m")?;
    for (index, file) in files.iter().enumerate() {
        let staged = format!("{STAGE}/{index}");
        let mode = if file.executable { 0o755 } else { 0o644 };
        let made = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged);
        made.and_then(|mut made| made.write_all(&file.content))
            .map_err(failed(&file.name))?;
        make_file(&file.name).map_err(failed(&file.name))?;
        rustix::mount::mount_bind(&staged, &file.name).map_err(|source| SetupError::Mount {
            what: "a file of the host".to_owned(),
            target: file.name.clone(),
            source,
        })?;
    }
    // The files keep their file system when its own place goes.
    let gone = rustix::mount::unmount(STAGE, rustix::mount::UnmountFlags::DETACH);
    gone.map_err(|source| failed(STAGE)(source.into()))?;
    fs::remove_dir(STAGE).map_err(failed(STAGE))
}

/// An empty file where nothing is, for something to be mounted on.
fn make_file(path: &str) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_dir()) {
        return Ok(());
    }
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().write(true).create_new(true).open(path).map(drop)
}
