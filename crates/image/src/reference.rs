//! What a user writes to name an image: a path, a URL, or the name of a pulled image.
//!
//! Parsing looks at the file system once (whether a bare word is a file here) and nowhere else; opening the thing is
//! [`crate::library`]'s business.

use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::store::redact;

/// A parsed reference.
#[derive(Clone, PartialEq, Eq)]
pub enum Reference {
    /// A flist file; the path is absolute.
    Path(PathBuf),
    /// An `http://` or `https://` URL, as given (it may carry credentials; [`fmt::Display`] shows none).
    Url(String),
    /// The name of a pulled image.
    Name(ImageName),
}

/// A name under `images/refs/`: 1 to 128 of `a-z A-Z 0-9 . _ - :`, starting with a letter or digit, so it is one path
/// component and never looks like an option.
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
}

impl ReferenceError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let forms = "an image is a path (./image.fl), a file:// or http(s):// URL, or the name of a pulled image";
        match self {
            ReferenceError::Scheme { scheme, .. } if scheme == "docker" || scheme == "oci" => {
                Some("make a flist of it first: 'zmachine flist import'".into())
            }
            _ => Some(forms.into()),
        }
    }
}

impl ImageName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`ReferenceError::Name`] when it is empty, too long, or has a character that names do not have.
    pub fn new(text: &str) -> Result<ImageName, ReferenceError> {
        let is_inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b':');
        let starts_well = text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if starts_well && text.len() <= 128 && text.bytes().all(is_inner) {
            return Ok(ImageName(text.to_owned()));
        }
        Err(ReferenceError::Name { text: text.to_owned() })
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Reference {
    /// Reads `text`; relative paths are relative to `cwd`. What contains `/`, ends in `.fl` or `.flist`, or exists as a
    /// file in `cwd` is a path; every other word is a name. Whether a path leads to a flist is not asked here.
    ///
    /// # Errors
    /// When the text is empty, a URL of another kind, or no possible name.
    pub fn parse(text: &str, cwd: &Path) -> Result<Reference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            return parse_url(text, scheme, rest);
        }
        let is_path = text.contains('/') || text.ends_with(".fl") || text.ends_with(".flist");
        // A directory of the same name must not hide a pulled image; a file may, as `./` is only needed for those.
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
    fn a_slash_or_a_flist_ending_makes_a_path_and_a_word_makes_a_name() {
        let path = |p: &str| Ok(Reference::Path(PathBuf::from(p)));
        assert_eq!(parse("/srv/a.fl"), path("/srv/a.fl"));
        assert_eq!(parse("./web"), path("/nonexistent/here/./web"));
        assert_eq!(parse("web.flist"), path("/nonexistent/here/web.flist"));
        assert_eq!(parse("web:1.2"), ImageName::new("web:1.2").map(Reference::Name));
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
            "docker://alpine",
            "file://host/x",
            "file:///%zz",
            "http:///x",
            "ftp://h/x",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.hint().is_some(), "{text}: {error}");
        }
        assert!(parse("docker://alpine").unwrap_err().hint().unwrap().contains("import"));
    }
}
