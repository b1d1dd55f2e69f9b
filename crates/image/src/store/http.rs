//! `http(s)://`: a web server that has the blocks as files, `<base>/<first two hex digits>/<hex id>`, on 404 `<base>/<hex id>`.
//!
//! One connection pool per store, kept alive between blocks. User and password of the URL go out as basic authentication.
//! A body that ends before its announced length is an error of the transport, so a cut connection never looks like a block.
//! The environment is not read: no proxy variables.

use std::io;
use std::time::{Duration, Instant};

use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Error};
use zmachine_flist::BlockId;

use super::{BlockStore, MAX_SEALED_LEN, StoreError, Timeouts, redact};

/// Idle connections kept per server; as many threads can fetch at once without connecting anew.
const IDLE_CONNECTIONS: usize = 16;

/// A web server with blocks.
#[derive(Debug)]
pub struct HttpStore {
    base: String,
    /// What follows the path in the URL (`?token=...`), kept for every request.
    query: String,
    description: String,
    agent: Agent,
    timeouts: Timeouts,
}

/// A connection pool with the project's settings: the host's own trusted certificates, no proxy from the environment,
/// statuses as values instead of errors.
pub fn agent(timeouts: Timeouts) -> Agent {
    agent_with(
        timeouts,
        TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build(),
    )
}

/// The same for a server whose certificate is not checked, as its user wants it.
pub fn trusting_agent(timeouts: Timeouts) -> Agent {
    agent_with(timeouts, TlsConfig::builder().disable_verification(true).build())
}

fn agent_with(timeouts: Timeouts, tls: TlsConfig) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .user_agent(concat!("zmachine/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(timeouts.connect))
        .max_idle_connections(IDLE_CONNECTIONS)
        .max_idle_connections_per_host(IDLE_CONNECTIONS)
        .tls_config(tls)
        .build()
        .new_agent()
}

/// A failed request in the words of [`StoreError`]; `store` is the description.
pub(crate) fn classify(store: &str, error: Error) -> StoreError {
    let what = match error {
        Error::Timeout(part) => format!("no answer in time ({part})"),
        Error::HostNotFound => "the host name is unknown".to_owned(),
        Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
        Error::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof => "the connection broke off".to_owned(),
        Error::Io(e) => e.to_string(),
        Error::BadUri(what) => {
            return StoreError::Malformed {
                url: store.to_owned(),
                what,
            };
        }
        other => other.to_string(),
    };
    StoreError::Unavailable {
        store: store.to_owned(),
        what,
    }
}

impl HttpStore {
    /// The store below `url`; nothing is connected.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when the URL names no host.
    pub fn new(url: &str, timeouts: Timeouts) -> Result<HttpStore, StoreError> {
        let description = redact(url).trim_end_matches('/').to_owned();
        let bare = url.split('#').next().unwrap_or_default();
        let (base, query) = match bare.find('?') {
            Some(at) => bare.split_at(at),
            None => (bare, ""),
        };
        let uri: Result<ureq::http::Uri, _> = base.parse();
        if !uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty())) {
            return Err(StoreError::Malformed {
                url: description,
                what: "it names no host".to_owned(),
            });
        }
        Ok(HttpStore {
            base: base.trim_end_matches('/').to_owned(),
            query: query.to_owned(),
            description,
            agent: agent(timeouts),
            timeouts,
        })
    }

    fn urls(&self, id: &BlockId) -> [String; 2] {
        let hex = id.0.to_string();
        let (base, query) = (&self.base, &self.query);
        [
            format!("{base}/{}/{hex}{query}", &hex[..2]),
            format!("{base}/{hex}{query}"),
        ]
    }

    /// The time left for a request, at most the store's own limit.
    fn budget(&self, deadline: Option<Instant>) -> Result<Duration, StoreError> {
        let left = match deadline {
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
            None => self.timeouts.request,
        };
        if left.is_zero() {
            return Err(StoreError::Unavailable {
                store: self.describe(),
                what: "no time was left to ask it".to_owned(),
            });
        }
        Ok(left.min(self.timeouts.request))
    }

    /// One request; `None` on 404.
    fn request(&self, id: &BlockId, url: &str, deadline: Option<Instant>) -> Result<Option<Vec<u8>>, StoreError> {
        let budget = self.budget(deadline)?;
        let request = self.agent.get(url).config().timeout_global(Some(budget)).build();
        let mut response = request.call().map_err(|e| classify(&self.description, e))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            status => {
                return Err(StoreError::Status {
                    store: self.describe(),
                    status,
                });
            }
        }
        // One more than the limit, so that a body of exactly the limit is told from a longer one.
        let body = response
            .body_mut()
            .with_config()
            .limit(MAX_SEALED_LEN as u64 + 1)
            .read_to_vec();
        match body {
            Ok(bytes) if bytes.len() <= MAX_SEALED_LEN => Ok(Some(bytes)),
            Ok(_) | Err(Error::BodyExceedsLimit(_)) => Err(StoreError::TooLong {
                store: self.describe(),
                id: id.0.to_string(),
                limit: MAX_SEALED_LEN,
            }),
            Err(e) => Err(classify(&self.description, e)),
        }
    }

    fn find(&self, id: &BlockId, deadline: Option<Instant>) -> Result<Vec<u8>, StoreError> {
        let mut missing = StoreError::NotFound {
            store: self.describe(),
            id: id.0.to_string(),
        };
        for url in self.urls(id) {
            match self.request(id, &url, deadline) {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                // Servers whose files may not be listed say so of one that is not there.
                Err(error @ StoreError::Status { status: 403, .. }) => missing = error,
                Err(error) => return Err(error),
            }
        }
        Err(missing)
    }
}

impl BlockStore for HttpStore {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        self.find(id, None)
    }

    fn get_before(&self, id: &BlockId, deadline: Instant) -> Result<Vec<u8>, StoreError> {
        self.find(id, Some(deadline))
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        let mut forbidden = None;
        for url in self.urls(id) {
            let request = self
                .agent
                .head(&url)
                .config()
                .timeout_global(Some(self.timeouts.request))
                .build();
            let response = request.call().map_err(|e| classify(&self.description, e))?;
            match response.status().as_u16() {
                200 => return Ok(true),
                404 => {}
                status => {
                    let error = StoreError::Status {
                        store: self.describe(),
                        status,
                    };
                    match status {
                        403 => forbidden = Some(error),
                        _ => return Err(error),
                    }
                }
            }
        }
        forbidden.map_or(Ok(false), Err)
    }

    fn put(&self, _id: &BlockId, _sealed: &[u8]) -> Result<bool, StoreError> {
        Err(StoreError::ReadOnly { store: self.describe() })
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}
