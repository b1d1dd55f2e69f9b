//! Connections: accepted, served, and limited in number.

use std::convert::Infallible;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zmachine_spec::Failure;

use crate::app::App;
use crate::{docker, native};

/// Connections at a time. A client that follows something has one for each thing; those that are too many wait to be
/// accepted.
const CONNECTIONS: usize = 1024;

/// The most that is read ahead of a request, in bytes: its head with all headers.
const HEAD_BYTES: usize = 64 << 10;

/// A connection's place among all. It goes with a request, for whoever takes the connection over: it counts until that has ended.
#[derive(Debug, Clone)]
pub struct Place(#[allow(dead_code)] Arc<OwnedSemaphorePermit>);

/// Which API is spoken on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Docker's.
    Docker,
    /// The REST API of our own.
    Native,
}

/// Serves an API on a socket, until the task is dropped.
///
/// # Errors
/// When the socket cannot be used.
pub async fn serve(app: Arc<App>, listener: UnixListener, speaks: Speaks) -> Result<(), Failure> {
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Ok(());
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of descriptors, most likely: give those that are in use time to end.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let app = Arc::clone(&app);
        tokio::spawn(async move {
            let place = Place(Arc::new(place));
            let service = service_fn(move |mut request: Request<Incoming>| {
                let app = Arc::clone(&app);
                request.extensions_mut().insert(place.clone());
                async move {
                    Ok::<_, Infallible>(match speaks {
                        Speaks::Docker => docker::answer(&app, request).await,
                        Speaks::Native => native::answer(&app, request).await,
                    })
                }
            });
            // What a client does to its connection is nobody else's matter.
            let _ = http1::Builder::new()
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        });
    }
}
