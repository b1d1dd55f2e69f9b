//! Locks of volumes that a command hands to the monitor that it starts, so that nobody else gets a volume in between.

use std::io;
use std::os::fd::AsRawFd;

use zmachine_sys::fd;
use zmachine_sys::lock::FileLock;

/// A lock as an argument of the process that inherits it: `FD:NAME`.
pub fn argument(name: &str, lock: &FileLock) -> String {
    format!("{}:{name}", lock.file().as_raw_fd())
}

/// The name of the volume and its lock, which this process has inherited.
///
/// # Errors
/// When `text` is no such argument, or no such descriptor is open.
pub fn take(text: &str) -> io::Result<(String, FileLock)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    let (number, name) = text.split_once(':').ok_or_else(wrong)?;
    let number = number.parse().map_err(|_| wrong())?;
    Ok((name.to_owned(), FileLock::handed(fd::take_inherited(number)?)))
}

/// The same of all of these.
///
/// # Errors
/// As [`take`].
pub fn take_all(texts: &[String]) -> io::Result<Vec<(String, FileLock)>> {
    texts.iter().map(|text| take(text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_handed_over_and_stays_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = FileLock::exclusive(&path).unwrap();
        // As a child has it: a descriptor of its own of the same open file.
        let copy = FileLock::handed(lock.file().try_clone().unwrap().into());
        let text = argument("data", &copy);
        std::mem::forget(copy);
        let (name, taken) = take(&text).unwrap();
        drop(lock);
        assert_eq!(name, "data");
        assert!(FileLock::is_held(&path).unwrap());
        drop(taken);
        assert!(!FileLock::is_held(&path).unwrap());
        for wrong in ["", "data", "x:data", "1:data"] {
            assert!(take(wrong).is_err(), "{wrong}");
        }
    }
}
