//! The distribution protocol of container registries: manifests and blobs over HTTP, with tokens when asked for.

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::{Agent, Error};

use super::auth;
use super::layer::hex_of;
use super::manifest::Descriptor;
use super::source::Source;
use super::{DOCUMENT_BYTES, ImportOptions, Problem};
use crate::store::agent;

/// What can be read, the newer forms first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A server that says nothing for this long in the middle of a layer is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Tries of a request whose failure may pass, with their pauses.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

pub(super) struct Registry {
    agent: Agent,
    /// `https://host/v2/repository`.
    base: String,
    repository: String,
    reference: String,
    login: Option<auth::Login>,
    /// The value of the header `Authorization` that worked last.
    authorization: Mutex<Option<String>>,
    answer: Duration,
}

/// A failed request, without the URL: it may be a signed one of another host.
pub(super) fn to_problem(error: &Error) -> Problem {
    Problem::Read(match error {
        Error::Io(error) => io::Error::new(error.kind(), error.to_string()),
        Error::Timeout(part) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer in time ({part})")),
        Error::HostNotFound => io::Error::other("the host name is unknown"),
        other => io::Error::other(other.to_string()),
    })
}

impl Registry {
    pub(super) fn open(
        host: &str,
        repository: &str,
        reference: &str,
        options: &ImportOptions,
    ) -> Result<Registry, Problem> {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        let is_local = name == "localhost" || name.starts_with("127.") || name == "[::1]";
        let scheme = if options.plain_http || is_local {
            "http"
        } else {
            "https"
        };
        let server = if host == "docker.io" {
            "registry-1.docker.io"
        } else {
            host
        };
        Ok(Registry {
            agent: agent(options.timeouts),
            base: format!("{scheme}://{server}/v2/{repository}"),
            repository: repository.to_owned(),
            reference: reference.to_owned(),
            login: auth::login(&options.auth_files, host, repository)?,
            authorization: Mutex::default(),
            answer: options.timeouts.request,
        })
    }

    /// Asks for a path below the repository, with a token when the registry wants one.
    fn get(&self, path: &str) -> Result<ureq::http::Response<ureq::Body>, Problem> {
        let mut pauses = PAUSES.iter();
        loop {
            let answer = self.get_once(path);
            let passes = match &answer {
                Ok(response) => response.status().is_server_error() || response.status() == 429,
                Err(Problem::Read(_)) => true,
                Err(_) => false,
            };
            match pauses.next() {
                Some(pause) if passes => std::thread::sleep(*pause),
                _ => {
                    let response = answer?;
                    return match response.status().as_u16() {
                        200 => Ok(response),
                        status => Err(Problem::Status(status)),
                    };
                }
            }
        }
    }

    fn get_once(&self, path: &str) -> Result<ureq::http::Response<ureq::Body>, Problem> {
        let known = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let response = self.send(path, known.as_deref())?;
        if response.status() != 401 {
            return Ok(response);
        }
        let header = response
            .headers()
            .get("www-authenticate")
            .and_then(|header| header.to_str().ok());
        let authorization = match (header.and_then(auth::challenge), &self.login) {
            (Some(challenge), login) => {
                let token = auth::token(&self.agent, &challenge, login.as_ref(), &self.repository)?;
                format!("Bearer {token}")
            }
            (None, Some(auth::Login::Basic(basic))) => format!("Basic {basic}"),
            (None, _) => return Ok(response),
        };
        let response = self.send(path, Some(&authorization))?;
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(response)
    }

    fn send(&self, path: &str, authorization: Option<&str>) -> Result<ureq::http::Response<ureq::Body>, Problem> {
        let mut request = self.agent.get(format!("{}/{path}", self.base)).header("accept", ACCEPT);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let request = request
            .config()
            .timeout_recv_response(Some(self.answer))
            .timeout_per_read(Some(SILENCE))
            .build();
        request.call().map_err(|error| to_problem(&error))
    }

    fn document(&self, reference: &str) -> Result<Vec<u8>, Problem> {
        let mut response = self.get(&format!("manifests/{reference}"))?;
        let body = response.body_mut().with_config().limit(DOCUMENT_BYTES).read_to_vec();
        body.map_err(|error| to_problem(&error))
    }
}

impl Source for Registry {
    fn manifest(&self) -> Result<Vec<u8>, Problem> {
        let bytes = self.document(&self.reference)?;
        if self.reference.contains(':') {
            super::layer::check_digest(&bytes, &self.reference)?;
        }
        Ok(bytes)
    }

    fn manifest_by_digest(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Problem> {
        hex_of(&descriptor.digest)?;
        self.document(&descriptor.digest)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read>, Problem> {
        hex_of(&descriptor.digest)?;
        let response = self.get(&format!("blobs/{}", descriptor.digest))?;
        Ok(Box::new(response.into_body().into_reader()))
    }
}
