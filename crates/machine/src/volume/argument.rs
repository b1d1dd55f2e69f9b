//! `-v` as the user writes it. Pure.
//!
//! | form | what |
//! |---|---|
//! | `NAME:/path[:OPTION,...]` | a named volume, made at need |
//! | `/path` | an anonymous volume of this machine |
//! | `./dir:/path`, `/dir:/path` | a directory of the host |
//!
//! Options: `size=10G`, `fs=ext4|btrfs|xfs|none` (both for a volume that is not there yet, or to insist on what it is),
//! `ro`, `rw`, `nocopy` (a fresh volume stays empty, whatever the image has in its place).

use std::fmt;
use std::path::{Path, PathBuf};

use super::record::Fs;
use crate::bytes;
use crate::failure::{Class, Failure};

/// One `-v`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeArgument {
    /// What is attached.
    pub origin: Origin,
    /// Absolute path in the guest, without a slash at its end; `/` is the boot disk of a VM.
    pub target: String,
    /// Size in bytes of a volume that has to be made.
    pub size_bytes: Option<u64>,
    /// File system of it.
    pub fs: Option<Fs>,
    /// The guest can only read it.
    pub read_only: bool,
    /// A fresh volume does not take over what the image has at the target.
    pub no_copy: bool,
}

/// What a `-v` attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The volume of that name.
    Named(String),
    /// A volume of the machine's own, made with it.
    Anonymous,
    /// A directory of this host, absolute.
    Directory(PathBuf),
}

const HINT: &str = "-v takes NAME:/path, /path, or DIR:/path, with options as in NAME:/path:size=10G,fs=ext4,ro";

impl VolumeArgument {
    /// Reads one `-v`; a relative directory is relative to `cwd`.
    ///
    /// # Errors
    /// [`Class::Usage`] that names the argument and the rule.
    pub fn parse(text: &str, cwd: &Path) -> Result<VolumeArgument, Failure> {
        let wrong = |why: String| Failure::new(Class::Usage, format!("-v {text}: {why}")).hint(HINT);
        let mut parts = text.split(':');
        let first = parts.next().unwrap_or_default();
        let (origin, target) = match parts.next() {
            None if first.starts_with('/') => (Origin::Anonymous, first),
            None => return Err(wrong(format!("it does not say where '{first}' goes in the guest"))),
            // `/path:ro` is an anonymous volume with options, as nothing but a path can be a target.
            Some(options) if first.starts_with('/') && !options.starts_with('/') => {
                let mut argument = VolumeArgument::new(Origin::Anonymous, target(first).map_err(wrong)?);
                argument.take_options(options).map_err(wrong)?;
                return match parts.next() {
                    None => Ok(argument),
                    Some(more) => Err(wrong(format!("':{more}' is one part too many"))),
                };
            }
            Some(target) => (origin(first, cwd)?, target),
        };
        let mut argument = VolumeArgument::new(origin, self::target(target).map_err(wrong)?);
        if let Some(options) = parts.next() {
            argument.take_options(options).map_err(wrong)?;
        }
        if let Some(more) = parts.next() {
            return Err(wrong(format!("':{more}' is one part too many")));
        }
        let is_directory = matches!(argument.origin, Origin::Directory(_));
        if is_directory && (argument.size_bytes.is_some() || argument.fs.is_some() || argument.no_copy) {
            return Err(wrong(
                "size, fs and nocopy are for volumes; a directory is what it is".to_owned(),
            ));
        }
        Ok(argument)
    }

    fn new(origin: Origin, target: String) -> VolumeArgument {
        VolumeArgument {
            origin,
            target,
            size_bytes: None,
            fs: None,
            read_only: false,
            no_copy: false,
        }
    }

    fn take_options(&mut self, options: &str) -> Result<(), String> {
        for option in options.split(',') {
            match option.split_once('=') {
                Some(("size", size)) => {
                    let bytes = bytes::parse(size).map_err(|e| format!("{e}; {}", e.hint()))?;
                    self.size_bytes = Some(bytes);
                }
                Some(("fs", fs)) => self.fs = Some(fs.parse()?),
                None if option == "ro" => self.read_only = true,
                None if option == "rw" => self.read_only = false,
                None if option == "nocopy" => self.no_copy = true,
                _ => return Err(format!("'{option}' is not an option")),
            }
        }
        Ok(())
    }
}

/// As [`VolumeArgument::parse`] reads it, the same from any folder.
impl fmt::Display for VolumeArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Named(name) => write!(f, "{name}:{}", self.target)?,
            Origin::Anonymous => f.write_str(&self.target)?,
            Origin::Directory(path) => write!(f, "{}:{}", path.display(), self.target)?,
        }
        let size = self.size_bytes.map(|bytes| format!("size={bytes}"));
        let fs = self.fs.map(|fs| format!("fs={fs}"));
        let read_only = self.read_only.then(|| "ro".to_owned());
        let no_copy = self.no_copy.then(|| "nocopy".to_owned());
        let options: Vec<String> = [size, fs, read_only, no_copy].into_iter().flatten().collect();
        match options.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", options.join(",")),
        }
    }
}

fn origin(text: &str, cwd: &Path) -> Result<Origin, Failure> {
    if text.starts_with('/') || text == "." || text == ".." || text.starts_with("./") || text.starts_with("../") {
        return Ok(Origin::Directory(cwd.join(text)));
    }
    super::check_name(text)?;
    Ok(Origin::Named(text.to_owned()))
}

/// The target without needless slashes.
fn target(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("'{text}' is not an absolute path in the guest"));
    }
    if text.contains('\0') {
        return Err("a path has no NUL".to_owned());
    }
    let parts: Vec<&str> = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(format!("'{text}' must not contain '..'"));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<VolumeArgument, Failure> {
        VolumeArgument::parse(text, Path::new("/here"))
    }

    #[test]
    fn volumes_and_directories_are_told_apart() {
        let named = parse("data:/var//lib/data/:size=2G,fs=btrfs,ro").unwrap();
        assert_eq!(named.origin, Origin::Named("data".into()));
        assert_eq!(named.target, "/var/lib/data");
        assert_eq!(
            (named.size_bytes, named.fs, named.read_only),
            (Some(2 << 30), Some(Fs::Btrfs), true)
        );
        assert_eq!(parse("/data").unwrap().origin, Origin::Anonymous);
        let anonymous = parse("/data:size=1G").unwrap();
        assert_eq!(
            (anonymous.origin, anonymous.size_bytes),
            (Origin::Anonymous, Some(1 << 30))
        );
        assert_eq!(
            parse("./src:/src").unwrap().origin,
            Origin::Directory("/here/./src".into())
        );
        assert_eq!(parse("/srv:/srv:ro").unwrap().origin, Origin::Directory("/srv".into()));
        assert_eq!(parse("boot:/").unwrap().target, "/");
        assert!(parse("data:/data:nocopy").unwrap().no_copy && !named.no_copy);
    }

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in [
            "data:/d",
            "data:/d:size=2G,fs=xfs,ro,nocopy",
            "/d",
            "/d:size=1G",
            "./x:/d:ro",
        ] {
            let argument = parse(text).unwrap();
            let again = VolumeArgument::parse(&argument.to_string(), Path::new("/elsewhere")).unwrap();
            assert_eq!(again, argument, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_argument_in_the_message() {
        for bad in [
            "",
            "data",
            "data:",
            "data:var",
            "data:/a/../b",
            "data:/a:size=",
            "data:/a:size=lots",
            "data:/a:fs=ntfs",
            "data:/a:soft",
            "data:/a:ro:ro",
            "/a:ro:ro",
            "../x:/a:size=1G",
            "./x:/a:nocopy",
            "-v:/a",
            "zm-root:/a",
        ] {
            let failure = parse(bad).expect_err(bad);
            assert_eq!(failure.class, Class::Usage, "{bad}");
            assert!(failure.hint.is_some(), "{bad}");
        }
    }
}
