//! Taking over a guest whose agent was somebody else's: what its channel still holds is thrown away, in both directions.
//!
//! See [`zmachine_agent_protocol::greeting`].

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zmachine_agent_protocol::greeting::{Finder, Greeting};

/// Between two greetings: the agent answers the first that it finds whole.
const PAUSE: Duration = Duration::from_millis(20);

/// Greets the agent until it answers; the stream is the connection's then.
///
/// # Errors
/// When the guest's end is gone.
pub(super) async fn take_over(mut stream: UnixStream) -> io::Result<UnixStream> {
    let mut nonce = [0; 16];
    zmachine_sys::file::fill_random(&mut nonce)?;
    let mut finder = Finder::default();
    loop {
        stream.write_all(&Greeting::Hello(nonce).to_bytes()).await?;
        let answered = until(&mut stream, &mut finder, Greeting::Hello(nonce));
        if let Ok(answered) = tokio::time::timeout(PAUSE, answered).await {
            answered?;
            break;
        }
    }
    stream.write_all(&Greeting::Begin(nonce).to_bytes()).await?;
    until(&mut stream, &mut finder, Greeting::Begin(nonce)).await?;
    Ok(stream)
}

/// Drops what comes until this greeting did. Nothing comes behind the last one before the host has spoken.
async fn until(stream: &mut UnixStream, finder: &mut Finder, wanted: Greeting) -> io::Result<()> {
    let mut piece = [0; 4096];
    loop {
        while let Some(greeting) = finder.next_greeting() {
            if greeting == wanted {
                return Ok(());
            }
        }
        match stream.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => finder.push(&piece[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_on_its_way_is_dropped_and_the_connection_begins_behind_the_last_greeting() {
        let (ours, mut guest) = UnixStream::pair().unwrap();
        guest
            .write_all(b"rest of an older connection zmachine take")
            .await
            .unwrap();
        let agent = async {
            let mut finder = Finder::default();
            let mut piece = [0; 64];
            loop {
                while let Some(greeting) = finder.next_greeting() {
                    guest.write_all(&greeting.to_bytes()).await.unwrap();
                    if matches!(greeting, Greeting::Begin(_)) {
                        return;
                    }
                }
                let count = guest.read(&mut piece).await.unwrap();
                finder.push(&piece[..count]);
            }
        };
        let (taken, ()) = tokio::join!(take_over(ours), agent);
        let mut taken = taken.unwrap();
        guest.write_all(b"first").await.unwrap();
        let mut first = [0; 5];
        taken.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
    }

    #[tokio::test]
    async fn a_guest_that_is_gone_is_an_error() {
        let (ours, guest) = UnixStream::pair().unwrap();
        drop(guest);
        assert!(take_over(ours).await.is_err());
    }
}
