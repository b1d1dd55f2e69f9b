//! Sockets in the container that lead to sockets of the host: programs connect here, and the host takes the connections
//! ([`crate::dial`]).

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::error::SetupError;

/// As Docker's own: for root and its group in the container.
const MODE: u32 = 0o660;

/// Makes the sockets at `paths`, in the place of those of an earlier run.
///
/// # Errors
/// [`SetupError`] when one cannot be there: a program that finds none must not run.
pub(super) fn listen_all(paths: &[String]) -> Result<Vec<(String, UnixListener)>, SetupError> {
    let made = paths.iter().map(|path| {
        let listener = listen(Path::new(path)).map_err(|source| SetupError::File {
            path: path.clone(),
            source,
        })?;
        Ok((path.clone(), listener))
    });
    made.collect()
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    match path.symlink_metadata() {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        // An empty file is what others leave that mount something on it.
        Ok(there) if there.is_file() && there.len() == 0 => fs::remove_file(path)?,
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
