//! Secrets of a container, as users name them: `NAME=FILE`; and files for any place in it, `/PATH=FILE`.

use std::path::{Path, PathBuf};

use crate::failure::{Class, Failure};
use crate::setting::Setting;

/// Reads `NAME=FILE`, or `FILE`, whose last part is the name then. A name with a slash at its beginning is a path.
///
/// # Errors
/// [`Class::Usage`] when it is neither, or the name cannot be a file's.
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
    if text.contains('=') && name.starts_with('/') {
        return Ok((path(&name)?, cwd.join(file)));
    }
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(is_legal) {
        let message = format!("the secret '{text}': '{name}' cannot be the name of a secret");
        let hint = "write NAME=FILE; names have letters, digits, '_', '.' and '-', and begin with none of the last two";
        return Err(Failure::new(Class::Usage, message).hint(hint).about(Setting::Secrets));
    }
    Ok((name, cwd.join(file)))
}

/// A path in a container where a file can be.
///
/// # Errors
/// [`Class::Usage`] for one that belongs to the kernel, or is none.
pub fn path(text: &str) -> Result<String, Failure> {
    const OF_KERNEL: [&str; 3] = ["/proc/", "/sys/", "/dev/"];
    let has_parts = text.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
    if text.starts_with('/') && has_parts && !OF_KERNEL.iter().any(|of| text.starts_with(of)) {
        return Ok(text.to_owned());
    }
    let hint = "write an absolute path without '.' and '..' that is not below /proc, /sys or /dev";
    let message = format!("no file can be at '{text}' in a container");
    Err(Failure::new(Class::Usage, message).hint(hint).about(Setting::Volumes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_name_and_a_file() {
        let cwd = Path::new("/here");
        assert_eq!(parse("db=pw.txt", cwd).unwrap(), ("db".into(), "/here/pw.txt".into()));
        assert_eq!(parse("/etc/pw", cwd).unwrap(), ("pw".into(), "/etc/pw".into()));
        assert_eq!(parse("/etc/a=f", cwd).unwrap(), ("/etc/a".into(), "/here/f".into()));
        for bad in [
            "/=x",
            "/a/../b=x",
            "/a/=x",
            "/proc/x=x",
            "a/b=/x",
            "=x",
            "..=x",
            ".x=/x",
            "/",
        ] {
            assert_eq!(parse(bad, cwd).unwrap_err().class, Class::Usage, "{bad}");
        }
    }
}
