//! `images/urls/<hex>.json`: which image a URL led to when it was last asked, so that later starts need no network.
//!
//! `<hex>` is the BLAKE2b-256 of the URL as given. The URL may carry credentials, so it is not in the file as given.
//!
//! ```json
//! {"version": 1, "features": [], "url": "https://host/a.fl", "digest": "<64 hex>", "etag": null, "last_modified": null}
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zmachine_flist::Digest;
use zmachine_sys::file;

use super::error::ResolveError;
use super::record::check_head;
use crate::store::redact;

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    version: u32,
    features: Vec<String>,
    url: String,
    pub(crate) digest: String,
    pub(crate) etag: Option<String>,
    pub(crate) last_modified: Option<String>,
}

fn path_of(images: &Path, url: &str) -> PathBuf {
    images
        .join("urls")
        .join(format!("{}.json", Digest::blake2b_32(url.as_bytes())))
}

impl Origin {
    pub(crate) fn new(url: &str, digest: &str, etag: Option<String>, last_modified: Option<String>) -> Origin {
        Origin {
            version: 1,
            features: Vec::new(),
            url: redact(url),
            digest: digest.to_owned(),
            etag,
            last_modified,
        }
    }

    /// What is known about `url`.
    pub(crate) fn read(images: &Path, url: &str) -> Result<Option<Origin>, ResolveError> {
        let path = path_of(images, url);
        match check_head(&path) {
            Err(ResolveError::File(e)) if e.is_not_found() => return Ok(None),
            other => other?,
        }
        Ok(Some(file::read_json(&path)?))
    }

    pub(crate) fn write(&self, images: &Path, url: &str) -> Result<(), ResolveError> {
        file::make_dirs(&images.join("urls"))?;
        Ok(file::replace_json(&path_of(images, url), self)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_1_on_disk_is_read_and_written_as_it_was() {
        let golden = include_str!("../../tests/golden/origin-v1.json");
        let origin = Origin::new(
            "https://me:pw@host/a.fl?token=t",
            &"00".repeat(32),
            Some("\"e\"".into()),
            None,
        );
        assert_eq!(serde_json::from_str::<Origin>(golden).unwrap(), origin);
        assert_eq!(serde_json::to_string_pretty(&origin).unwrap() + "\n", golden);
    }

    #[test]
    fn what_was_remembered_of_a_url_is_found_again_and_nothing_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin::new("http://h/a", "d", None, None);
        origin.write(dir.path(), "http://h/a").unwrap();
        assert_eq!(Origin::read(dir.path(), "http://h/a").unwrap(), Some(origin));
        assert_eq!(Origin::read(dir.path(), "http://h/b").unwrap(), None);
    }
}
