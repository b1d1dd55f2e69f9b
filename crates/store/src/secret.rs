//! Secrets of a container, and other files for it: files of this host that reach the guest's memory and no disk.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use zmachine_agent_protocol::Secret;
use zmachine_spec::{Class, Failure, Setting};
use zmachine_sys::file::{self, FileError};

/// All secrets of a machine together, in bytes: they pass in one message.
pub const MAX_BYTES: usize = 512 << 10;

/// Reads the files of `secrets`.
///
/// # Errors
/// When one cannot be read, or they are too long.
pub fn read_all(secrets: &[(String, PathBuf)]) -> Result<Vec<Secret>, Failure> {
    let mut left = MAX_BYTES;
    let mut all = Vec::new();
    for (name, path) in secrets {
        let mut content = Vec::new();
        let unread = |e: FileError| {
            Failure::from_error(Class::NotFound, &e)
                .context(format!("{} cannot be read", what(name)))
                .hint("the file is read at each start; put it back, or make the machine anew with another one")
        };
        let opened = file::open_regular(path).map_err(|e| FileError::io("open", path, e));
        let file = opened.map_err(unread)?;
        let mode = file
            .metadata()
            .map_err(|e| unread(FileError::io("read", path, e)))?
            .permissions();
        let read = file.take(left as u64 + 1).read_to_end(&mut content);
        read.map_err(|e| unread(FileError::io("read", path, e)))?;
        left = left.checked_sub(content.len()).ok_or_else(|| {
            let message = format!(
                "secrets and files up to '{name}' are longer than {} KiB",
                MAX_BYTES >> 10
            );
            Failure::new(Class::Usage, message)
                .hint("share a directory for what is larger")
                .about(Setting::Volumes)
        })?;
        all.push(Secret {
            name: name.clone(),
            content,
            executable: mode.mode() & 0o111 != 0,
        });
    }
    Ok(all)
}

fn what(name: &str) -> String {
    match name.starts_with('/') {
        true => format!("the file for '{name}'"),
        false => format!("the secret '{name}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"a\0b").unwrap();
        let read = read_all(&[("n".into(), file.clone())]).unwrap();
        assert_eq!(read[0].content, b"a\0b");
        assert!(!read[0].executable);
        assert!(!format!("{read:?}").contains("97"));
        std::fs::write(&file, vec![0; MAX_BYTES]).unwrap();
        read_all(&[("n".into(), file.clone())]).unwrap();
        assert!(read_all(&[("n".into(), file.clone()), ("m".into(), file)]).is_err());
        // A FIFO without a writer would be waited for.
        let fifo = dir.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        for unreadable in [fifo, "/none".into()] {
            assert_eq!(
                read_all(&[("n".into(), unreadable)]).unwrap_err().class,
                Class::NotFound
            );
        }
    }
}
