//! The distribution protocol of container registries: manifests and blobs over HTTP, with tokens when asked for.
//!
//! A blob whose connection is cut is asked for from there on, as long as it goes on ([`Resuming`]); how long all of it may take follows from
//! its size ([`zmachine_image::pace`]).

use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::{Agent, Error};
use zmachine_image::pace::{Pace, Paced};
use zmachine_image::store::{Timeouts, agent, trusting_agent};

use super::auth;
use super::challenge::{Challenge, challenges};
use super::layer::hex_of;
use super::manifest::Descriptor;
use super::source::{Part, Source};
use super::{DOCUMENT_BYTES, ImportOptions, Problem};

/// What can be read, the newer forms first.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// What is said of a host that there is not.
const UNKNOWN_HOST: &str = "the host name is unknown";

/// A server that says nothing for this long in the middle of a layer is given up.
const SILENCE: Duration = Duration::from_secs(60);

/// Tries of a request whose failure may pass, with their pauses.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(300),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// How often a cut connection is made again before [`PROGRESS`] more bytes have come, with the pauses before.
const RESUMES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(4),
];

/// Bytes after which a connection counts as one that works.
const PROGRESS: u64 = 1 << 20;

type Response = ureq::http::Response<ureq::Body>;

pub(super) struct Registry {
    agent: Agent,
    /// `https://host`.
    server: String,
    repository: String,
    reference: String,
    login: Option<auth::Login>,
    /// The value of the header `Authorization` that worked last.
    authorization: Mutex<Option<String>>,
    timeouts: Timeouts,
}

/// A failed request, without the URL: it may be a signed one of another host.
pub(super) fn to_problem(error: &Error) -> Problem {
    Problem::Read(match error {
        Error::Io(error) => io::Error::new(error.kind(), error.to_string()),
        Error::Timeout(part) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer in time ({part})")),
        Error::HostNotFound => io::Error::other(UNKNOWN_HOST),
        other => io::Error::other(other.to_string()),
    })
}

/// The name of a registry's host, without its port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether what is sent there stays on this host.
fn is_local(host: &str) -> bool {
    let name = name_of(host);
    let is_address = name
        .parse::<std::net::Ipv4Addr>()
        .is_ok_and(|address| address.is_loopback());
    name == "localhost" || is_address || name == "[::1]"
}

/// How a registry is spoken to: an agent, and the beginning of its URLs.
pub(super) fn server(host: &str, options: &ImportOptions) -> (Agent, String) {
    let name = if host == "docker.io" {
        "registry-1.docker.io"
    } else {
        host
    };
    if options.plain_http || is_local(host) {
        return (agent(options.timeouts), format!("http://{name}"));
    }
    if !options.registries.is_insecure(host) {
        return (agent(options.timeouts), format!("https://{name}"));
    }
    // With any certificate, or else in the clear.
    let trusting = trusting_agent(options.timeouts);
    let request = trusting.get(format!("https://{name}/v2/")).config();
    let answer = request.timeout_global(Some(options.timeouts.request)).build().call();
    let scheme = if answer.is_ok() { "https" } else { "http" };
    (trusting, format!("{scheme}://{name}"))
}

impl Registry {
    pub(super) fn open(
        host: &str,
        repository: &str,
        reference: &str,
        options: &ImportOptions,
    ) -> Result<Registry, Problem> {
        let (agent, server) = server(host, options);
        Ok(Registry {
            agent,
            server,
            repository: repository.to_owned(),
            reference: reference.to_owned(),
            login: auth::login(&options.auth_files, host, repository)?,
            authorization: Mutex::default(),
            timeouts: options.timeouts,
        })
    }

    /// Asks for a path below the repository from byte `from` on, with a token when the registry wants one.
    fn get(&self, path: &str, from: u64) -> Result<Response, Problem> {
        let mut pauses = PAUSES.iter();
        loop {
            let answer = self.get_once(path, from);
            let passes = match &answer {
                Ok(response) => may_pass(response.status().as_u16()),
                Err(Problem::Status(status)) => may_pass(*status),
                Err(Problem::Read(error)) => !is_nowhere(error),
                Err(_) => false,
            };
            match pauses.next() {
                Some(pause) if passes => std::thread::sleep(*pause),
                _ => {
                    let response = answer?;
                    return match response.status().as_u16() {
                        200 => Ok(response),
                        206 if from > 0 => Ok(response),
                        status => Err(Problem::Status(status)),
                    };
                }
            }
        }
    }

    fn get_once(&self, path: &str, from: u64) -> Result<Response, Problem> {
        self.authorized(|authorization| self.send(path, from, authorization))
    }

    /// A request that is sent again with what the registry asks for.
    fn authorized(&self, mut send: impl FnMut(Option<&str>) -> Result<Response, Problem>) -> Result<Response, Problem> {
        let known = self.authorization().clone();
        let mut response = send(known.as_deref())?;
        if response.status() != 401 {
            return Ok(response);
        }
        // What worked before may have expired. Of several ways, the first one that works is good enough.
        let headers = response.headers().get_all("www-authenticate");
        let challenges = challenges(headers.iter().filter_map(|header| header.to_str().ok()));
        let mut failure = None;
        for challenge in &challenges {
            let authorization = match self.authorization_for(challenge) {
                Ok(Some(authorization)) => authorization,
                Ok(None) => continue,
                Err(problem) => {
                    failure.get_or_insert(problem);
                    continue;
                }
            };
            response = send(Some(&authorization))?;
            if response.status() != 401 {
                *self.authorization() = Some(authorization);
                return Ok(response);
            }
        }
        failure.map_or(Ok(response), Err)
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The header that meets a challenge; `None` when this one cannot be met.
    fn authorization_for(&self, challenge: &Challenge) -> Result<Option<String>, Problem> {
        match (challenge, &self.login) {
            (Challenge::Basic, Some(auth::Login::Basic(basic))) => Ok(Some(format!("Basic {basic}"))),
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer(parameters), login) => {
                let owner = auth::Owner {
                    server: &self.server,
                    repository: &self.repository,
                    login: login.as_ref(),
                };
                let token = auth::token(&self.agent, parameters, &owner, self.timeouts.request)?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    /// That the registry takes a login, `base64(user:password)`.
    pub(super) fn check(host: &str, pair: &str, options: &ImportOptions) -> Result<(), Problem> {
        let (agent, server) = server(host, options);
        let registry = Registry {
            agent,
            server,
            repository: String::new(),
            reference: String::new(),
            login: Some(auth::Login::Basic(pair.to_owned())),
            authorization: Mutex::default(),
            timeouts: options.timeouts,
        };
        let url = format!("{}/v2/", registry.server);
        let response = registry.authorized(|authorization| {
            let mut request = registry.agent.get(&url);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let request = request.config().timeout_global(Some(options.timeouts.request)).build();
            request.call().map_err(|error| to_problem(&error))
        })?;
        match response.status().as_u16() {
            200 => Ok(()),
            status => Err(Problem::Status(status)),
        }
    }

    /// Whether the repository has a blob.
    pub(super) fn has_blob(&self, digest: &str) -> Result<bool, Problem> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.server, self.repository);
        let response = self.authorized(|authorization| {
            let mut request = self.agent.head(&url);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let request = request.config().timeout_global(Some(self.timeouts.request)).build();
            request.call().map_err(|error| to_problem(&error))
        })?;
        match response.status().as_u16() {
            200 => Ok(true),
            404 => Ok(false),
            status => Err(Problem::Status(status)),
        }
    }

    /// Sends a blob of this length.
    pub(super) fn upload(&self, digest: &str, size: u64, bytes: &mut dyn Read) -> Result<(), Problem> {
        let url = format!("{}/v2/{}/blobs/uploads/", self.server, self.repository);
        // Authorized by this, so that the blob is sent once.
        let begun = self.authorized(|authorization| {
            let mut request = self.agent.post(&url);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let request = request.config().timeout_global(Some(self.timeouts.request)).build();
            request.send_empty().map_err(|error| to_problem(&error))
        })?;
        if begun.status() != 202 {
            return Err(Problem::Status(begun.status().as_u16()));
        }
        let location = begun
            .headers()
            .get("location")
            .and_then(|location| location.to_str().ok());
        let location = location.ok_or_else(|| Problem::Broken("it does not say where a blob goes".into()))?;
        let location = match location.starts_with('/') {
            true => format!("{}{location}", self.server),
            false => location.to_owned(),
        };
        let joined = if location.contains('?') { '&' } else { '?' };
        let mut request = self
            .agent
            .put(format!("{location}{joined}digest={digest}"))
            .header("content-type", "application/octet-stream")
            .header("content-length", size.to_string());
        // It may be a place of another host, which is not to know who we are.
        if let Some(authorization) = self
            .authorization()
            .clone()
            .filter(|_| location.starts_with(&self.server))
        {
            request = request.header("authorization", authorization);
        }
        let sent = request
            .send(ureq::SendBody::from_reader(bytes))
            .map_err(|error| to_problem(&error))?;
        match sent.status().as_u16() {
            201 => Ok(()),
            status => Err(Problem::Status(status)),
        }
    }

    /// Gives the reference this manifest.
    pub(super) fn put_manifest(&self, bytes: &[u8], kind: &str) -> Result<(), Problem> {
        let url = format!("{}/v2/{}/manifests/{}", self.server, self.repository, self.reference);
        let response = self.authorized(|authorization| {
            let mut request = self.agent.put(&url).header("content-type", kind);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let request = request.config().timeout_global(Some(self.timeouts.request)).build();
            request.send(bytes).map_err(|error| to_problem(&error))
        })?;
        match response.status().as_u16() {
            200 | 201 => Ok(()),
            status => Err(Problem::Status(status)),
        }
    }

    fn send(&self, path: &str, from: u64, authorization: Option<&str>) -> Result<Response, Problem> {
        let url = format!("{}/v2/{}/{path}", self.server, self.repository);
        let mut request = self.agent.get(url).header("accept", ACCEPT);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let request = request
            .config()
            .timeout_recv_response(Some(self.timeouts.request))
            .timeout_per_read(Some(SILENCE))
            .build();
        request.call().map_err(|error| to_problem(&error))
    }

    fn document(&self, reference: &str) -> Result<Vec<u8>, Problem> {
        let response = self.get(&format!("manifests/{reference}"), 0)?;
        let body = response.into_body().into_reader().take(DOCUMENT_BYTES + 1);
        let mut bytes = Vec::new();
        Paced::new(body, self.timeouts).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > DOCUMENT_BYTES {
            true => Err(Problem::Broken(format!("its manifest {reference} is too long"))),
            false => Ok(bytes),
        }
    }
}

/// Whether there is no such host, which will be so a little later as well.
fn is_nowhere(error: &io::Error) -> bool {
    let output = error.to_string();
    output == UNKNOWN_HOST || output.ends_with("Name or service not known")
}

/// Whether a request with this answer may be answered well a little later.
fn may_pass(status: u16) -> bool {
    status >= 500 || status == 429 || status == 408
}

/// A blob as it comes, from as many connections as that takes.
struct Resuming<'a> {
    registry: &'a Registry,
    path: String,
    /// Bytes of it, by the manifest.
    size: u64,
    /// Bytes that have come, and those that had when a connection was last made again.
    at: u64,
    resumed_at: u64,
    /// Connections made again since it went on.
    resumes: usize,
    body: Option<Box<dyn Read>>,
    pace: Pace,
}

impl Resuming<'_> {
    /// Asks for the rest, after something went wrong.
    fn resume(&mut self, error: io::Error) -> io::Result<()> {
        self.body = None;
        if self.at - self.resumed_at >= PROGRESS {
            self.resumes = 0;
        }
        let Some(pause) = RESUMES.get(self.resumes).filter(|_| !self.pace.is_over()) else {
            return Err(given_up(&error));
        };
        std::thread::sleep(*pause);
        self.resumes += 1;
        self.resumed_at = self.at;
        // What the registry says now is no better a reason than what was wrong first.
        let response = self.registry.get(&self.path, self.at).map_err(|_| given_up(&error))?;
        let is_rest = response.status() == 206 && begins_at(&response, self.at);
        let mut body: Box<dyn Read> = Box::new(response.into_body().into_reader());
        if !is_rest {
            // A server that does not know ranges sends all of it.
            let skipped = io::copy(
                &mut Paced::new((&mut body).take(self.at), self.registry.timeouts),
                &mut io::sink(),
            )?;
            if skipped < self.at {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.body = Some(body);
        Ok(())
    }
}

/// The failure of a connection, as whoever unpacks what came knows it from one of the bytes.
fn given_up(error: &io::Error) -> io::Error {
    let kind = match error.kind() {
        io::ErrorKind::TimedOut => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::ConnectionAborted,
    };
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the connection was cut again and again".to_owned(),
        _ => error.to_string(),
    };
    io::Error::new(kind, what)
}

/// Whether the range that was sent begins there.
fn begins_at(response: &Response, at: u64) -> bool {
    let range = response
        .headers()
        .get("content-range")
        .and_then(|range| range.to_str().ok());
    let start = range.and_then(|range| range.trim().strip_prefix("bytes ")?.split_once('-'));
    start.is_some_and(|(start, _)| start.trim().parse() == Ok(at))
}

impl Read for Resuming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.body {
                Some(body) => self.pace.read(body, buffer),
                None => Err(io::ErrorKind::NotConnected.into()),
            };
            let error = match read {
                Ok(0) if self.at < self.size && !buffer.is_empty() => io::ErrorKind::UnexpectedEof.into(),
                Ok(read) => {
                    self.at += read as u64;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            self.resume(error)?;
        }
    }
}

impl Registry {
    /// Asks for a part of a blob, once.
    fn ask_part(&self, digest: &str, part: &Part) -> Result<Response, Problem> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.server, self.repository);
        let range = format!("bytes={}-{}", part.at, part.at + part.length - 1);
        self.authorized(|authorization| {
            let mut request = self.agent.get(&url).header("range", &range);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let left = part.deadline.saturating_duration_since(Instant::now());
            let request = request
                .config()
                .timeout_recv_response(Some(self.timeouts.request.min(left)))
                .timeout_global(Some(left))
                .build();
            request.call().map_err(|error| to_problem(&error))
        })
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

    fn part(&self, digest: &str, part: &Part) -> Result<Option<Vec<u8>>, Problem> {
        hex_of(digest)?;
        let response = self.ask_part(digest, part)?;
        match response.status().as_u16() {
            206 if begins_at(&response, part.at) => {}
            // A server that does not know ranges would send all of it.
            200 | 206 => return Ok(None),
            status => return Err(Problem::Status(status)),
        }
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(part.length);
        body.read_to_end(&mut bytes)?;
        match bytes.len() as u64 == part.length {
            true => Ok(Some(bytes)),
            false => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + '_>, Problem> {
        hex_of(&descriptor.digest)?;
        let path = format!("blobs/{}", descriptor.digest);
        let response = self.get(&path, 0)?;
        Ok(Box::new(Resuming {
            registry: self,
            path,
            size: descriptor.size,
            at: 0,
            resumed_at: 0,
            resumes: 0,
            body: Some(Box::new(response.into_body().into_reader())),
            pace: Pace::new(self.timeouts),
        }))
    }
}
