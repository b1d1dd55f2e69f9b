//! The service on the wire: gRPC by tonic, with the methods by hand, because code for them would want a compiler of its own.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use prost::Message;
use tonic::body::Body;
use tonic::codegen::{Service, StdError};
use tonic::server::{Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::service::Snapshots;
use crate::table::Kind;
use crate::wire;

/// The service of all connections.
#[derive(Clone)]
pub(crate) struct Server(pub(crate) Arc<Snapshots>);

impl NamedService for Server {
    const NAME: &'static str = wire::SERVICE;
}

/// One call: what is done with its request, in a thread, because it may take long.
struct Call<Q, A>(Arc<Snapshots>, fn(&Snapshots, Q) -> Result<A, Status>);

impl<Q: Send + 'static, A: Send + 'static> Call<Q, A> {
    fn answer(&self, request: Request<Q>) -> BoxFuture<'static, Result<A, Status>> {
        let (snapshots, work) = (Arc::clone(&self.0), self.1);
        async move {
            let done = tokio::task::spawn_blocking(move || work(&snapshots, request.into_inner())).await;
            let done = done.map_err(|error| Status::internal(error.to_string())).flatten();
            done.inspect_err(|status| match status.code() {
                // How containerd is told that a layer is here, and what it asks for to see what is not.
                tonic::Code::AlreadyExists | tonic::Code::NotFound => {}
                _ => eprintln!("{}", status.message()),
            })
        }
        .boxed()
    }
}

impl<Q: Send + 'static, A: Send + 'static> UnaryService<Q> for Call<Q, A> {
    type Response = A;
    type Future = BoxFuture<'static, Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        self.answer(request).map(|answer| answer.map(Response::new)).boxed()
    }
}

/// The same with an answer of several messages.
struct Listing(Call<wire::ListRequest, Vec<wire::ListResponse>>);

impl ServerStreamingService<wire::ListRequest> for Listing {
    type Response = wire::ListResponse;
    type ResponseStream = BoxStream<'static, Result<wire::ListResponse, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<wire::ListRequest>) -> Self::Future {
        let stream = |pieces: Vec<wire::ListResponse>| Response::new(stream::iter(pieces.into_iter().map(Ok)).boxed());
        self.0.answer(request).map(move |answer| answer.map(stream)).boxed()
    }
}

impl Server {
    async fn unary<Q, A>(
        self,
        request: http::Request<Body>,
        work: fn(&Snapshots, Q) -> Result<A, Status>,
    ) -> http::Response<Body>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let codec = ProstCodec::<A, Q>::default();
        Grpc::new(codec).unary(Call(self.0, work), request).await
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().to_owned();
        let method = path
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(wire::SERVICE)?.strip_prefix('/'));
        match method {
            Some("Prepare") => self.unary(request, |all, asked| all.prepare(asked, Kind::Active)).await,
            Some("View") => self.unary(request, |all, asked| all.prepare(asked, Kind::View)).await,
            Some("Mounts") => {
                self.unary(request, |all, asked: wire::KeyRequest| all.mounts(&asked.key))
                    .await
            }
            Some("Commit") => {
                self.unary(request, |all, asked: wire::CommitRequest| all.commit(&asked))
                    .await
            }
            Some("Remove") => {
                self.unary(request, |all, asked: wire::KeyRequest| all.remove(&asked.key))
                    .await
            }
            Some("Stat") => {
                self.unary(request, |all, asked: wire::KeyRequest| all.stat(&asked.key))
                    .await
            }
            Some("Update") => self.unary(request, Snapshots::update).await,
            Some("Usage") => {
                self.unary(request, |all, asked: wire::KeyRequest| all.usage(&asked.key))
                    .await
            }
            Some("List") => {
                let listing = Listing(Call(self.0, |all, asked| all.list(&asked.filters)));
                let codec = ProstCodec::<wire::ListResponse, wire::ListRequest>::default();
                Grpc::new(codec).server_streaming(listing, request).await
            }
            // Nothing is left over that a later look would find.
            Some("Cleanup") => self.unary(request, |_, _: wire::Empty| Ok(wire::Empty {})).await,
            _ => Status::unimplemented(format!("there is no {path}")).into_http(),
        }
    }
}

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.clone().answer(request).map(Ok).boxed()
    }
}

/// Serves on `listener` until `end`.
///
/// # Errors
/// When it breaks.
pub(crate) async fn serve(
    server: Server,
    listener: tokio::net::UnixListener,
    end: impl Future<Output = ()>,
) -> Result<(), StdError> {
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let serving = tonic::transport::Server::builder().serve_with_incoming_shutdown(server, incoming, end);
    Ok(serving.await?)
}
