//! Secrets of a container: files of this host that reach the guest's memory and no disk.

use std::io::Read;
use std::path::{Path, PathBuf};

use zmachine_agent_protocol::Secret;
use zmachine_sys::file::{self, FileError};

use crate::failure::{Class, Failure};
use crate::spec::Setting;

/// All secrets of a machine together, in bytes: they pass in one message.
pub const MAX_BYTES: usize = 512 << 10;

/// Reads `NAME=FILE`, or `FILE`, whose last part is the name then.
///
/// # Errors
/// [`Class::Usage`] when it is neither, or the name can not be a file's.
pub fn parse(text: &str, cwd: &Path) -> Result<(String, PathBuf), Failure> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name.to_owned(), Path::new(file)),
        None => {
            let file = Path::new(text);
            (
                file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                file,
            )
        }
    };
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(is_legal) {
        let message = format!("the secret '{text}': '{name}' can not be the name of a secret");
        let hint = "write NAME=FILE; names have letters, digits, '_', '.' and '-', and begin with none of the last two";
        return Err(Failure::new(Class::Usage, message).hint(hint).about(Setting::Secrets));
    }
    Ok((name, cwd.join(file)))
}

/// Reads the files of `secrets`.
///
/// # Errors
/// When one can not be read, or they are too long.
pub fn read_all(secrets: &[(String, PathBuf)]) -> Result<Vec<Secret>, Failure> {
    let mut left = MAX_BYTES;
    let mut all = Vec::new();
    for (name, path) in secrets {
        let mut content = Vec::new();
        let unread = |e: FileError| {
            Failure::from_error(Class::NotFound, &e)
                .context(format!("the secret '{name}' cannot be read"))
                .hint("the file is read at each start; put it back, or make the machine anew with another one")
        };
        let opened = file::open_regular(path).map_err(|e| FileError::io("open", path, e));
        let file = opened.map_err(unread)?;
        let read = file.take(left as u64 + 1).read_to_end(&mut content);
        read.map_err(|e| unread(FileError::io("read", path, e)))?;
        left = left.checked_sub(content.len()).ok_or_else(|| {
            let message = format!("the secrets up to '{name}' are longer than {} KiB", MAX_BYTES >> 10);
            Failure::new(Class::Usage, message)
                .hint("share a directory for what is larger")
                .about(Setting::Volumes)
        })?;
        all.push(Secret {
            name: name.clone(),
            content,
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_name_and_a_file() {
        let cwd = Path::new("/here");
        assert_eq!(parse("db=pw.txt", cwd).unwrap(), ("db".into(), "/here/pw.txt".into()));
        assert_eq!(parse("/etc/pw", cwd).unwrap(), ("pw".into(), "/etc/pw".into()));
        for bad in ["a/b=/x", "=x", "..=x", ".x=/x", "/"] {
            assert_eq!(parse(bad, cwd).unwrap_err().class, Class::Usage, "{bad}");
        }
    }

    #[test]
    fn they_are_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        std::fs::write(&file, b"a\0b").unwrap();
        let read = read_all(&[("n".into(), file.clone())]).unwrap();
        assert_eq!(read[0].content, b"a\0b");
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
