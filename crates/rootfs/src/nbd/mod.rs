//! The disk by the NBD protocol, over the listening unix socket.
//!
//! The hypervisor is the client and has the virtio device itself, so this process sees nothing of the guest's memory. That is
//! what lets a machine be saved and restored with memory that is private to each copy, and lets one server serve any number of
//! machines.
//!
//! Specification: the NBD project's `doc/proto.md`; what is used of it is the fixed newstyle negotiation and simple
//! replies. A client whose server was killed connects to the next one and asks again for what was not answered.
//!
//! # Invariants
//! Every request is answered with exactly the bytes that were asked for or with an error; answers come in any order. A client that
//! breaks the protocol loses its connection. No request allocates more than [`LONGEST`], and at most 16 of a connection wait
//! for blocks at a time.

mod negotiation;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use vm_memory::VolatileSlice;

use crate::disk::{Outcome, Pinned};
use crate::erofs::Extent;
use crate::report::Reporter;
use crate::server::queue::Device;
use wire::{Command, Request, read_exactly, write_all};

/// The longest read in bytes; the client is told.
pub const LONGEST: u32 = 2 << 20;
/// Requests of one connection that wait for blocks at a time, each in a thread; QEMU has 16 under way at most.
const WAITING: usize = 16;
/// Clients at a time: a machine and its forks.
const CLIENTS: usize = 1024;

const EIO: u32 = 5;
const EINVAL: u32 = 22;
const EPERM: u32 = 1;

/// Serves `device` to every client of `listener`; returns only when the socket fails.
///
/// # Errors
/// When the socket fails.
pub fn serve(listener: &UnixListener, device: &Arc<Device>, reporter: &Arc<Reporter>) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let (client, _) = listener.accept()?;
        if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (device, reporter, count) = (Arc::clone(device), Arc::clone(reporter), Arc::clone(&clients));
        let thread = thread::Builder::new().name("nbd".into()).stack_size(256 * 1024);
        let started = thread.spawn(move || {
            let connection = Arc::new(Connection {
                socket: OwnedFd::from(client),
                writing: Mutex::new(()),
                device,
                reporter,
                waiting: AtomicUsize::new(0),
            });
            if let Err(error) = connection.run() {
                connection.reporter.connection_ended(&error.to_string());
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
        if started.is_err() {
            clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// One client.
struct Connection {
    socket: OwnedFd,
    /// Held while an answer is written.
    writing: Mutex<()>,
    device: Arc<Device>,
    reporter: Arc<Reporter>,
    /// Threads that wait for blocks.
    waiting: AtomicUsize,
}

impl Connection {
    /// From the first byte to the client's farewell.
    fn run(self: &Arc<Self>) -> io::Result<()> {
        if !negotiation::negotiate(&self.socket, self.device.disk.capacity_sectors() * 512)? {
            return Ok(());
        }
        let mut buffer = Vec::new();
        while let Some(request) = Request::read(&self.socket)? {
            match request.command {
                Command::Read => self.read(&request, &mut buffer)?,
                Command::Disconnect => return Ok(()),
                Command::Flush => self.answer(&request, 0, &[])?,
                Command::Write => {
                    // What it wanted to write follows.
                    wire::skip(&self.socket, request.length)?;
                    self.fail(&request, EPERM)?;
                }
                Command::Other => self.fail(&request, EINVAL)?,
            }
        }
        Ok(())
    }

    /// Answers at once when all of it is on this host, so that nothing is paid for threads then.
    fn read(self: &Arc<Self>, request: &Request, buffer: &mut Vec<u8>) -> io::Result<()> {
        let end = request.offset.checked_add(u64::from(request.length));
        let is_within = end.is_some_and(|end| end <= self.device.disk.capacity_sectors() * 512);
        if request.length == 0 || request.length > LONGEST || !is_within {
            return self.fail(request, EINVAL);
        }
        let pinned = Pinned::new();
        match self.read_local(request, buffer, &pinned) {
            Outcome::Done => self.succeed(request, buffer),
            Outcome::Failed => self.fail(request, EIO),
            Outcome::Missing { extent, is_damaged } => self.read_later(request, extent, is_damaged),
        }
    }

    fn read_local(&self, request: &Request, buffer: &mut Vec<u8>, pinned: &Pinned) -> Outcome {
        buffer.resize(request.length as usize, 0);
        let target = [VolatileSlice::from(buffer.as_mut_slice())];
        self.device.disk.read_local(request.offset, &target, pinned)
    }

    /// Fetches what is missing in a thread of its own, unless there are enough of them.
    fn read_later(self: &Arc<Self>, request: &Request, extent: Extent, is_damaged: bool) -> io::Result<()> {
        let own = Arc::clone(self);
        let request = request.clone();
        if self.waiting.fetch_add(1, Ordering::AcqRel) < WAITING {
            let thread = thread::Builder::new().name("nbd-read".into()).stack_size(256 * 1024);
            let later = request.clone();
            let started = thread.spawn(move || {
                // The reader of the connection sees that the client is gone.
                let _ = own.read_with(&later, extent, is_damaged);
                own.waiting.fetch_sub(1, Ordering::AcqRel);
            });
            if started.is_ok() {
                return Ok(());
            }
        }
        let done = self.read_with(&request, extent, is_damaged);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        done
    }

    /// Fetches block after block until the request can be answered.
    fn read_with(&self, request: &Request, extent: Extent, is_damaged: bool) -> io::Result<()> {
        let mut missing = (extent, is_damaged);
        let (mut pinned, mut tries, mut buffer) = (Pinned::new(), Vec::new(), Vec::new());
        loop {
            self.device
                .fetch(&self.reporter, (&missing.0, missing.1), &mut pinned, &mut tries);
            match self.read_local(request, &mut buffer, &pinned) {
                Outcome::Done => return self.succeed(request, &buffer),
                Outcome::Failed => return self.fail(request, EIO),
                Outcome::Missing { extent, is_damaged } => missing = (extent, is_damaged),
            }
        }
    }

    fn succeed(&self, request: &Request, data: &[u8]) -> io::Result<()> {
        self.device.counters.request(false, data.len() as u64);
        self.answer(request, 0, data)
    }

    fn fail(&self, request: &Request, errno: u32) -> io::Result<()> {
        self.device.counters.request(true, 0);
        self.answer(request, errno, &[])
    }

    fn answer(&self, request: &Request, errno: u32, data: &[u8]) -> io::Result<()> {
        let header = request.reply(errno);
        {
            let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            write_all(&self.socket, &header, data)?;
        }
        self.reporter.touch();
        Ok(())
    }
}

/// Takes `length` bytes from the front of what the client sends.
fn take(socket: &OwnedFd, length: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length as usize];
    read_exactly(socket, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
