//! Whatever comes over the control socket or from a hostile guest: no panic, no hang. `ZMACHINE_FUZZ_SECONDS` makes it longer.
//!
//! A hang is found wherever it is: a task that waits for ever by the deadline of its input, one that never lets go of its thread
//! by the thread beside it ([`watched`]).

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::{ExitStatus, Frame, Input, Process, Reply as AgentReply, Request as AgentRequest};
use zmachine_testkit::Mutator;

use super::*;
use crate::{console, entry};

/// No single input may take longer.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Clients that one machine has until it ends.
const CLIENTS: usize = 40;

fn process() -> Process {
    Process {
        args: vec!["sh".into()],
        env: vec![("A".into(), "b".into())],
        cwd: None,
        user: None,
        terminal: None,
        stdin: true,
        init: false,
        restrictions: None,
    }
}

fn bytes(frames: &[Frame]) -> Vec<u8> {
    frames.iter().flat_map(Frame::to_bytes).collect()
}

/// Runs `body` on a thread of its own, which sends one word for each input that it is done with.
fn watched<F: Future<Output = ()>>(body: impl FnOnce(Sender<()>) -> F + Send + 'static) {
    let (done, inputs) = channel();
    let thread = std::thread::spawn(|| {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().expect("a runtime").block_on(body(done));
    });
    loop {
        // Twice: who only waits is found by the body itself, which knows more to say.
        match inputs.recv_timeout(2 * TIMEOUT) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("an input is worked on for ever"),
        }
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
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
    watched(async move |done| {
        let (events, mut inbox) = mpsc::channel(64);
        // The monitor's loop, which does nothing and says so.
        tokio::spawn(async move {
            while let Some(event) = inbox.recv().await {
                if let Event::Command(_, answer) = event {
                    let _ = answer.send(Reply::Done);
                }
            }
        });
        let mut inputs = Mutator::new(seeds, 8);
        let (end, mut count, mut waited) = (Instant::now() + Mutator::time(), 0, 0);
        while Instant::now() < end {
            let (entry, entry_waiting) = entry::new();
            let (console, console_waiting) = console::new();
            let shared = Shared {
                attachable: Attachable::Entrypoint(entry),
                console,
                execs: super::super::execs::Execs::default(),
                relays: Default::default(),
                paused: watch::channel(false).1,
                session: watch::channel(None).1,
                events: events.clone(),
                exec_base: Arc::new(process()),
                activity: Default::default(),
            };
            let mut followers = Vec::new();
            for _ in 0..CLIENTS {
                let (mut client, served) = UnixStream::pair().expect("a pair");
                let mut serving = tokio::spawn(connection(served, shared.clone()));
                // It may be over before it has read everything.
                let _ = client.write_all(&inputs.input()).await;
                drop(client.shutdown().await);
                let mut answer = vec![0; 4096];
                let read = tokio::time::timeout(Duration::from_millis(2), client.read(&mut answer));
                drop(read.await);
                drop(client);
                match tokio::time::timeout(Duration::from_millis(2), &mut serving).await {
                    Ok(ended) => ended.expect("no panic"),
                    Err(_) => followers.push(serving),
                }
                count += 1;
                let _ = done.send(());
            }
            // A client that follows something is let go when it is written to next, and with the machine at the latest.
            drop((entry_waiting, console_waiting));
            waited += followers.len();
            for serving in followers {
                let ended = tokio::time::timeout(TIMEOUT, serving).await;
                ended
                    .expect("a client that is gone is let go with the machine")
                    .expect("no panic");
            }
        }
        eprintln!("{count} clients, {waited} of them until the end of the machine");
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
    watched(async move |done| {
        let mut inputs = Mutator::new(seeds, 8);
        let (end, mut count) = (Instant::now() + Mutator::time(), 0);
        while Instant::now() < end {
            let (ours, mut guest) = UnixStream::pair().expect("a pair");
            let session = Session::start(std::future::ready(Ok(ours)));
            let asked = async {
                let mut stream = session.open(&AgentRequest::Exec(process())).await?;
                while stream.reader.next().await?.is_some() {}
                Ok::<(), zmachine_agent_client::session::SessionError>(())
            };
            let says = async {
                let _ = guest.write_all(&inputs.input()).await;
                let _ = guest.shutdown().await;
                // A guest that never reads must not hold the host up.
            };
            let both = tokio::time::timeout(TIMEOUT, async { tokio::join!(asked, says) });
            drop(both.await.expect("the request ends with the guest's channel"));
            count += 1;
            let _ = done.send(());
        }
        eprintln!("{count} guests");
    });
}
