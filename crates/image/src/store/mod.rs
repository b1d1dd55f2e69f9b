//! Block stores: where sealed blocks live, named by the digest of their stored bytes.
//!
//! This module owns the trait every kind of store fulfils and the reading of store URLs. A store moves bytes; it neither
//! decrypts nor judges them ([`crate::fetch`] verifies what it got, the packer verifies what it made).
//!
//! Everything here blocks the calling thread. The users are the threads of the vhost-user server, the packer and the
//! command line; none of them has an async runtime, and a block fetch is one request and one answer.
//!
//! Invariants: an answer is never longer than [`MAX_SEALED_LEN`]; no error and no description carries a password or a
//! token of the URL; a store is opened without connecting, so a dead one costs nothing until it is asked.

mod credentials;
mod dir;
mod http;
mod routed;
mod s3;
mod url;
mod zdb;

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use zmachine_flist::BlockId;

pub use credentials::{CREDENTIALS_FILE, Credentials, CredentialsError};
pub use dir::DirStore;
pub use http::HttpStore;
pub(crate) use http::classify;
pub use http::{agent, trusting_agent};
pub use routed::RoutedStore;
pub use s3::S3Store;
pub use url::{redact, without_credentials};
pub use zdb::ZdbStore;

/// The longest sealed block that is accepted, in bytes. A plain block has at most 512 KiB, which snappy can stretch to
/// 611,701 bytes (`32 + n + n/6`), plus the 16-byte tag; 700 KiB leaves room and still bounds what a store can make us read.
pub const MAX_SEALED_LEN: usize = 700 * 1024;

/// How long a store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection (with its TLS handshake) stands.
    pub connect: Duration,
    /// For one whole request, from sending it to the last byte of the answer.
    pub request: Duration,
}

impl Default for Timeouts {
    /// 5 seconds to connect and 20 for a request: a 700 KiB block still arrives over a line of 300 kbit/s.
    fn default() -> Timeouts {
        Timeouts {
            connect: Duration::from_secs(5),
            request: Duration::from_secs(20),
        }
    }
}

/// A place that keeps sealed blocks under their ids.
///
/// The methods block, and may be called from many threads at once.
pub trait BlockStore: Send + Sync {
    /// The stored bytes of block `id`, at most [`MAX_SEALED_LEN`] of them. They are **not** verified.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the store is well and has no such block; any other variant when that is not known.
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError>;

    /// [`BlockStore::get`] that gives up at `deadline`. The default ignores it, which is right for stores that never
    /// wait for anybody (a local directory).
    ///
    /// # Errors
    /// As [`BlockStore::get`]; [`StoreError::Unavailable`] when the time is up.
    fn get_before(&self, id: &BlockId, deadline: Instant) -> Result<Vec<u8>, StoreError> {
        let _ = deadline;
        self.get(id)
    }

    /// Whether the store has block `id` (its presence, not its health).
    ///
    /// # Errors
    /// When the store cannot tell.
    fn has(&self, id: &BlockId) -> Result<bool, StoreError>;

    /// Whether the store has block `id` whole, for who will not put it again. A store on this host reads it; one behind a network is
    /// taken at its word ([`BlockStore::has`]), since reading would cost what sending does.
    ///
    /// # Errors
    /// When the store cannot tell.
    fn holds(&self, id: &BlockId) -> Result<bool, StoreError> {
        self.has(id)
    }

    /// Keeps `sealed` under `id`; `false` when it was there already. The caller guarantees that `id` is the digest of
    /// `sealed`. A block may become durable only with [`BlockStore::flush`].
    ///
    /// # Errors
    /// [`StoreError::ReadOnly`] for stores that take nothing, or why the block could not be kept.
    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError>;

    /// Makes every block that was put durable. The default does nothing, which is right for stores whose `put` is durable.
    ///
    /// # Errors
    /// When the store cannot promise it.
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// What the store is, for messages: its URL without credentials.
    fn describe(&self) -> String;

    /// The local directories the store reads, for sandboxes that must allow them; none for stores behind a network.
    fn local_directories(&self) -> Vec<&Path> {
        Vec::new()
    }
}

/// Why a store could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store works and has no such block.
    #[error("{store} has no block {id}")]
    NotFound {
        /// The store, without credentials.
        store: String,
        /// The block.
        id: String,
    },
    /// The store could not be reached, broke off, or did not answer in time. Another try may succeed.
    #[error("{store} is not available: {what}")]
    Unavailable {
        /// The store, without credentials.
        store: String,
        /// What happened.
        what: String,
    },
    /// The store answered, but not with the block: a status other than found and not found.
    #[error("{store} answered with status {status}")]
    Status {
        /// The store, without credentials.
        store: String,
        /// The HTTP status.
        status: u16,
    },
    /// The answer is longer than any block can be.
    #[error("{store} sent more than {limit} bytes for block {id}")]
    TooLong {
        /// The store, without credentials.
        store: String,
        /// The block.
        id: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// The store takes no blocks.
    #[error("{store} is read-only")]
    ReadOnly {
        /// The store, without credentials.
        store: String,
    },
    /// The directory of a `dir://` store is not there.
    #[error("the store directory {} does not exist", path.display())]
    MissingDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// A file of a `dir://` store could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried (`read`, `write`, ...).
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store answered with an error of its own.
    #[error("{store} refused: {what}")]
    Refused {
        /// The store, without credentials.
        store: String,
        /// What it said.
        what: String,
    },
    /// The kind of store is known by name only.
    #[error("stores of kind '{scheme}' are not supported yet ({url})")]
    Unsupported {
        /// The scheme of the URL.
        scheme: String,
        /// The URL, without credentials.
        url: String,
    },
    /// The URL is not one of a store.
    #[error("'{url}' is not a store URL: {what}")]
    Malformed {
        /// The URL, without credentials.
        url: String,
        /// What is wrong with it.
        what: String,
    },
}

impl StoreError {
    /// Whether asking the same store again soon may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Unavailable { .. } => true,
            StoreError::Status { status, .. } => *status >= 500 || *status == 429 || *status == 408,
            _ => false,
        }
    }

    /// Whether this may be how the store says that it has no such block: one that may not be listed forbids what is not there.
    pub fn may_mean_missing(&self) -> bool {
        match self {
            StoreError::NotFound { .. } | StoreError::Status { status: 403, .. } => true,
            StoreError::Refused { what, .. } => what.starts_with("AccessDenied"),
            _ => false,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            StoreError::NotFound { .. } => Some("name another store that has the block".into()),
            StoreError::Unavailable { what, .. } if what.contains("certificate") => {
                Some("add the issuer of its certificate to those that this host trusts (update-ca-certificates)".into())
            }
            StoreError::Unavailable { .. } => Some("check the network, or name another store".into()),
            StoreError::MissingDirectory { .. } => {
                Some("create or mount the directory, or name the store's new place".into())
            }
            StoreError::Unsupported { .. } | StoreError::Malformed { .. } => Some(
                "stores are dir:///PATH, http(s)://HOST/PATH, zdb://HOST/NAMESPACE or s3://KEY:SECRET@HOST:PORT/BUCKET"
                    .into(),
            ),
            StoreError::Status { status: 403, .. } => Some(
                "the store does not have the block, or wants credentials: in stores.toml, or in its URL \
                 (https://USER:PASSWORD@HOST/PATH)"
                    .into(),
            ),
            StoreError::Refused { what, .. } if what.starts_with("AccessDenied") => {
                Some("the bucket does not have the block, or the key may not read it".into())
            }
            StoreError::Status { status: 401, .. } => Some(
                "the store wants credentials: in stores.toml, or in its URL (https://USER:PASSWORD@HOST/PATH)".into(),
            ),
            StoreError::Refused { store, .. } if store.starts_with("s3") => {
                Some("check that the bucket exists, and the key and secret: in stores.toml, or s3://KEY:SECRET@HOST:PORT/BUCKET".into())
            }
            StoreError::Refused { .. } => {
                Some("check the namespace and the password: zdb://:PASSWORD@HOST/NAMESPACE".into())
            }
            _ => None,
        }
    }
}

/// Opens the store at `url` without connecting to it: `dir:///abs/path`, `http(s)://`, `zdb://`, `s3://` or `s3s://`.
///
/// # Errors
/// [`StoreError::Unsupported`] for a kind of store that is known but not built (`server`) and [`StoreError::Malformed`]
/// for anything else.
pub fn open_store(url: &str, timeouts: Timeouts) -> Result<Box<dyn BlockStore>, StoreError> {
    let malformed = |what: &str| StoreError::Malformed {
        url: redact(url),
        what: what.to_owned(),
    };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(malformed("it has no scheme (as in dir:///path)"));
    };
    match scheme {
        "dir" if rest.starts_with('/') => Ok(Box::new(DirStore::new(PathBuf::from(rest)))),
        "dir" => Err(malformed("the path of a dir:// store must be absolute")),
        "http" | "https" => Ok(Box::new(HttpStore::new(url, timeouts)?)),
        "zdb" => Ok(Box::new(ZdbStore::new(url, timeouts)?)),
        "s3" | "s3s" | "s3+tls" | "s3s+tls" => Ok(Box::new(S3Store::new(url, timeouts)?)),
        "server" => Err(StoreError::Unsupported {
            scheme: scheme.to_owned(),
            url: redact(url),
        }),
        _ => Err(malformed("its scheme is unknown")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        match open_store(url, Timeouts::default()) {
            Ok(store) => panic!("opened {}", store.describe()),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_kind_that_is_not_built_is_named_and_its_password_is_not() {
        let text = refusal("server://http://host:9900?token=secret");
        assert_eq!(
            text,
            "stores of kind 'server' are not supported yet (server://http://host:9900)"
        );
    }

    #[test]
    fn a_relative_directory_and_a_bare_word_are_refused_with_the_reason() {
        assert!(refusal("dir://store").contains("must be absolute"));
        assert!(refusal("store").contains("no scheme"));
        assert!(refusal("ftp://host/x").contains("unknown"));
    }

    #[test]
    fn descriptions_carry_no_credentials() {
        let store = open_store("https://me:secret@host/base/?token=abc", Timeouts::default()).unwrap();
        assert_eq!(store.describe(), "https://host/base");
    }
}
