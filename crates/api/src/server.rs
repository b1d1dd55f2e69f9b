//! Connections: accepted, limited in number and time, and their requests checked, carried out and recorded.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use zmachine_spec::Failure;

use crate::app::{App, locked};
use crate::guard::{Denial, require};
use crate::http::Answer;
use crate::native::problem::Problem;
use crate::place::Place;
use crate::{docker, native};
use zmachine_access::audit::Deed;
use zmachine_access::cut::Cut;
use zmachine_access::tls::Identity;
use zmachine_access::tokens::Token;
use zmachine_access::{Caller, Door};

/// Connections of a Unix socket at a time. A client that follows something has one for each thing; those that are too many wait to be
/// accepted.
const CONNECTIONS: usize = 1024;

/// Connections by TCP at a time: places of their own, so that nobody from elsewhere takes those of this host.
const NETWORK_CONNECTIONS: usize = 512;

/// Of them, those of one address.
const ADDRESS_CONNECTIONS: usize = 64;

/// The most that is read ahead of a request, in bytes: its head with all headers.
const HEAD_BYTES: usize = 64 << 10;

/// How long a client may take for the head of a request, or between two of them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The same for clients from elsewhere.
const NETWORK_HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How often is looked whether the token of a connection is still valid.
const RECHECK: Duration = Duration::from_secs(2);

/// What a connection holds of what there is only so much of.
struct Places {
    _permit: OwnedSemaphorePermit,
    _address: Option<AddressPlace>,
}

/// Which API is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Docker's.
    Docker,
    /// The REST API of our own.
    Native,
}

/// What a connection is.
#[derive(Debug)]
struct Connection {
    app: Arc<App>,
    door: Door,
    /// `None` where the path decides.
    speaks: Option<Speaks>,
    place: Place,
    /// The token that came last.
    token: Mutex<Option<Token>>,
}

/// Serves an API on a Unix socket, until the task is dropped.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(app: Arc<App>, listener: UnixListener, speaks: Speaks) -> Result<(), Failure> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let Ok((stream, _)) = listener.accept().await else {
            out_of_descriptors().await;
            continue;
        };
        let connection = Connection {
            app: Arc::clone(&app),
            door: Door::Local {
                uid: stream.peer_cred().ok().map(|peer| peer.uid()),
            },
            speaks: Some(speaks),
            place: Place::taken(Places {
                _permit: permit,
                _address: None,
            }),
            token: Mutex::default(),
        };
        tokio::spawn(converse(Arc::new(connection), stream, HEAD_TIMEOUT));
    }
}

/// Serves both APIs by TCP with TLS, until the task is dropped. What is below `/v1/` is the REST API, all else is Docker's.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve_network(app: Arc<App>, listener: TcpListener, identity: Identity) -> Result<(), Failure> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(NETWORK_CONNECTIONS));
    let addresses = Arc::new(Mutex::new(HashMap::new()));
    loop {
        let Ok(permit) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let Ok((stream, peer)) = listener.accept().await else {
            out_of_descriptors().await;
            continue;
        };
        let Some(address) = AddressPlace::take(&addresses, peer.ip()) else {
            continue;
        };
        // A client that is gone without a word holds no place for ever.
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let _ = rustix::net::sockopt::set_tcp_keepidle(&stream, Duration::from_secs(60));
        let _ = stream.set_nodelay(true);
        let (app, acceptor) = (Arc::clone(&app), identity.acceptor());
        tokio::spawn(async move {
            let place = Place::taken(Places {
                _permit: permit,
                _address: Some(address),
            });
            let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
                return;
            };
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let connection = Arc::new(Connection {
                app,
                door: Door::Network { peer, name },
                speaks: None,
                place,
                token: Mutex::default(),
            });
            let end = CancellationToken::new();
            tokio::spawn(watch(Arc::clone(&connection), end.clone()));
            converse(connection, Cut::new(stream, end), NETWORK_HEAD_TIMEOUT).await;
        });
    }
}

/// Ends a connection when its token is not valid any more, whatever it is used for.
async fn watch(connection: Arc<Connection>, end: CancellationToken) {
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(RECHECK) => {}
        }
        let token = locked(&connection.token).clone();
        if token.is_some_and(|token| !connection.app.guard.tokens.is_still_valid(&token)) {
            end.cancel();
        }
    }
}

/// Gives those that are in use time to end.
async fn out_of_descriptors() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

async fn converse<S>(connection: Arc<Connection>, stream: S, head_timeout: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        let connection = Arc::clone(&connection);
        request.extensions_mut().insert(connection.place.clone());
        async move { Ok::<_, Infallible>(answer(&connection, request).await) }
    });
    // What a client does to its connection is nobody else's matter.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

async fn answer(connection: &Connection, request: Request<Incoming>) -> Answer {
    let begun = Instant::now();
    let (app, door) = (&connection.app, &connection.door);
    let method = request.method().to_string();
    let path = request.uri().path().to_owned();
    let speaks = connection.speaks.unwrap_or(match path.starts_with("/v1/") {
        true => Speaks::Native,
        false => Speaks::Docker,
    });
    let (role, is_change) = match speaks {
        Speaks::Docker => (docker::role(&method, &path), docker::is_change(&method, &path)),
        Speaks::Native => (native::role(&method, &path), native::is_change(&method, &path)),
    };
    let admitted = app.guard.caller(door, request.uri(), request.headers());
    let caller = match admitted {
        Ok(caller) => caller,
        Err(denial) => {
            let status = denial.refusal.status;
            // How often that may happen is limited, but for those whom the limit turns away.
            if status != hyper::StatusCode::TOO_MANY_REQUESTS {
                app.audit.write(&Deed {
                    caller: None,
                    door,
                    method: &method,
                    path: &path,
                    status: Some(status.as_u16()),
                    took: begun.elapsed(),
                });
            }
            return denied(speaks, denial);
        }
    };
    locked(&connection.token).clone_from(&caller.token);
    let mut recording = is_change.then(|| Recording {
        app,
        door,
        caller: &caller,
        method: &method,
        path: &path,
        status: None,
        begun,
    });
    let answer = match (require(&caller, role), speaks) {
        (Err(refusal), _) => denied(speaks, refusal.into()),
        (Ok(()), Speaks::Docker) => docker::answer(app, request).await,
        (Ok(()), Speaks::Native) => native::answer(app, request).await,
    };
    if let Some(recording) = &mut recording {
        recording.status = Some(answer.status().as_u16());
    }
    answer
}

/// Records a change at its end, also when its client has left before: the change goes on without it.
struct Recording<'a> {
    app: &'a App,
    door: &'a Door,
    caller: &'a Caller,
    method: &'a str,
    path: &'a str,
    status: Option<u16>,
    begun: Instant,
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.app.audit.write(&Deed {
            caller: Some(self.caller),
            door: self.door,
            method: self.method,
            path: self.path,
            status: self.status,
            took: self.begun.elapsed(),
        });
    }
}

fn denied(speaks: Speaks, denial: Denial) -> Answer {
    let mut answer = match speaks {
        Speaks::Docker => docker::refused(&denial.refusal),
        Speaks::Native => Problem::from(denial.refusal).answer(),
    };
    let is_unknown = answer.status() == hyper::StatusCode::UNAUTHORIZED;
    let headers = answer.headers_mut();
    if is_unknown {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"zmachine\""));
    }
    if let Some(wait) = denial.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    answer
}

/// A place among the connections of an address.
#[derive(Debug)]
struct AddressPlace {
    all: Arc<Mutex<HashMap<IpAddr, usize>>>,
    address: IpAddr,
}

impl AddressPlace {
    fn take(all: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<AddressPlace> {
        let mut counts = locked(all);
        let count = counts.entry(address).or_default();
        if *count >= ADDRESS_CONNECTIONS {
            return None;
        }
        *count += 1;
        Some(AddressPlace {
            all: Arc::clone(all),
            address,
        })
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = locked(&self.all);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}
