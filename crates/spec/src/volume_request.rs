//! A volume, or a directory of the host, in a machine. Pure.
//!
//! Flags and machine files write it so:
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

use serde::{Deserialize, Serialize};

use crate::bytes;
use crate::failure::{Class, Failure};
use crate::setting::Setting;
use crate::volume::Fs;

/// One volume or directory that a machine is to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct VolumeRequest {
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

/// What is attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The volume of that name.
    #[serde(rename = "volume")]
    Named(String),
    /// A volume of the machine's own, made with it.
    Anonymous,
    /// A directory of this host, absolute.
    Directory(PathBuf),
}

/// A [`VolumeRequest`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    origin: Origin,
    target: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fs: Option<Fs>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    read_only: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    no_copy: bool,
}

impl From<VolumeRequest> for Json {
    fn from(request: VolumeRequest) -> Json {
        let VolumeRequest {
            origin,
            target,
            size_bytes,
            fs,
            read_only,
            no_copy,
        } = request;
        Json {
            origin,
            target,
            size_bytes,
            fs,
            read_only,
            no_copy,
        }
    }
}

impl TryFrom<Json> for VolumeRequest {
    type Error = String;

    fn try_from(json: Json) -> Result<VolumeRequest, String> {
        let request = VolumeRequest {
            origin: json.origin,
            target: target(&json.target)?,
            size_bytes: json.size_bytes,
            fs: json.fs,
            read_only: json.read_only,
            no_copy: json.no_copy,
        };
        request.check()?;
        Ok(request)
    }
}

const HINT: &str = "write NAME:/path, /path, or DIR:/path, with options as in NAME:/path:size=10G,fs=ext4,ro";

const IGNORED_OPTIONS: [&str; 12] = [
    "z",
    "Z",
    "cached",
    "delegated",
    "consistent",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "copy",
];

const COLON_HINT: &str = "a path with a ':' can only be given in a machine file, as a table: \
     volume = [{ directory = \"./a:b\", target = \"/path\" }]";

impl VolumeRequest {
    /// What `origin` stands for at `target`, with no options.
    ///
    /// # Errors
    /// What is wrong with the two.
    pub fn new(origin: Origin, target: &str) -> Result<VolumeRequest, String> {
        let request = VolumeRequest::at(origin, self::target(target)?);
        request.check()?;
        Ok(request)
    }

    /// Reads it as flags and machine files write it; a relative directory is relative to `cwd`.
    ///
    /// # Errors
    /// [`Class::Usage`] that names the text and the rule.
    pub fn parse(text: &str, cwd: &Path) -> Result<VolumeRequest, Failure> {
        let wrong = |why: String| {
            // With one more ':' than an absolute or relative directory and its target have, a path may have had it.
            let is_path = text.starts_with(['/', '.']) && text.matches(':').count() > 1;
            Failure::new(Class::Usage, format!("the volume '{text}': {why}"))
                .hint(if is_path { COLON_HINT } else { HINT })
                .about(Setting::Volumes)
        };
        let mut parts = text.split(':');
        let first = parts.next().unwrap_or_default();
        let (origin, target) = match parts.next() {
            None if first.starts_with('/') => (Origin::Anonymous, first),
            None => return Err(wrong(format!("it does not say where '{first}' goes in the guest"))),
            // `/path:ro` is an anonymous volume with options, as nothing but a path can be a target.
            Some(options) if first.starts_with('/') && !options.starts_with('/') => {
                let mut request = VolumeRequest::at(Origin::Anonymous, target(first).map_err(wrong)?);
                request.take_options(options).map_err(wrong)?;
                return match parts.next() {
                    None => Ok(request),
                    Some(more) => Err(wrong(format!("':{more}' is one part too many"))),
                };
            }
            Some(target) => (origin(first, cwd)?, target),
        };
        let mut request = VolumeRequest::at(origin, self::target(target).map_err(wrong)?);
        if let Some(options) = parts.next() {
            request.take_options(options).map_err(wrong)?;
        }
        if let Some(more) = parts.next() {
            return Err(wrong(format!("':{more}' is one part too many")));
        }
        request.check().map_err(wrong)?;
        Ok(request)
    }

    /// Whether [`VolumeRequest::parse`] reads what `Display` writes: not where a path has a `:`.
    pub fn has_text(&self) -> bool {
        VolumeRequest::parse(&self.to_string(), Path::new("/")).is_ok_and(|again| again == *self)
    }

    /// What it is, for people.
    pub fn what(&self) -> String {
        match &self.origin {
            Origin::Named(name) => format!("the volume '{name}'"),
            Origin::Anonymous => "a volume without a name".to_owned(),
            Origin::Directory(path) => format!("the directory {}", path.display()),
        }
    }

    fn at(origin: Origin, target: String) -> VolumeRequest {
        VolumeRequest {
            origin,
            target,
            size_bytes: None,
            fs: None,
            read_only: false,
            no_copy: false,
        }
    }

    /// Whether its parts go together.
    ///
    /// # Errors
    /// What does not.
    pub fn check(&self) -> Result<(), String> {
        match &self.origin {
            Origin::Anonymous => Ok(()),
            Origin::Named(name) => crate::volume::check_name(name).map_err(|failure| failure.message),
            Origin::Directory(path) if !path.is_absolute() => {
                Err(format!("the directory {} is not an absolute path", path.display()))
            }
            Origin::Directory(_) if self.size_bytes.is_some() || self.fs.is_some() || self.no_copy => {
                Err("size, fs and nocopy are for volumes; a directory is what it is".to_owned())
            }
            Origin::Directory(_) => Ok(()),
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
                // Of docker's and podman's options, those about labels, caches and mounts of the host's kernel mean nothing here.
                None if IGNORED_OPTIONS.contains(&option) => {}
                _ => return Err(format!("'{option}' is not an option")),
            }
        }
        Ok(())
    }
}

/// As [`VolumeRequest::parse`] reads it, the same from any folder; see [`VolumeRequest::has_text`].
impl fmt::Display for VolumeRequest {
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
    crate::volume::check_name(text).map_err(|failure| failure.about(Setting::Volumes))?;
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

    fn parse(text: &str) -> Result<VolumeRequest, Failure> {
        VolumeRequest::parse(text, Path::new("/here"))
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
            let request = parse(text).unwrap();
            let again = VolumeRequest::parse(&request.to_string(), Path::new("/elsewhere")).unwrap();
            assert_eq!(again, request, "{text}");
            assert!(request.has_text());
            let json = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<VolumeRequest>(&json).unwrap(), request, "{json}");
        }
    }

    #[test]
    fn a_path_with_a_colon_is_for_typed_sources() {
        let shared = VolumeRequest::parse("./x:/x", Path::new("/srv/a:b")).unwrap();
        assert_eq!(shared.origin, Origin::Directory("/srv/a:b/./x".into()));
        assert!(!shared.has_text());
        let json = r#"{"origin":{"directory":"/srv/a:b"},"target":"/x","read_only":true}"#;
        let typed: VolumeRequest = serde_json::from_str(json).unwrap();
        assert_eq!(typed.origin, Origin::Directory("/srv/a:b".into()));
        assert_eq!(serde_json::to_string(&typed).unwrap(), json);
        for text in ["/srv/a:b:/x", "./a:b:/x"] {
            let hint = parse(text).unwrap_err().hint.unwrap();
            assert!(hint.contains("machine file"), "{text}: {hint}");
        }
        assert!(
            !parse("data:/a:soft")
                .unwrap_err()
                .hint
                .unwrap()
                .contains("machine file")
        );
    }

    #[test]
    fn json_obeys_the_same_rules() {
        for bad in [
            r#"{"origin":{"directory":"srv"},"target":"/x"}"#,
            r#"{"origin":{"directory":"/srv"},"target":"/x","size_bytes":1}"#,
            r#"{"origin":{"volume":"zm-root"},"target":"/x"}"#,
            r#"{"origin":"anonymous","target":"x"}"#,
            r#"{"origin":"anonymous","target":"/x/../.."}"#,
            r#"{"origin":"anonymous","target":"/x","ro":true}"#,
        ] {
            assert!(serde_json::from_str::<VolumeRequest>(bad).is_err(), "{bad}");
        }
        let plain = r#"{"origin":{"volume":"data"},"target":"/x"}"#;
        let request: VolumeRequest = serde_json::from_str(plain).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), plain);
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
