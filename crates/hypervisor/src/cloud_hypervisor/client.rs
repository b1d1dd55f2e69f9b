//! The API of a running Cloud Hypervisor: HTTP on its unix socket, descriptors beside a request.
//!
//! # Invariants
//! * One request at a time: the API has one thread, and a request that waits (for a vhost-user socket that nobody serves,
//!   60 s) makes all others wait. So every request has a time limit, and whether the process lives is never asked here.
//! * Answers are judged by class (done, no such thing, refused), not by their exact status: later versions answer
//!   differently than v53.
//! * Numbers are 64 bits wide and unsigned where they are counters: one that was never set is `u64::MAX`.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::ControlError;

use super::folder::{self, Folder};
use super::http::{Answer, AnswerDecoder, HttpError, request};

/// Descriptors that go with one request, at most.
const MAX_FDS: usize = 8;
/// Causes of a refusal that are kept, and characters of each.
const MAX_CAUSES: usize = 16;
const MAX_CAUSE_CHARS: usize = 1000;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    /// Nobody listens, or the connection ended before the answer.
    #[error("the hypervisor is gone")]
    Gone,
    /// It said nothing in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// It said no. Causes are outermost first.
    #[error("{}", causes.join(": "))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        causes: Vec<String>,
    },
    /// It said something that is no answer.
    #[error(transparent)]
    Garbled(#[from] HttpError),
    /// The socket broke.
    #[error("the API's socket broke")]
    Io(#[source] io::Error),
}

impl ApiError {
    /// The same as an error of the order `command`.
    pub(crate) fn of(self, command: &str) -> ControlError {
        let command = command.to_owned();
        match self {
            Self::Gone => ControlError::Gone,
            Self::Silent(patience) => ControlError::Silent { command, patience },
            Self::Refused { causes, .. } => ControlError::Refused {
                command,
                reason: causes.join(": "),
            },
            Self::Garbled(error) => ControlError::Garbled {
                line: error.to_string(),
            },
            Self::Io(error) => ControlError::Io(error),
        }
    }
}

/// The API at one socket. A connection is made for each request.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    /// What the socket is in, which is there as long as this.
    _folder: Option<Arc<Folder>>,
}

impl Client {
    /// The API that listens, or will listen, on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            _folder: None,
        }
    }

    /// The API of the hypervisor whose sockets are in `folder`.
    pub(super) fn in_folder(folder: Arc<Folder>) -> Self {
        Self {
            socket: folder.reached().api,
            _folder: Some(folder),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks for `route`.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn get(&self, route: &str, patience: Duration) -> Result<Value, ApiError> {
        self.call(request("GET", route, None), &[], patience).await
    }

    /// Orders `route`, which takes no body.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn put(&self, route: &str, patience: Duration) -> Result<Value, ApiError> {
        self.call(request("PUT", route, None), &[], patience).await
    }

    /// Orders `route` with `body`, and passes `fds` along.
    ///
    /// # Errors
    /// [`ApiError`].
    pub async fn put_with(
        &self,
        route: &str,
        body: &(impl Serialize + Sync),
        fds: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Value, ApiError> {
        let body = serde_json::to_vec(body).map_err(|e| ApiError::Io(e.into()))?;
        self.call(request("PUT", route, Some(&body)), fds, patience).await
    }

    async fn call(&self, request: Vec<u8>, fds: &[BorrowedFd<'_>], patience: Duration) -> Result<Value, ApiError> {
        match tokio::time::timeout(patience, self.exchange(&request, fds)).await {
            Ok(answer) => understand(&answer?),
            Err(_) => Err(ApiError::Silent(patience)),
        }
    }

    async fn exchange(&self, request: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Answer, ApiError> {
        let mut stream = folder::connect(&self.socket).await.map_err(gone)?;
        let sent = send_with(&stream, request, fds).await.map_err(gone)?;
        stream.write_all(&request[sent..]).await.map_err(gone)?;
        let mut decoder = AnswerDecoder::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let n = stream.read(&mut buffer).await.map_err(gone)?;
            if n == 0 {
                return Err(ApiError::Gone);
            }
            if let Some(answer) = decoder.push(&buffer[..n])? {
                return Ok(answer);
            }
        }
    }
}

/// What an answer of the API means: its body as JSON, `null` when there is none.
///
/// # Errors
/// [`ApiError::Refused`] with the causes it names, or [`ApiError::Garbled`] when a good answer is no JSON.
pub fn understand(answer: &Answer) -> Result<Value, ApiError> {
    if !(200..300).contains(&answer.status) {
        return Err(ApiError::Refused {
            status: answer.status,
            causes: causes(answer),
        });
    }
    if answer.body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer.body).map_err(|e| ApiError::Garbled(HttpError::Syntax(e.to_string())))
}

/// The causes in a refusal: an array of texts, or whatever else was said.
fn causes(answer: &Answer) -> Vec<String> {
    let shortened = |text: &str| text.chars().take(MAX_CAUSE_CHARS).collect::<String>();
    let output: Vec<String> = match serde_json::from_slice(&answer.body) {
        Ok(Value::Array(items)) => items
            .iter()
            .filter_map(Value::as_str)
            .take(MAX_CAUSES)
            .map(shortened)
            .collect(),
        Ok(Value::String(text)) => vec![shortened(&text)],
        _ => vec![shortened(&String::from_utf8_lossy(&answer.body))],
    };
    match output.iter().any(|cause| !cause.is_empty()) {
        true => output,
        false => vec![format!("status {}", answer.status)],
    }
}

/// Sends the beginning of `bytes`, with `fds` on it; how much that was.
async fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.is_empty() {
        return Ok(0);
    }
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            let sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
            Ok(sent)
        })
        .await
}

/// A peer that is gone shows as one of these, depending on what was under way.
fn gone(error: io::Error) -> ApiError {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::BrokenPipe | Kind::ConnectionReset | Kind::ConnectionRefused | Kind::NotFound => ApiError::Gone,
        _ => ApiError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> String {
        let body = body.as_bytes().to_vec();
        understand(&Answer { status, body }).unwrap_err().to_string()
    }

    #[test]
    fn a_refusal_keeps_its_whole_chain_of_causes() {
        let output = refused(
            500,
            r#"["Error from API","The VM could not boot","VM config is missing"]"#,
        );
        assert_eq!(output, "Error from API: The VM could not boot: VM config is missing");
    }

    #[test]
    fn a_refusal_in_other_words_is_shown_as_it_is() {
        assert_eq!(refused(500, "out of cheese"), "out of cheese");
        assert_eq!(refused(404, ""), "status 404");
        assert_eq!(refused(500, "[]"), "status 500");
        assert_eq!(refused(409, "\"busy\""), "busy");
    }

    #[test]
    fn a_good_answer_that_is_no_json_is_not_believed() {
        let body = b"{".to_vec();
        assert!(matches!(
            understand(&Answer { status: 200, body }),
            Err(ApiError::Garbled(_))
        ));
    }
}
