//! What can go wrong between a reference and an image.

use std::path::{Component, Path, PathBuf};

use thiserror::Error;
use zmachine_flist::{OpenError, StartupError};
use zmachine_sys::file::FileError;

use super::share::ShareError;
use crate::cache::CacheError;
use crate::facts::KindError;
use crate::fetch::FetchError;
use crate::reference::{DOCKER_HUB, ImageSource};
use crate::store::{CredentialsError, StoreError};

/// Why a reference does not lead to an image, or the library cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// No image has the name.
    #[error("there is no image named '{name}'")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// No image has the digest.
    #[error("there is no image {digest}")]
    UnknownDigest {
        /// The digest.
        digest: String,
    },
    /// Several images have digests that begin so.
    #[error("several images have digests that begin with '{start}'")]
    Ambiguous {
        /// The beginning.
        start: String,
    },
    /// The metadata of an image could not be written.
    #[error("{reference} cannot be kept")]
    NotWritten {
        /// The reference, without credentials.
        reference: String,
        /// Why.
        source: zmachine_flist::WriteError,
    },
    /// The file is not there.
    #[error("{} does not exist", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// The reference leads to something that is no flist.
    #[error("{reference} is {found}, not a flist")]
    NotAFlist {
        /// The reference, without credentials.
        reference: String,
        /// What it is.
        found: &'static str,
        /// What to do with it.
        advice: &'static str,
    },
    /// It looks like a flist, and it is broken.
    #[error("{reference} is not a usable flist")]
    BrokenFlist {
        /// The reference, without credentials.
        reference: String,
        /// What is wrong.
        source: OpenError,
    },
    /// What is said about the block cache was written by a newer program.
    #[error("{} has version {found}, which this zmachine does not know", path.display())]
    LimitVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// It would have to be downloaded, which was forbidden.
    #[error("{reference} has not been pulled")]
    NotPulled {
        /// The URL, without credentials.
        reference: String,
    },
    /// The download failed.
    #[error("{reference} could not be downloaded")]
    Download {
        /// The URL, without credentials.
        reference: String,
        /// What happened.
        source: StoreError,
    },
    /// The flist is longer than any flist may be.
    #[error("{reference} is longer than {limit} bytes")]
    TooLong {
        /// The reference, without credentials.
        reference: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The files of the image make no machine.
    #[error("{reference} cannot be run")]
    Kind {
        /// The reference, without credentials.
        reference: String,
        /// Why.
        source: KindError,
    },
    /// `.startup.toml` is broken.
    #[error("{reference} has a broken /.startup.toml: {problem}")]
    Startup {
        /// The reference, without credentials.
        reference: String,
        /// Line and reason.
        problem: String,
    },
    /// A block of a file that is needed now could not be fetched.
    #[error("{file} of {reference} could not be read")]
    Fetch {
        /// The reference, without credentials.
        reference: String,
        /// The file in the image.
        file: String,
        /// Why.
        source: FetchError,
    },
    /// A file of the library was written by a newer version.
    #[error("{} was written by a newer zmachine ({what})", path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The version or feature that is not known here.
        what: String,
    },
    /// The stored flist is not the one that was pulled.
    #[error("{} has been changed: its digest is {found}", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// The digest of what is there.
        found: String,
    },
    /// The credentials of stores cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The block cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The block cache that homes share cannot be used so.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A file of the library, or the flist that was named, cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl ResolveError {
    /// Whether something could not be fetched or did not verify (exit code 5).
    pub fn is_fetch_failure(&self) -> bool {
        matches!(
            self,
            ResolveError::Download { .. }
                | ResolveError::Fetch { .. }
                | ResolveError::NotAFlist { .. }
                | ResolveError::BrokenFlist { .. }
                | ResolveError::Altered { .. }
        )
    }

    /// Whether the thing named does not exist (exit code 3).
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            ResolveError::UnknownName { .. }
                | ResolveError::UnknownDigest { .. }
                | ResolveError::MissingFile { .. }
                | ResolveError::NotPulled { .. }
        )
    }

    /// Whether it may go when others are done (exit code 4).
    pub fn is_conflict(&self) -> bool {
        matches!(self, ResolveError::Share(ShareError::Busy { .. }))
    }

    /// Whether something was asked for that makes no sense (exit code 2).
    pub fn is_usage(&self) -> bool {
        use ShareError::{InAHome, NotACache, Writable};
        matches!(
            self,
            ResolveError::Share(NotACache { .. } | InAHome { .. } | Writable { .. }) | ResolveError::Ambiguous { .. }
        )
    }

    /// Whether it is about what the image is taken for.
    pub fn is_about_kind(&self) -> bool {
        matches!(self, ResolveError::Kind { .. })
    }

    /// Whether it is about where blocks come from.
    pub fn is_about_stores(&self) -> bool {
        matches!(self, ResolveError::Fetch { .. })
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ResolveError::UnknownName { name } if ImageSource::named(name, DOCKER_HUB).is_none() => {
                Some("'zmachine image ls' shows the names there are".into())
            }
            ResolveError::UnknownName { name } => Some(format!(
                "'zmachine image ls' shows the names there are, and 'zmachine pull {name}' gets it from a registry; a file of that name is './{name}'"
            )),
            ResolveError::Ambiguous { .. } => Some("give more of its digits".into()),
            ResolveError::NotWritten { .. } => None,
            ResolveError::UnknownDigest { .. } => Some("'zmachine image ls' shows what there is".into()),
            ResolveError::MissingFile { path } => Some(match as_container_image(path) {
                Some(name) => format!("check the path; or if it is an image of a registry, leave './' out: {name}"),
                None => "check the path; images that were pulled go by name".into(),
            }),
            ResolveError::NotAFlist { advice, .. } => Some((*advice).to_owned()),
            ResolveError::BrokenFlist { .. } => Some("the file is damaged or cut short: get it again".into()),
            ResolveError::NotPulled { .. } => Some("let it be fetched, or run 'zmachine image pull' first".into()),
            ResolveError::Download {
                source: StoreError::Status { status: 404 | 410, .. },
                ..
            } => Some("check the URL".into()),
            ResolveError::Download { .. } => Some("check the URL and the network, and try again".into()),
            ResolveError::TooLong { .. } => Some("is it a disk image? A flist holds metadata only".into()),
            ResolveError::Kind { source, .. } => source.hint(),
            ResolveError::Startup { .. } => Some("mend the file and pack the flist again".into()),
            ResolveError::Fetch { source, .. } => source.hint(),
            ResolveError::TooNew { .. } => Some("use that version, or remove the image and pull it again".into()),
            ResolveError::Altered { .. } => Some("remove the image with 'zmachine image rm' and pull it again".into()),
            ResolveError::LimitVersion { .. } => Some(
                "use the zmachine that wrote it; without the file, the home has a cache of its own without a limit"
                    .into(),
            ),
            ResolveError::Credentials(source) => Some(source.hint()),
            ResolveError::Cache(source) => source.hint(),
            ResolveError::Share(source) => Some(source.hint()),
            ResolveError::File(_) => None,
        }
    }
}

/// A path that may be meant as the name of a container image: `library/alpine`, `docker.io/library/alpine:3`.
fn as_container_image(path: &Path) -> Option<String> {
    let is_plain = |c: Component<'_>| matches!(c, Component::Normal(_));
    let here = std::env::current_dir().ok()?;
    let relative = path.strip_prefix(&here).unwrap_or(path);
    let text = relative.to_str()?;
    let is_legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "/.:-_@".contains(c);
    let is_file = [".fl", ".flist", ".tar", ".gz", ".img", ".raw", ".qcow2", ".sqlite"]
        .iter()
        .any(|end| text.ends_with(end));
    let looks_so = relative.components().all(is_plain) && text.contains('/') && text.chars().all(is_legal) && !is_file;
    looks_so.then(|| text.to_owned())
}

/// What is wrong with a `.startup.toml`, without the name of the file.
pub(crate) fn startup_problem(error: &StartupError) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string().trim_end().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_a_registry_is_answered_with_how_to_get_it() {
        let hint = |path: &str| ResolveError::MissingFile { path: path.into() }.hint().unwrap();
        assert!(hint("docker.io/library/alpine:3").contains("leave './' out: docker.io/library/alpine:3"));
        for path in ["/srv/app", "images/app.fl", "../app", "My/App"] {
            assert!(!hint(path).contains("registry"), "{path}");
        }
        let unknown = ResolveError::UnknownName { name: "alpine".into() };
        assert!(unknown.hint().unwrap().contains("zmachine pull alpine"));
    }
}
