//! Credentials of stores, kept apart from their URLs: a URL on a command line is seen by everybody on the host.
//!
//! ```toml
//! # stores.toml, readable by its owner alone
//! [[store]]
//! url = "s3://objects.example.com:9000/blocks"
//! user = "KEY"
//! password = "SECRET"
//! ```
//! A URL without credentials gets those of the entry that has its scheme, host and path.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use thiserror::Error;
use zmachine_sys::file::read_regular;

use super::redact;

/// The longest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// The name of the file in a home.
pub const CREDENTIALS_FILE: &str = "stores.toml";

/// The credentials of one host. Clones share them.
#[derive(Clone, Default)]
pub struct Credentials {
    stores: Arc<[Entry]>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials of {} stores", self.stores.len())
    }
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    store: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    url: String,
    #[serde(default)]
    user: String,
    password: String,
}

/// A credentials file that cannot be used.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} can be read by others (mode {mode:o})", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is no table of stores. The reason is not told: it would quote the file.
    #[error("{} is broken at byte {offset}", path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
}

impl CredentialsError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            CredentialsError::Read { .. } => "check its owner".into(),
            CredentialsError::Open { path, .. } => format!("chmod 600 {}", path.display()),
            CredentialsError::Broken { .. } => "it has entries [[store]] with url, user and password".into(),
        }
    }
}

impl Credentials {
    /// Reads the file; none is fine.
    ///
    /// # Errors
    /// [`CredentialsError`]; no part of the file is quoted.
    pub fn load(path: &Path) -> Result<Credentials, CredentialsError> {
        let read_error = |source| CredentialsError::Read {
            path: path.into(),
            source,
        };
        let text = match read_regular(path, LIMIT).and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other))
        {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(error) => return Err(read_error(error)),
        };
        let mode = fs::metadata(path).map_err(read_error)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CredentialsError::Open {
                path: path.into(),
                mode,
            });
        }
        let document: Document = toml::from_str(&text).map_err(|error| CredentialsError::Broken {
            path: path.into(),
            offset: error.span().map_or(0, |span| span.start),
        })?;
        Ok(Credentials {
            stores: document.store.into(),
        })
    }

    /// `url` with the credentials that belong to it, unless it has some.
    #[must_use]
    pub fn complete(&self, url: &str) -> String {
        let range = url
            .split_once('=')
            .filter(|(range, _)| range.len() == 5 && !range.contains(':'));
        if let Some((range, url)) = range {
            return format!("{range}={}", self.complete(url));
        }
        let bare = |url: &str| redact(url).trim_end_matches('/').to_owned();
        let has_some = url.split('?').next().is_some_and(|bare| bare != redact(url));
        let entry = self.stores.iter().find(|entry| bare(&entry.url) == bare(url));
        match (entry, url.split_once("://")) {
            (Some(entry), Some((scheme, rest))) if !has_some => {
                format!("{scheme}://{}:{}@{rest}", encode(&entry.user), encode(&entry.password))
            }
            _ => url.to_owned(),
        }
    }
}

/// Text as a part of a URL's authority.
fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, mode: u32) -> Result<Credentials, CredentialsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stores.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        Credentials::load(&path)
    }

    #[test]
    fn a_url_gets_the_credentials_of_its_entry_and_keeps_its_own() {
        let text = "[[store]]\nurl='s3://h:1/b'\nuser='k'\npassword='s/t'\n[[store]]\nurl='zdb://z/n'\npassword='p'\n";
        let credentials = load(text, 0o600).unwrap();
        for (url, complete) in [
            ("s3://h:1/b?region=eu", "s3://k:s%2Ft@h:1/b?region=eu"),
            ("00-7f=s3://h:1/b/", "00-7f=s3://k:s%2Ft@h:1/b/"),
            ("zdb://z/n", "zdb://:p@z/n"),
            ("zdb://:own@z/n", "zdb://:own@z/n"),
            ("zdb://z/other", "zdb://z/other"),
            ("dir:///x", "dir:///x"),
        ] {
            assert_eq!(credentials.complete(url), complete);
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_broken_is_refused_without_quoting_it() {
        assert!(matches!(
            load("", 0o644),
            Err(CredentialsError::Open { mode: 0o644, .. })
        ));
        let error = load("[[store]]\nurl='x'\npassword='hunter2'\nother=1", 0o600)
            .err()
            .unwrap();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(Credentials::load(Path::new("/nonexistent/stores.toml")).is_ok());
    }
}
