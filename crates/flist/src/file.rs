//! Opening files that somebody named.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `O_NONBLOCK` of Linux: what turns out to be a FIFO is not waited for.
const NONBLOCK: i32 = 0o4000;

/// Opens a regular file; `None` for whatever else is there.
pub(crate) fn open_regular(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}
