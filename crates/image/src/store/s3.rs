//! `s3://KEY:SECRET@host[:port]/bucket[/prefix][?region=NAME]`, `s3s://` with TLS: a server with Amazon's S3 interface.
//!
//! A block is the object named by its hexadecimal id, in path style; a prefix goes in front of it (which the original tool
//! does not know: it looks in the bucket's root). Requests are signed (version 4)
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

/// The most of an error's description that is read, in bytes.
const ERROR_BYTES: u64 = 4096;

/// A bucket.
pub struct S3Store {
    bucket: Bucket,
    /// What the names of blocks begin with: empty, or ending with a slash.
    prefix: String,
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
        let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        let prefix = prefix.trim_matches('/');
        if bucket.is_empty() || host.is_empty() {
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
        let prefix = match decode(prefix)? {
            prefix if prefix.is_empty() => prefix,
            prefix => format!("{prefix}/"),
        };
        Ok(S3Store {
            prefix,
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

    /// The object that a block is.
    fn object(&self, id: &BlockId) -> String {
        format!("{}{id}", self.prefix)
    }

    fn missing(&self, id: &BlockId) -> StoreError {
        StoreError::NotFound {
            store: self.describe(),
            id: id.to_string(),
        }
    }

    /// An answer that is no success, in the server's words when it has some.
    fn refusal(&self, response: &mut ureq::http::Response<ureq::Body>) -> StoreError {
        let status = response.status().as_u16();
        let by_status = StoreError::Status {
            store: self.describe(),
            status,
        };
        let body = response.body_mut().with_config().limit(ERROR_BYTES).read_to_vec();
        let body = body.unwrap_or_default();
        match (by_status.is_transient(), reason(&String::from_utf8_lossy(&body))) {
            (false, Some(what)) => StoreError::Refused {
                store: self.describe(),
                what,
            },
            _ => by_status,
        }
    }

    fn fetch(&self, id: &BlockId, deadline: Option<Instant>) -> Result<Vec<u8>, StoreError> {
        let budget = self.budget(deadline)?;
        let name = self.object(id);
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
                // A bucket that is not there answers like a block that is not.
                return Err(match self.refusal(&mut response) {
                    StoreError::Refused { store, what } if what.starts_with("NoSuchBucket") => {
                        StoreError::Refused { store, what }
                    }
                    _ => self.missing(id),
                });
            }
            _ => return Err(self.refusal(&mut response)),
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
                id: id.to_string(),
                limit: MAX_SEALED_LEN,
            }),
            Err(error) => Err(classify(&self.description, error)),
        }
    }
}

/// `CODE: message` of the XML that an S3 server sends with an error. Nothing else of it is shown: some of it is what was
/// signed.
fn reason(xml: &str) -> Option<String> {
    let element = |name: &str| {
        let (_, rest) = xml.split_once(&format!("<{name}>"))?;
        let (text, _) = rest.split_once("</")?;
        let text = text.chars().filter(|letter| !letter.is_control());
        Some(text.take(200).collect::<String>()).filter(|text| !text.is_empty())
    };
    let code = element("Code")?;
    Some(match element("Message") {
        Some(message) => format!("{code}: {message}"),
        None => code,
    })
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
            .head_object(self.credentials.as_ref(), &self.object(id))
            .sign(SIGNATURE);
        let request = self
            .agent
            .head(url.as_str())
            .config()
            .timeout_global(Some(self.timeouts.request))
            .build();
        let mut response = request.call().map_err(|error| classify(&self.description, error))?;
        match response.status().as_u16() {
            200 => Ok(true),
            // Who may not list a bucket is not told what is not in it. Writing tells whether it is that.
            404 | 403 => Ok(false),
            _ => Err(self.refusal(&mut response)),
        }
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        match self.has(id) {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            // An answer to HEAD has no reason. Writing tells.
            Err(error @ StoreError::Status { .. }) if !error.is_transient() => {}
            Err(error) => return Err(error),
        }
        let url = self
            .bucket
            .put_object(self.credentials.as_ref(), &self.object(id))
            .sign(SIGNATURE);
        let request = self
            .agent
            .put(url.as_str())
            .config()
            .timeout_global(Some(self.timeouts.request))
            .build();
        let mut response = request
            .send(sealed)
            .map_err(|error| classify(&self.description, error))?;
        match response.status().as_u16() {
            200..=299 => Ok(true),
            _ => Err(self.refusal(&mut response)),
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
        for url in ["s3://h:1", "s3://h:1/", "s3://h:1//b", "s3://key@h:1/b", "s3:///b"] {
            assert!(S3Store::new(url, Timeouts::default()).is_err(), "{url}");
        }
        let store = S3Store::new("s3s://key:secret@h:1/b?region=eu", Timeouts::default()).unwrap();
        assert_eq!(store.describe(), "s3s://h:1/b");
        assert_eq!(store.bucket.region(), "eu");
        assert_eq!(store.bucket.base_url().scheme(), "https");
    }

    #[test]
    fn blocks_are_in_the_bucket_or_below_a_prefix() {
        let id = zmachine_flist::BlockRef::seal(b"x").0.id;
        for (url, prefix) in [
            ("s3://h/b/", ""),
            ("s3://h/b/team/blocks/", "team/blocks/"),
            ("s3://h/b/a%20b", "a b/"),
        ] {
            let store = S3Store::new(url, Timeouts::default()).unwrap();
            assert_eq!(store.object(&id), format!("{prefix}{id}"), "{url}");
        }
    }

    #[test]
    fn an_error_is_told_by_its_code_and_message_alone() {
        let xml = "<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>No\nmatch</Message>\
                   <StringToSign>hunter2</StringToSign></Error>";
        assert_eq!(reason(xml).as_deref(), Some("SignatureDoesNotMatch: Nomatch"));
        for nothing in ["", "<Code>", "<Code></Code>", "<html>"] {
            assert_eq!(reason(nothing), None);
        }
    }
}
