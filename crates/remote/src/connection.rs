//! Requests to a server, its answers and failures, and WebSockets.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self};
use zmachine_spec::{Class, Failure};

use crate::target::{Host, Way};

/// The largest answer that is no stream, in bytes.
const ANSWER_BYTES: usize = 256 << 20;

/// The largest failure that is read, in bytes.
const PROBLEM_BYTES: usize = 1 << 20;

/// A connection, whichever way it takes.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A WebSocket to a server.
pub type Socket = WebSocketStream<Box<dyn Stream>>;

/// A server.
pub struct Server {
    way: Way,
    token: Option<HeaderValue>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("way", &self.way).finish_non_exhaustive()
    }
}

/// One request.
#[derive(Debug, Default)]
pub struct Ask<'a> {
    /// The method.
    pub method: &'a str,
    /// The path, its parts with [`part`].
    pub path: String,
    /// Parameters.
    pub query: Vec<(&'a str, String)>,
    /// The body.
    pub body: Option<Value>,
}

impl<'a> Ask<'a> {
    /// Without a body.
    pub fn new(method: &'a str, path: impl Into<String>) -> Ask<'a> {
        Ask {
            method,
            path: path.into(),
            ..Ask::default()
        }
    }

    /// With a parameter.
    pub fn with(mut self, name: &'a str, value: impl Into<String>) -> Ask<'a> {
        self.query.push((name, value.into()));
        self
    }

    /// With a body.
    pub fn sending(mut self, body: Value) -> Ask<'a> {
        self.body = Some(body);
        self
    }

    fn target(&self) -> String {
        let mut target = self.path.clone();
        if !self.query.is_empty() {
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.extend_pairs(&self.query);
            target.push('?');
            target.push_str(&query.finish());
        }
        target
    }
}

/// A word as a part of a path.
pub fn part(word: &str) -> String {
    let encoded: String = form_urlencoded::byte_serialize(word.as_bytes()).collect();
    // In a path, a plus is a plus.
    encoded.replace('+', "%20")
}

/// What a server tells of a failure.
#[derive(Debug, Deserialize)]
struct Problem {
    class: Class,
    detail: String,
    #[serde(default)]
    causes: Vec<String>,
    #[serde(default)]
    hint: Option<String>,
}

impl Server {
    /// One that is asked later.
    ///
    /// # Errors
    /// [`Class::Usage`] for a host, a token or certificates that cannot be.
    pub fn of(host: &Host) -> Result<Server, Failure> {
        let way = host.way()?;
        let token = host.token()?.map(|token| {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {token}")).map_err(|e| Failure::from_error(Class::Usage, &e))?;
            value.set_sensitive(true);
            Ok::<_, Failure>(value)
        });
        let tls = match &way {
            Way::Socket(_) => None,
            Way::Tls { host: name, .. } => {
                let wrong = |e: &(dyn std::error::Error + 'static)| Failure::from_error(Class::Usage, e);
                let name = ServerName::try_from(name.clone()).map_err(|e| wrong(&e))?;
                Some((TlsConnector::from(Arc::new(config(host)?)), name))
            }
        };
        Ok(Server {
            way,
            token: token.transpose()?,
            tls,
        })
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        let failed = |to: String, e: io::Error| {
            Failure::from_error(Class::Fetch, &e)
                .context(format!("there is no connection to {to}"))
                .hint("is 'zmachine serve' running there?")
        };
        match (&self.way, &self.tls) {
            (Way::Socket(path), _) => {
                let stream = UnixStream::connect(path).await;
                Ok(Box::new(stream.map_err(|e| failed(path.display().to_string(), e))?))
            }
            (Way::Tls { host, port }, Some((connector, name))) => {
                let to = || format!("{host}:{port}");
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|e| failed(to(), e))?;
                let _ = stream.set_nodelay(true);
                let stream = connector.connect(name.clone(), stream).await.map_err(|e| {
                    Failure::from_error(Class::Fetch, &e)
                        .context(format!("there is no safe connection to {}", to()))
                        .hint("--ca-file names the certificate that the host's own is checked against")
                })?;
                Ok(Box::new(stream))
            }
            (Way::Tls { .. }, None) => Err(Failure::new(Class::Failed, "there is no TLS")),
        }
    }

    /// What the server takes for its own name.
    fn host(&self) -> String {
        match &self.way {
            Way::Socket(_) => "zmachine".to_owned(),
            Way::Tls { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Way::Tls { host, port } => format!("{host}:{port}"),
        }
    }

    /// Asks, and gives the answer as soon as it begins.
    ///
    /// # Errors
    /// [`Class::Fetch`] without an answer; the server's own failure.
    pub async fn open(&self, ask: &Ask<'_>) -> Result<Response<Incoming>, Failure> {
        let (body, kind) = match &ask.body {
            Some(document) => (Bytes::from(document.to_string()), Some("application/json")),
            None => (Bytes::new(), None),
        };
        let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
        self.sending(ask, body, kind).await
    }

    /// Asks with a body of a type.
    ///
    /// # Errors
    /// As [`Server::open`].
    pub(crate) async fn sending(
        &self,
        ask: &Ask<'_>,
        body: UnsyncBoxBody<Bytes, io::Error>,
        kind: Option<&'static str>,
    ) -> Result<Response<Incoming>, Failure> {
        let broken = |e: &(dyn std::error::Error + 'static)| {
            Failure::from_error(Class::Fetch, e).context("the connection to the host broke off")
        };
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(ask.method)
            .uri(ask.target())
            .header(HOST, self.host())
            .header(ACCEPT, "*/*");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request.body(body).map_err(|e| Failure::from_error(Class::Usage, &e))?;
        let answer = sender.send_request(request).await.map_err(|e| broken(&e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), PROBLEM_BYTES).collect().await;
        let bytes = bytes.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Err(failure(status, &bytes))
    }

    /// Asks, and reads the whole answer as JSON; `null` for one without a body.
    ///
    /// # Errors
    /// As [`Server::open`]; [`Class::Fetch`] for an answer that is none.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Value, Failure> {
        document(self.open(ask).await?).await
    }

    /// Opens a WebSocket.
    ///
    /// # Errors
    /// As [`Server::open`].
    pub async fn socket(&self, ask: &Ask<'_>) -> Result<Socket, Failure> {
        let failed = |e: &(dyn std::error::Error + 'static)| {
            Failure::from_error(Class::Fetch, e).context("the host opens no WebSocket")
        };
        let url = format!("ws://{}{}", self.host(), ask.target());
        let mut request = url.into_client_request().map_err(|e| failed(&e))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        let stream = self.connect().await?;
        match tokio_tungstenite::client_async(request, stream).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(answer)) => {
                Err(failure(answer.status(), answer.body().as_deref().unwrap_or_default()))
            }
            Err(error) => Err(failed(&error)),
        }
    }
}

/// The whole answer as JSON; `null` for one without a body.
pub(crate) async fn document(answer: Response<Incoming>) -> Result<Value, Failure> {
    let wrong = |why: String| Failure::new(Class::Fetch, why).context("the answer of the host cannot be read");
    let bytes = Limited::new(answer.into_body(), ANSWER_BYTES)
        .collect()
        .await
        .map_err(|e| wrong(e.to_string()))?;
    let bytes = bytes.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|e| wrong(e.to_string()))
}

/// A failure of the server, as it told it.
fn failure(status: hyper::StatusCode, body: &[u8]) -> Failure {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Failure {
            class: problem.class,
            message: problem.detail,
            causes: problem.causes,
            hint: problem.hint,
            settings: Box::default(),
        },
        Err(_) => Failure::new(Class::Failed, format!("the host answered {status}"))
            .hint("is it a server of 'zmachine serve'?"),
    }
}

fn config(host: &Host) -> Result<ClientConfig, Failure> {
    let wrong = |e: &(dyn std::error::Error + 'static)| Failure::from_error(Class::Usage, e);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong(&e))?;
    let Some(path) = &host.ca_file else {
        return Ok(builder
            .with_platform_verifier()
            .map_err(|e| wrong(&e))?
            .with_no_client_auth());
    };
    let named = |failure: Failure| failure.context(format!("{} cannot be used", path.display()));
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| named(wrong(&e)))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|e| named(wrong(&e)))?;
    }
    if roots.is_empty() {
        return Err(named(Failure::new(Class::Usage, "there is no certificate in it")));
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_path_and_parameters_are_escaped() {
        let ask = Ask::new("GET", format!("/v1/machines/{}", part("a/b c+d")))
            .with("command", "x y&z")
            .with("command", "é");
        assert_eq!(
            ask.target(),
            "/v1/machines/a%2Fb%20c%2Bd?command=x+y%26z&command=%C3%A9"
        );
    }

    #[test]
    fn a_failure_of_the_server_keeps_its_class_and_hint() {
        let body =
            br#"{"type":"about:blank","class":"not_found","detail":"none","causes":["why"],"hint":"look","text":""}"#;
        let told = failure(hyper::StatusCode::NOT_FOUND, body);
        assert_eq!(
            (told.class, told.message.as_str(), told.hint.as_deref()),
            (Class::NotFound, "none", Some("look"))
        );
        assert!(
            failure(hyper::StatusCode::BAD_GATEWAY, b"<html>")
                .message
                .contains("502")
        );
    }
}
