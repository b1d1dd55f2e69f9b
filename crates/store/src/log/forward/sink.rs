//! One connection to a receiver.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::OFlags;
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use tungstenite::{Message, WebSocket};
use zmachine_spec::LogTarget;
use zmachine_sys::socket::untaken_bytes;

use super::Sender;
use crate::log::{Entry, Position, Source};

/// How long a receiver may take to accept a connection, or the next bytes.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes that are collected before they are sent.
const BATCH: usize = 64 * 1024;

/// Longest datagram: what every syslog takes over UDP is less, what most take is this.
const DATAGRAM_MAX: usize = 8 * 1024;

#[derive(Debug)]
enum Wire {
    Tcp(Paced<TcpStream>),
    Unix(Paced<UnixStream>),
    File(File),
    Udp(UdpSocket),
    Local(UnixDatagram),
    Websocket(Box<WebSocket<Paced<TcpStream>>>),
}

/// A stream whose receiver has so long for each batch as a whole: one that takes a byte now and then is as good as none.
#[derive(Debug)]
struct Paced<S> {
    stream: S,
    until: Instant,
}

impl<S> Paced<S> {
    fn new(stream: S) -> Paced<S> {
        let until = Instant::now() + TIMEOUT;
        Paced { stream, until }
    }

    /// A batch begins.
    fn renew(&mut self) {
        self.until = Instant::now() + TIMEOUT;
    }

    fn check(&self) -> io::Result<()> {
        match Instant::now() < self.until {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the receiver takes too little")),
        }
    }
}

impl<S: Read> Read for Paced<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(buffer)
    }
}

impl<S: Write> Write for Paced<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A connection, and how far its receiver came.
#[derive(Debug)]
pub(super) struct Sink {
    wire: Wire,
    batch: Vec<u8>,
    /// Bytes handed to the kernel.
    sent: u64,
    /// The position behind each batch, and the bytes sent by then.
    unacknowledged: VecDeque<(u64, Position)>,
    last: Option<Position>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: Timestamp,
    machine: &'a str,
    id: &'a str,
    source: &'a str,
    partial: bool,
    text: std::borrow::Cow<'a, str>,
}

impl Sink {
    pub(super) fn connect(target: &LogTarget) -> io::Result<Sink> {
        let wire = match target {
            LogTarget::Tcp(address) => Wire::Tcp(Paced::new(tcp(address)?)),
            LogTarget::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_write_timeout(Some(TIMEOUT))?;
                Wire::Unix(Paced::new(stream))
            }
            LogTarget::File(path) => Wire::File(open_file(path)?),
            LogTarget::SyslogUdp(address) => {
                let to = resolve(address)?;
                let local = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(local)?;
                socket.connect(to)?;
                Wire::Udp(socket)
            }
            LogTarget::SyslogLocal(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_write_timeout(Some(TIMEOUT))?;
                Wire::Local(socket)
            }
            LogTarget::Websocket { address, url } => {
                let stream = Paced::new(tcp(address)?);
                let (socket, _) =
                    tungstenite::client(url.as_str(), stream).map_err(|e| io::Error::other(e.to_string()))?;
                Wire::Websocket(Box::new(socket))
            }
        };
        Ok(Sink {
            wire,
            batch: Vec::new(),
            sent: 0,
            unacknowledged: VecDeque::new(),
            last: None,
        })
    }

    /// Sends one entry, or collects it; `position` is behind it.
    pub(super) fn send(&mut self, sender: &Sender, entry: &Entry, position: Position) -> io::Result<()> {
        self.last = Some(position);
        let line = Line {
            time: entry.at,
            machine: &sender.name,
            id: &sender.id,
            source: entry.source.name(),
            partial: !entry.ends_line,
            text: String::from_utf8_lossy(&entry.bytes),
        };
        match &mut self.wire {
            Wire::Websocket(socket) if self.batch.is_empty() => socket.get_mut().renew(),
            _ => {}
        }
        match &mut self.wire {
            Wire::Udp(socket) => {
                socket.send(&syslog(sender, entry, true))?;
            }
            Wire::Local(socket) => {
                socket.send(&syslog(sender, entry, false))?;
            }
            Wire::Websocket(socket) => {
                let text = serde_json::to_string(&line)?;
                self.sent += text.len() as u64;
                self.batch.push(0);
                socket
                    .write(Message::text(text))
                    .map_err(|e| io::Error::other(e.to_string()))?;
            }
            Wire::Tcp(_) | Wire::Unix(_) | Wire::File(_) => {
                serde_json::to_writer(&mut self.batch, &line)?;
                self.batch.push(b'\n');
            }
        }
        Ok(())
    }

    pub(super) fn is_batch_full(&self) -> bool {
        match &self.wire {
            Wire::Websocket(_) => self.batch.len() >= 512,
            _ => self.batch.len() >= BATCH,
        }
    }

    /// Hands what was collected to the kernel.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.is_closed_by_peer() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        let batch = &self.batch;
        match &mut self.wire {
            Wire::Tcp(stream) => {
                stream.renew();
                stream.write_all(batch)?;
            }
            Wire::Unix(stream) => {
                stream.renew();
                stream.write_all(batch)?;
            }
            Wire::File(file) => file.write_all(batch)?,
            Wire::Websocket(socket) if !batch.is_empty() => {
                socket.flush().map_err(|e| io::Error::other(e.to_string()))?;
            }
            Wire::Websocket(_) | Wire::Udp(_) | Wire::Local(_) => {}
        }
        if !matches!(self.wire, Wire::Websocket(_)) {
            self.sent += self.batch.len() as u64;
        }
        if let Some(position) = self.last.take() {
            self.unacknowledged.push_back((self.sent, position));
        }
        self.batch.clear();
        Ok(())
    }

    /// The furthest position whose entries the receiver's side has taken, when there is a new one.
    pub(super) fn taken(&mut self) -> io::Result<Option<Position>> {
        let untaken = match &self.wire {
            Wire::Tcp(Paced { stream, .. }) => pending(stream, stream.take_error()?)?,
            Wire::Unix(Paced { stream, .. }) => pending(stream, stream.take_error()?)?,
            Wire::Websocket(socket) => {
                let stream = &socket.get_ref().stream;
                pending(stream, stream.take_error()?)?
            }
            Wire::File(_) | Wire::Udp(_) | Wire::Local(_) => 0,
        };
        let mut position = None;
        // A unix socket counts its buffers, which are more than their bytes: nothing is taken too early by that.
        while let Some((sent, at)) = self.unacknowledged.front() {
            if sent + untaken > self.sent && untaken > 0 {
                break;
            }
            position = Some(*at);
            self.unacknowledged.pop_front();
        }
        Ok(position)
    }

    /// Nothing is on its way.
    pub(super) fn is_all_taken(&self) -> bool {
        self.unacknowledged.is_empty()
    }

    /// Ends the connection as its kind does.
    pub(super) fn close(&mut self) {
        if let Wire::Websocket(socket) = &mut self.wire {
            socket.get_mut().renew();
            let _ = socket.close(None);
            let _ = socket.flush();
        }
    }

    /// A receiver that went away tells so by the end of its stream, long before a write fails.
    fn is_closed_by_peer(&self) -> bool {
        let socket: BorrowedFd<'_> = match &self.wire {
            Wire::Tcp(paced) => paced.stream.as_fd(),
            Wire::Unix(paced) => paced.stream.as_fd(),
            Wire::Websocket(socket) => socket.get_ref().stream.as_fd(),
            Wire::File(_) | Wire::Udp(_) | Wire::Local(_) => return false,
        };
        let mut byte = [0];
        matches!(
            recv(socket, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT),
            Ok((0, _))
        )
    }
}

/// A file that a log is appended to. Nothing else may hold the log up: a FIFO waits for its reader.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let file = options.custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

fn pending(socket: impl AsFd, error: Option<io::Error>) -> io::Result<u64> {
    match error {
        Some(error) => Err(error),
        None => untaken_bytes(socket),
    }
}

fn resolve(address: &str) -> io::Result<std::net::SocketAddr> {
    let mut found = address.to_socket_addrs()?;
    found
        .next()
        .ok_or_else(|| io::Error::other(format!("{address} has no address")))
}

fn tcp(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&resolve(address)?, TIMEOUT)?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One syslog message: RFC 5424 for the network, the form of `/dev/log` otherwise. Facility daemon (3); severity 3
/// (error) for standard error, 6 (informational) for standard output, 5 (notice) for all else.
fn syslog(sender: &Sender, entry: &Entry, is_rfc5424: bool) -> Vec<u8> {
    let severity = match entry.source {
        Source::Stderr => 3,
        Source::Stdout => 6,
        _ => 5,
    };
    let priority = 3 * 8 + severity;
    let (name, id, source) = (&sender.name, &sender.id, entry.source.name());
    let mut message = match is_rfc5424 {
        true => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("<{priority}>1 {:.6} {host} {name} {id} {source} - ", entry.at)
        }
        false => format!("<{priority}>zmachine-{name}[{id}]: "),
    }
    .into_bytes();
    message.extend_from_slice(&entry.bytes);
    message.truncate(DATAGRAM_MAX);
    message
}
