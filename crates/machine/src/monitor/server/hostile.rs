//! Whatever comes over the control socket or from a hostile guest: no panic, no hang. `ZMACHINE_FUZZ_SECONDS` makes it longer.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use zmachine_agent_protocol::{ExitStatus, Frame, Input, Process, Reply as AgentReply, Request as AgentRequest};
use zmachine_testkit::Mutator;

use super::*;
use crate::monitor::{console, entry};

/// No single input may take longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn process() -> Process {
    Process {
        args: vec!["sh".into()],
        env: vec![("A".into(), "b".into())],
        cwd: None,
        user: None,
        terminal: None,
        stdin: true,
        init: false,
    }
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::to_bytes).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().expect("a runtime")
}

#[test]
fn whatever_comes_over_the_control_socket_is_answered_or_dropped() {
    let requests = [
        Request::Attach {
            stdin: true,
            owner: false,
        },
        Request::Console { stdin: true },
        Request::Exec(process()),
        Request::Stop { grace_ms: Some(1) },
        Request::Signal(15),
        Request::Capacity,
        Request::GrowVolume {
            name: "v".into(),
            size_bytes: u64::MAX,
        },
    ];
    let input = [
        Frame::Stdin(b"ls\n".to_vec()),
        Frame::message(&Input::Signal(2)),
        Frame::StdinEof,
    ];
    let seeds = requests
        .iter()
        .map(|request| bytes(&[&[Frame::message(request)], &input[..]].concat()))
        .collect();
    runtime().block_on(async {
        let (events, mut inbox) = mpsc::channel(64);
        let (entry, _waiting) = entry::new();
        let (console, _console_waiting) = console::new();
        let shared = Shared {
            attachable: Attachable::Entrypoint(entry),
            console,
            relays: Default::default(),
            paused: watch::channel(false).1,
            session: watch::channel(None).1,
            events,
            exec_base: Arc::new(process()),
        };
        // The monitor's loop, which does nothing and says so.
        tokio::spawn(async move {
            while let Some(event) = inbox.recv().await {
                if let Event::Command(_, answer) = event {
                    let _ = answer.send(Reply::Done);
                }
            }
        });
        let mut inputs = Mutator::new(seeds, 8);
        let (end, mut count) = (Instant::now() + Mutator::time(), 0);
        while Instant::now() < end {
            let (mut client, served) = UnixStream::pair().expect("a pair");
            let mut serving = tokio::spawn(connection(served, shared.clone()));
            // It may be over before it has read everything.
            let _ = client.write_all(&inputs.input()).await;
            drop(client.shutdown().await);
            let mut answer = vec![0; 4096];
            let read = tokio::time::timeout(Duration::from_millis(2), client.read(&mut answer));
            drop(read.await);
            drop(client);
            // A client that follows something is let go when it is written to next; the others end at once.
            match tokio::time::timeout(Duration::from_millis(2), &mut serving).await {
                Ok(ended) => ended.expect("no panic"),
                Err(_) => serving.abort(),
            }
            count += 1;
        }
        eprintln!("{count} clients");
    });
}

#[test]
fn whatever_a_hostile_guest_says_ends_a_request_and_nothing_else() {
    // What the host's side is answered: headers of yamux (RFC-like: version, type, flags, stream, length) and our frames.
    let header = |kind: u8, flags: u16, stream: u32, length: u32| {
        let mut header = vec![0, kind];
        header.extend(flags.to_be_bytes());
        header.extend(stream.to_be_bytes());
        header.extend(length.to_be_bytes());
        header
    };
    let reply = bytes(&[
        Frame::message(&AgentReply::Started { pid: 7 }),
        Frame::Stdout(b"hello".to_vec()),
        Frame::message(&AgentReply::Exited(ExitStatus::Code(0))),
    ]);
    let data = [header(0, 2, 1, reply.len() as u32), reply].concat();
    let seeds = vec![
        data.clone(),
        [header(1, 2, 1, 1 << 20), data.clone()].concat(),
        [header(2, 1, 0, 5), data.clone(), header(0, 4, 1, 0)].concat(),
        [header(1, 1, 2, 0), header(0, 0, 2, 4), b"open".to_vec(), data].concat(),
        header(3, 0, 0, 0),
    ];
    runtime().block_on(async {
        let mut inputs = Mutator::new(seeds, 8);
        let (end, mut count) = (Instant::now() + Mutator::time(), 0);
        while Instant::now() < end {
            let (ours, mut guest) = UnixStream::pair().expect("a pair");
            let session = Session::start(std::future::ready(Ok(ours)));
            let asked = async {
                let mut stream = session.open(&AgentRequest::Exec(process())).await?;
                while stream.reader.next().await?.is_some() {}
                Ok::<(), crate::monitor::session::SessionError>(())
            };
            let says = async {
                let _ = guest.write_all(&inputs.input()).await;
                let _ = guest.shutdown().await;
                // A guest that never reads must not hold the host up.
            };
            let both = tokio::time::timeout(PATIENCE, async { tokio::join!(asked, says) });
            drop(both.await.expect("the request ends with the guest's channel"));
            count += 1;
        }
        eprintln!("{count} guests");
    });
}
