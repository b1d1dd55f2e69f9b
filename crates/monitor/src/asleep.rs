//! The time in which a machine is asleep: its monitor watches its control socket and its networks.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::net::UnixListener;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, watch};
use zmachine_agent_protocol::Process;
use zmachine_network::sleeper::{Meaning, Sleeper};
use zmachine_plan::Plan;
use zmachine_store::log::Source;

use super::context::{AbortOnDrop, Kept, Monitor};
use super::inbox::{Event, Inbox};
use super::streams::{Attachable, Shared};
use super::{console, entry, server};

/// The largest frame that a tap hands over: a packet of 64 KiB with its headers.
const FRAME: usize = 65_536 + 128;

/// How a sleep ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// Somebody came.
    Up,
    /// The machine is to end, as a user wants, or the host, and does not go on.
    Ended {
        /// By a user.
        by_user: bool,
    },
}

/// A tap of a machine that is asleep.
struct Watched {
    /// The same as `tap`. A tap is no pipe, but is read, and waited for, as one.
    frames: Receiver,
    tap: OwnedFd,
    sleeper: Sleeper,
    /// Bytes before each frame.
    header: usize,
}

impl Watched {
    /// Resolves when somebody talks to the machine: from where.
    async fn somebody_talks(&self) -> io::Result<IpAddr> {
        let mut buffer = vec![0; FRAME];
        loop {
            self.frames.readable().await?;
            let read = match self.frames.try_read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                read => read?,
            };
            let frame = &buffer[..read];
            match self.sleeper.meaning(frame.get(self.header..).unwrap_or_default()) {
                Meaning::Nothing => {}
                Meaning::Wake(from) => return Ok(from),
                Meaning::Answer(answer) => {
                    let answer = [vec![0; self.header], answer].concat();
                    // Who asked asks again.
                    let _ = rustix::io::write(&self.tap, &answer);
                }
            }
        }
    }
}

impl Monitor {
    /// Waits, without a hypervisor, until somebody comes.
    pub(super) async fn sleep(
        &mut self,
        plan: &Plan,
        kept: &Kept,
        listener: Arc<UnixListener>,
        inbox: &mut Inbox,
    ) -> Woken {
        let state = &mut self.machine.state;
        state.idle_since = Some(Timestamp::now());
        state.hypervisor = None;
        state.rootfs = None;
        self.log.note(Source::Monitor, "nobody has to do with it: it is asleep");
        if let Err(failure) = self.save() {
            self.log.note(Source::Monitor, &failure.to_string());
        }
        self.tell();
        let _server = AbortOnDrop(tokio::spawn(server::serve(listener, self.nobody())));
        let (talks, mut talk) = mpsc::channel(1);
        let watched = self.watched(plan, kept).into_iter();
        let _watches: Vec<AbortOnDrop> = watched
            .map(|watched| {
                let talks = talks.clone();
                AbortOnDrop(tokio::spawn(async move {
                    // A network that is lost wakes nobody; clients of the socket still do.
                    if let Ok(from) = watched.somebody_talks().await {
                        let _ = talks.send(from).await;
                    }
                }))
            })
            .collect();
        let activity = self.activity.clone();
        let why = loop {
            tokio::select! {
                () = activity.somebody_came() => break "a client came".to_owned(),
                Some(from) = talk.recv() => break format!("a packet came from {from}"),
                event = inbox.next() => {
                    let by_user = !matches!(event, Event::Terminate);
                    if self.without_guest(event, "the machine is asleep").is_break() {
                        return Woken::Ended { by_user };
                    }
                }
            }
        };
        self.log.note(Source::Monitor, &format!("it wakes: {why}"));
        Woken::Up
    }

    /// Keeps hold of the taps of a machine that packets are to wake.
    pub(super) fn keep_taps(&mut self, taps: &HashMap<String, OwnedFd>) {
        self.taps.clear();
        if self.machine.spec.idle_timeout_ms.is_some() {
            let copy = |(interface, tap): (&String, &OwnedFd)| Some((interface.clone(), tap.try_clone().ok()?));
            self.taps = taps.iter().filter_map(copy).collect();
        }
    }

    fn watched(&self, plan: &Plan, kept: &Kept) -> Vec<Watched> {
        let watch = |(interface, tap): &(String, OwnedFd)| {
            let attachment = plan.attachments().iter().find(|a| a.interface == *interface)?;
            let watch = || -> io::Result<Watched> {
                let tap = tap.try_clone()?;
                Ok(Watched {
                    header: zmachine_sys::tap::header_bytes(&tap)?,
                    frames: Receiver::from_owned_fd_unchecked(tap.try_clone()?)?,
                    tap,
                    sleeper: Sleeper::of(attachment).ok_or(io::ErrorKind::InvalidData)?,
                })
            };
            let text = |e: &io::Error| format!("packets from {} do not wake it: {e}", attachment.network);
            watch().inspect_err(|e| self.log.note(Source::Monitor, &text(e))).ok()
        };
        kept.taps.iter().filter_map(watch).collect()
    }

    /// What clients find of a machine that has no guest now.
    pub(super) fn nobody(&self) -> Shared {
        // Clients that attach now are let go at once: there is nothing to attach to.
        let (entry, _) = entry::new();
        let (console, _) = console::new();
        Shared {
            attachable: Attachable::Entrypoint(entry),
            console,
            session: watch::channel(None).1,
            events: self.events.clone(),
            paused: self.paused.subscribe(),
            exec_base: Arc::new(Process::new(Vec::<String>::new())),
            execs: super::execs::Execs::default(),
            relays: self.relays.clone(),
            activity: self.activity.clone(),
        }
    }
}
