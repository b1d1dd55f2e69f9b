//! What a user writes to name an image: a path, a URL, a name, or an image of another engine.
//!
//! Parsing looks at the file system once (whether a bare word is a file here) and nowhere else; opening the thing is
//! [`crate::library`]'s business.

mod pattern;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::pattern::{is_named, parts};
pub use self::source::{DOCKER_HUB, ImageSource, Pick, SourceError};
use crate::store::redact;

/// The longest name.
const NAME_BYTES: usize = 200;

/// What stands for `/` in the file name of an image's name, which has no `%`.
const SLASH: &str = "%";

/// A parsed reference.
#[derive(Clone, PartialEq, Eq)]
pub enum Reference {
    /// A file: a flist, a disk image, or the archive of an image; or a directory that is an OCI layout. The path is absolute.
    Path(PathBuf),
    /// An `http://` or `https://` URL, as given (it may carry credentials; [`fmt::Display`] shows none).
    Url(String),
    /// The name of an image here, or of one in a registry when there is none here.
    Name(ImageName),
    /// An image of another engine: `docker://`, `oci:`, `oci-archive:` or `docker-archive:`. A path is absolute.
    Image(ImageSource),
}

/// A name under `images/refs/`: 1 to 200 of `a-z A-Z 0-9 . _ - : @ /`, starting with a letter or digit, so it never looks like an
/// option; as names in registries are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

/// Text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// A URL of a kind that images cannot come from.
    #[error("'{text}': images cannot come from '{scheme}://'")]
    Scheme {
        /// The reference, without credentials.
        text: String,
        /// Its scheme.
        scheme: String,
    },
    /// A `file://` URL with a host or a relative path, or an `http` URL without a host.
    #[error("'{text}' is not a usable URL: {what}")]
    Url {
        /// The reference, without credentials.
        text: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Neither a path nor a possible name.
    #[error("'{text}' is neither a file here nor a possible image name")]
    Name {
        /// The reference.
        text: String,
    },
    /// An image of another engine that is named wrongly.
    #[error(transparent)]
    Image(#[from] SourceError),
}

impl ReferenceError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            ReferenceError::Image(_) => {
                "for example docker://debian:12, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE".into()
            }
            _ => "an image is a name (nginx, ghcr.io/org/app:1.2), a path (./image.fl, ./image.tar, ./disk.qcow2), a file:// or \
                  http(s):// URL of a flist, docker://NAME, oci:DIR, oci-archive:FILE or docker-archive:FILE"
                .into(),
        })
    }
}

impl ImageName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`ReferenceError::Name`] when it is empty, too long, or has a character that names do not have.
    pub fn new(text: &str) -> Result<ImageName, ReferenceError> {
        let is_inner = |c: u8| c.is_ascii_alphanumeric() || b"._-:@/".contains(&c);
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        let has_parts = text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if starts_well && text.len() <= NAME_BYTES && text.bytes().all(is_inner) && has_parts {
            return Ok(ImageName(text.to_owned()));
        }
        Err(ReferenceError::Name { text: text.to_owned() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as one component of a path.
    pub(crate) fn file_name(&self) -> String {
        self.0.replace('/', SLASH)
    }

    /// The name that has this file name.
    pub(crate) fn of_file_name(text: &str) -> Result<ImageName, ReferenceError> {
        if text.contains('/') {
            return Err(ReferenceError::Name { text: text.to_owned() });
        }
        ImageName::new(&text.replace(SLASH, "/"))
    }

    /// The image of a registry that has this name, in the registry `default` unless it names one; `None` when none can have it.
    pub fn in_registry(&self, default: &str) -> Option<ImageSource> {
        ImageSource::named(&self.0, default)
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// Reads `text`; relative paths are relative to `cwd`. What begins with `/`, `./` or `../`, ends as files of images do, or exists as a
    /// file in `cwd`, is a path; everything else is a name. What a path leads to is not asked here.
    ///
    /// # Errors
    /// When the text is empty, a URL of another kind, or no possible name.
    pub fn parse(text: &str, cwd: &Path) -> Result<Reference, ReferenceError> {
        const ENDS: [&str; 8] = [".fl", ".flist", ".tar", ".tar.gz", ".tgz", ".qcow2", ".raw", ".img"];
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if ["docker://", "oci:", "oci-archive:", "docker-archive:"]
            .iter()
            .any(|kind| text.starts_with(kind))
        {
            return Ok(Reference::Image(ImageSource::parse(text)?.below(cwd)));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return parse_url(text, scheme, rest);
        }
        let is_path = ["/", "./", "../"].iter().any(|start| text.starts_with(start))
            || matches!(text, "." | "..")
            || ENDS.iter().any(|end| text.ends_with(end));
        // A directory of the same name must not hide an image; a file may, as `./` is only needed for those.
        if is_path || cwd.join(text).is_file() {
            return Ok(Reference::Path(cwd.join(text)));
        }
        ImageName::new(text).map(Reference::Name)
    }
}

fn parse_url(text: &str, scheme: &str, rest: &str) -> Result<Reference, ReferenceError> {
    let wrong = |what| ReferenceError::Url {
        text: redact(text),
        what,
    };
    match scheme.to_ascii_lowercase().as_str() {
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(wrong("the path of a file:// URL must be absolute"));
            }
            Ok(Reference::Path(PathBuf::from(
                percent_decoded(path).ok_or_else(|| wrong("a %XX in it is wrong"))?,
            )))
        }
        "http" | "https" => match rest.split(['/', '?', '#']).next() {
            Some(authority) if !authority.is_empty() => Ok(Reference::Url(text.to_owned())),
            _ => Err(wrong("it names no host")),
        },
        scheme => Err(ReferenceError::Scheme {
            text: redact(text),
            scheme: scheme.to_owned(),
        }),
    }
}

/// The path of a `file://` URL with its `%XX` replaced; `None` when one is malformed or the result is not UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let digits = part.get(..2).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).ok().filter(|path| !path.contains('\0'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Path(path) => path.display().fmt(f),
            Reference::Url(url) => f.write_str(&redact(url)),
            Reference::Name(name) => name.fmt(f),
            Reference::Image(image) => image.fmt(f),
        }
    }
}

/// As [`fmt::Display`]: a URL's credentials must not reach a log by way of `{:?}`.
impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reference({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text, Path::new("/nonexistent/here"))
    }

    #[test]
    fn what_begins_or_ends_as_files_do_is_a_path_and_the_rest_are_names() {
        let path = |p: &str| Ok(Reference::Path(PathBuf::from(p)));
        assert_eq!(parse("/srv/a.fl"), path("/srv/a.fl"));
        assert_eq!(parse("./web"), path("/nonexistent/here/./web"));
        assert_eq!(parse("web.flist"), path("/nonexistent/here/web.flist"));
        assert_eq!(parse("images/app.tar"), path("/nonexistent/here/images/app.tar"));
        for name in ["web:1.2", "org/app", "ghcr.io/org/app:1.2", "127.0.0.1:5000/a/b"] {
            assert_eq!(parse(name), ImageName::new(name).map(Reference::Name));
        }
    }

    #[test]
    fn images_of_other_engines_are_told_by_their_kind() {
        let shown = |text: &str| match parse(text) {
            Ok(Reference::Image(image)) => image.to_string(),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(shown("docker://debian"), "docker://docker.io/library/debian:latest");
        assert_eq!(shown("oci:dir:v1"), "oci:/nonexistent/here/dir:v1");
        assert_eq!(shown("docker-archive:/a.tar"), "docker-archive:/a.tar");
    }

    #[test]
    fn a_name_is_one_file_and_comes_back_from_it() {
        for text in ["nginx:latest", "ghcr.io/org/app:1.2", "127.0.0.1:5000/a/b@sha256:00"] {
            let name = ImageName::new(text).unwrap();
            assert!(!name.file_name().contains('/'));
            assert_eq!(ImageName::of_file_name(&name.file_name()).unwrap(), name);
        }
        for text in ["a//b", "a/../b", "a/", "/a", "a%b"] {
            assert!(ImageName::new(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_a_file_here_is_a_path_but_a_directory_is_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), "x").unwrap();
        std::fs::create_dir(dir.path().join("web")).unwrap();
        let is_path = |text| matches!(Reference::parse(text, dir.path()), Ok(Reference::Path(_)));
        assert!(is_path("image"));
        assert!(!is_path("web"));
    }

    #[test]
    fn urls_are_kept_whole_and_shown_without_credentials() {
        let url = parse("https://me:pw@host/a.fl?token=t").unwrap();
        assert_eq!(url, Reference::Url("https://me:pw@host/a.fl?token=t".into()));
        assert_eq!(
            format!("{url} {url:?}"),
            "https://host/a.fl Reference(https://host/a.fl)"
        );
        assert_eq!(
            parse("file:///srv/my%20image.fl"),
            Ok(Reference::Path("/srv/my image.fl".into()))
        );
    }

    #[test]
    fn what_names_no_image_is_refused_with_a_hint() {
        for text in [
            "",
            "-x",
            ".hidden",
            "a b",
            "docker://",
            "oci:",
            "file://host/x",
            "file:///%zz",
            "http:///x",
            "ftp://h/x",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.hint().is_some(), "{text}: {error}");
        }
    }
}
