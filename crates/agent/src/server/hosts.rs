//! The hosts of a machine, one after the other, each with one connection.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::task::spawn_local;
use yamux::{Config, Connection, Mode};

use super::Agent;
use crate::host::Taken;
use crate::pollable::Pollable;
use crate::port::{Greeted, Port};
use crate::{console, host};

/// How long a machine waits for a host that takes over from one that is gone, before it stops.
const TAKEOVER: Duration = Duration::from_secs(5);

/// The same for a machine that was frozen: whoever copies it may be busy.
const FROZEN_TAKEOVER: Duration = Duration::from_secs(120);

/// Streams open at once; yamux gives up the connection beyond it.
const STREAMS: usize = 4096;

/// yamux's window of a stream in bytes (its specification's default); no more is granted, so memory stays bounded.
const WINDOW: usize = 256 * 1024;

/// The largest piece yamux cuts a write into.
const PIECE: usize = 32 * 1024;

impl Agent {
    /// Serves one host after the other, until none comes in time.
    pub(super) async fn hosts(self: &Rc<Self>, mut port: Rc<Pollable>) {
        let mut first = Vec::new();
        loop {
            let greeted: Rc<RefCell<Greeted>> = Rc::default();
            let served = self.port(&port, &greeted, first);
            let old = self.connection(served, &greeted).await;
            // What is no frame of the old connection may be the beginning of a greeting.
            if self.is_frozen.get() {
                let greeted = greeted.take();
                let taken = tokio::time::timeout(self.takeover(), host::taken_over(&port, greeted)).await;
                if let Ok(Ok(taken)) = taken {
                    first = self.taken(&port, taken).await;
                    // Not before: it takes a while to end it, and the host waits.
                    drop(old);
                    continue;
                }
            }
            drop(old);
            // Closed before it is opened again: it can be open once.
            drop(port);
            port = match tokio::time::timeout(self.takeover(), host::next_that_takes_over()).await {
                Ok(Ok((next, taken))) => {
                    first = self.taken(&next, taken).await;
                    Rc::new(next)
                }
                Ok(Err(_)) | Err(_) => return,
            };
            console::info("another host takes over");
        }
    }

    /// Does what a host wants before its connection begins, of which it returns what has come.
    async fn taken(self: &Rc<Self>, port: &Pollable, taken: Taken) -> Vec<u8> {
        if let Some((greeting, thaw)) = taken.thaw {
            self.thaw_first(port, greeting, &thaw).await;
        }
        taken.first
    }

    /// `first`: what it has read already.
    pub(super) fn port(&self, port: &Rc<Pollable>, greeted: &Rc<RefCell<Greeted>>, first: Vec<u8>) -> Port {
        Port::new(Rc::clone(port), first, Rc::clone(&self.is_frozen), Rc::clone(greeted))
    }

    /// How long the next host may take when this one is gone.
    fn takeover(&self) -> Duration {
        if self.is_frozen.get() {
            FROZEN_TAKEOVER
        } else {
            TAKEOVER
        }
    }

    /// Accepts streams until the host is gone, or that of a copy has greeted. The connection is dead then.
    pub(super) async fn connection(self: &Rc<Self>, port: Port, greeted: &RefCell<Greeted>) -> Connection<Port> {
        let mut config = Config::default();
        config.set_max_connection_receive_window(Some(STREAMS * WINDOW));
        config.set_max_num_streams(STREAMS);
        config.set_split_send_size(PIECE);
        let mut connection = Connection::new(port, config, Mode::Server);
        let reason = loop {
            let next = poll_fn(|cx| match connection.poll_next_inbound(cx) {
                _ if greeted.borrow().first.is_some() => Poll::Ready(None),
                next => next,
            });
            match next.await {
                Some(Ok(stream)) => drop(spawn_local(Rc::clone(self).stream(stream))),
                Some(Err(error)) => break error.to_string(),
                None => break "closed".into(),
            }
        };
        // A copy says nothing: its host knows, and whoever it is for waits.
        if !self.is_frozen.get() {
            console::info(&format!("the host is gone: {reason}"));
        }
        connection
    }
}
