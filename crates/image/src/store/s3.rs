//! `s3://KEY:SECRET@host[:port]/bucket[?region=NAME]`, `s3s://` with TLS: a server with Amazon's S3 interface.
//!
//! A block is the object named by its hexadecimal id in the bucket's root, in path style. Requests are signed (version 4)
//! by crate `rusty-s3`; a signed URL is a credential for its few minutes, so it is never part of a message. The region
//! is `us-east-1` when the URL has none, as self-hosted servers expect.

use std::time::{Duration, Instant};

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::{Agent, Error};
use zmachine_flist::BlockId;

use super::url::percent_decode;
use super::{BlockStore, MAX_SEALED_LEN, StoreError, Timeouts, agent, classify, redact};

/// The region when the URL names none.
const REGION: &str = "us-east-1";

/// How long a signature holds.
const SIGNATURE: Duration = Duration::from_secs(300);

/// A bucket.
pub struct S3Store {
    bucket: Bucket,
    credentials: Option<Credentials>,
    description: String,
    agent: Agent,
    timeouts: Timeouts,
}

impl S3Store {
    /// The bucket at `url`; nothing is connected. Without credentials requests are not signed.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when host or bucket are missing.
    pub fn new(url: &str, timeouts: Timeouts) -> Result<S3Store, StoreError> {
        let description = redact(url).trim_end_matches('/').to_owned();
        let malformed = |what: &str| StoreError::Malformed {
            url: description.clone(),
            what: what.to_owned(),
        };
        let (bare, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, rest) = bare.split_once("://").ok_or_else(|| malformed("it has no scheme"))?;
        let transport = if scheme == "s3" { "http" } else { "https" };
        let (authority, bucket) = rest.split_once('/').ok_or_else(|| malformed("it names no bucket"))?;
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let bucket = bucket.trim_end_matches('/');
        if bucket.is_empty() || bucket.contains('/') || host.is_empty() {
            return Err(malformed("it must have the form s3://KEY:SECRET@HOST:PORT/BUCKET"));
        }
        let decode = |text: &str| percent_decode(text).ok_or_else(|| malformed("it has a broken percent sign"));
        let credentials = match user.split_once(':') {
            Some((key, secret)) => Some(Credentials::new(decode(key)?, decode(secret)?)),
            None if user.is_empty() => None,
            None => return Err(malformed("its credentials have no secret: KEY:SECRET@")),
        };
        let region = query.split('&').find_map(|field| field.strip_prefix("region="));
        let region = decode(region.unwrap_or(REGION))?;
        let endpoint = format!("{transport}://{host}")
            .parse()
            .map_err(|_| malformed("its host or port is broken"))?;
        let bucket = Bucket::new(endpoint, UrlStyle::Path, bucket.to_owned(), region);
        Ok(S3Store {
            bucket: bucket.map_err(|_| malformed("its host or bucket is broken"))?,
            credentials,
            description,
            agent: agent(timeouts),
            timeouts,
        })
    }

    fn budget(&self, deadline: Option<Instant>) -> Result<Duration, StoreError> {
        let left = deadline.map_or(self.timeouts.request, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Err(StoreError::Unavailable {
                store: self.describe(),
                what: "no time was left to ask it".to_owned(),
            });
        }
        Ok(left.min(self.timeouts.request))
    }

    fn status(&self, status: u16) -> StoreError {
        StoreError::Status {
            store: self.describe(),
            status,
        }
    }

    fn fetch(&self, id: &BlockId, deadline: Option<Instant>) -> Result<Vec<u8>, StoreError> {
        let budget = self.budget(deadline)?;
        let name = id.to_string();
        let url = self.bucket.get_object(self.credentials.as_ref(), &name).sign(SIGNATURE);
        let request = self
            .agent
            .get(url.as_str())
            .config()
            .timeout_global(Some(budget))
            .build();
        let mut response = request.call().map_err(|error| classify(&self.description, error))?;
        match response.status().as_u16() {
            200 => {}
            404 => {
                return Err(StoreError::NotFound {
                    store: self.describe(),
                    id: name,
                });
            }
            status => return Err(self.status(status)),
        }
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_SEALED_LEN as u64 + 1)
            .read_to_vec();
        match body {
            Ok(bytes) if bytes.len() <= MAX_SEALED_LEN => Ok(bytes),
            Ok(_) | Err(Error::BodyExceedsLimit(_)) => Err(StoreError::TooLong {
                store: self.describe(),
                id: name,
                limit: MAX_SEALED_LEN,
            }),
            Err(error) => Err(classify(&self.description, error)),
        }
    }
}

impl BlockStore for S3Store {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        self.fetch(id, None)
    }

    fn get_before(&self, id: &BlockId, deadline: Instant) -> Result<Vec<u8>, StoreError> {
        self.fetch(id, Some(deadline))
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        let url = self
            .bucket
            .head_object(self.credentials.as_ref(), &id.to_string())
            .sign(SIGNATURE);
        let request = self
            .agent
            .head(url.as_str())
            .config()
            .timeout_global(Some(self.timeouts.request))
            .build();
        let response = request.call().map_err(|error| classify(&self.description, error))?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            status => Err(self.status(status)),
        }
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        if self.has(id)? {
            return Ok(false);
        }
        let url = self
            .bucket
            .put_object(self.credentials.as_ref(), &id.to_string())
            .sign(SIGNATURE);
        let request = self
            .agent
            .put(url.as_str())
            .config()
            .timeout_global(Some(self.timeouts.request))
            .build();
        let response = request
            .send(sealed)
            .map_err(|error| classify(&self.description, error))?;
        match response.status().as_u16() {
            200..=299 => Ok(true),
            status => Err(self.status(status)),
        }
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_without_a_bucket_or_secret_are_refused_and_nothing_shows_the_secret() {
        for url in ["s3://h:1", "s3://h:1/", "s3://h:1/a/b", "s3://key@h:1/b", "s3:///b"] {
            assert!(S3Store::new(url, Timeouts::default()).is_err(), "{url}");
        }
        let store = S3Store::new("s3s://key:secret@h:1/b?region=eu", Timeouts::default()).unwrap();
        assert_eq!(store.describe(), "s3s://h:1/b");
        assert_eq!(store.bucket.region(), "eu");
        assert_eq!(store.bucket.base_url().scheme(), "https");
    }
}
