//! The byte stream to the guest's agent over the hybrid vsock: the guest calls a port of its host, and the hypervisor connects
//! it to the unix socket of that port, which is ours and listens from before the guest's first instruction.
//!
//! The guest calls and not we: a call from the host is refused until somebody listens in the guest, so it would have to be
//! tried again and again while the guest boots.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::vm::Hint;

/// The port that the agent calls.
pub const AGENT_PORT: u32 = 1024;

/// Pause after each call: any program of the guest may call, as often as it likes.
const PAUSE: Duration = Duration::from_millis(200);

/// Listens at `path`, for this user alone.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Takes the first call, which PID 1 makes before it starts anything else, and no other.
pub(super) fn expect_one(listener: UnixListener) -> (oneshot::Receiver<UnixStream>, JoinHandle<()>) {
    let (sender, receiver) = oneshot::channel();
    let task = tokio::spawn(async move {
        if let Some(stream) = accept(&listener).await {
            let _ = sender.send(stream); // whoever wanted it may have gone
        }
    });
    (receiver, task)
}

/// Takes every call: the agent of a whole operating system comes and goes.
pub(super) fn expect_many(listener: UnixListener, hints: mpsc::Sender<Hint>) -> JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(stream) = accept(&listener).await {
            if hints.send(Hint::AgentCalled(stream)).await.is_err() {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// The next call; `None` when the socket cannot be used any more.
async fn accept(listener: &UnixListener) -> Option<UnixStream> {
    for _ in 0..100 {
        match listener.accept().await {
            Ok((stream, _)) => return Some(stream),
            // No descriptors, a caller that has gone: it may get better.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    None
}
