//! The serial console: the one connection that the hypervisor has for it, kept over the guest's restarts.
//!
//! A restart of the guest ends the connection, and a second connection would take the first one's bytes: so one task holds
//! it, and the rest of the program has the other end of a socket pair, which lasts as long as the machine.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::folder::{self, Folder};
use super::vm::Hint;

/// Pauses between two tries to connect: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// Connects to the console whose socket is in `folder`, and passes its bytes on until the machine is `over`.
///
/// # Errors
/// When nobody listens there: that is the case only before `vm.create`.
pub(super) async fn relay(
    folder: Arc<Folder>,
    hints: mpsc::Sender<Hint>,
    over: watch::Receiver<bool>,
) -> io::Result<(UnixStream, JoinHandle<()>)> {
    let first = folder::connect(&folder.reached().serial).await?;
    let (ours, theirs) = UnixStream::pair()?;
    let task = tokio::spawn(keep(first, theirs, folder, hints, over));
    Ok((ours, task))
}

async fn keep(
    mut serial: UnixStream,
    mut console: UnixStream,
    folder: Arc<Folder>,
    hints: mpsc::Sender<Hint>,
    mut over: watch::Receiver<bool>,
) {
    let socket = folder.reached().serial;
    loop {
        if !copy(&mut serial, &mut console).await || *over.borrow() {
            return;
        }
        // The guest restarts, or has ended.
        let _ = hints.try_send(Hint::ConsoleLost); // a full queue has others to look at
        serial = tokio::select! {
            connected = connect(&socket) => connected,
            _ = over.wait_for(|over| *over) => return,
        };
    }
}

/// Copies in both directions until the hypervisor's side ends; whether it was that side.
async fn copy(serial: &mut UnixStream, console: &mut UnixStream) -> bool {
    let (mut from_guest, mut to_guest) = serial.split();
    let (mut from_user, mut to_user) = console.split();
    let (mut output, mut input) = (vec![0; 8192], vec![0; 1024]);
    let mut has_user = true;
    loop {
        tokio::select! {
            read = from_guest.read(&mut output) => match read {
                Ok(n @ 1..) => if to_user.write_all(&output[..n]).await.is_err() {
                    // Nobody reads it any more. The guest must not be held up by that.
                    return false;
                },
                _ => return true,
            },
            read = from_user.read(&mut input), if has_user => match read {
                Ok(n @ 1..) => if to_guest.write_all(&input[..n]).await.is_err() {
                    return true;
                },
                _ => has_user = false,
            },
        }
    }
}

async fn connect(socket: &Path) -> UnixStream {
    let mut pause = PAUSES.0;
    loop {
        if let Ok(stream) = folder::connect(socket).await {
            return stream;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_console_lasts_over_a_restart_of_the_guest() {
        let run = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::make(run.path(), None).unwrap());
        let listener = UnixListener::bind(folder.reached().serial).unwrap();
        let (hints, mut hinted) = mpsc::channel(4);
        let (end, over) = watch::channel(false);
        let (mut console, task) = relay(folder, hints, over).await.unwrap();
        let mut read = async |wanted: &str| {
            let mut got = vec![0; wanted.len()];
            console.read_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8(got).unwrap(), wanted);
        };
        let (mut first, _) = listener.accept().await.unwrap();
        first.write_all(b"first life\n").await.unwrap();
        read("first life\n").await;
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        assert!(matches!(hinted.recv().await, Some(Hint::ConsoleLost)));
        second.write_all(b"second life\n").await.unwrap();
        read("second life\n").await;
        end.send(true).unwrap();
        drop(second);
        task.await.unwrap();
        assert_eq!(
            console.read(&mut [0; 8]).await.unwrap(),
            0,
            "the console ends with the machine"
        );
    }

    #[tokio::test]
    async fn what_the_user_types_reaches_the_guest() {
        let run = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::make(run.path(), None).unwrap());
        let listener = UnixListener::bind(folder.reached().serial).unwrap();
        let (_end, over) = watch::channel(false);
        let (mut console, _task) = relay(folder, mpsc::channel(1).0, over).await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        console.write_all(b"q").await.unwrap();
        let mut got = [0; 1];
        guest.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"q");
    }
}
