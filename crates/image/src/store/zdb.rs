//! `zdb://[[user]:password@]host[:9900][/namespace]` and `zdb:///unix/socket`: a 0-db, spoken to in the protocol of Redis.
//!
//! Blocks are kept under the raw bytes of their id. Each new connection first selects the namespace, with the password when
//! there is one; without a namespace (or with `default`, or with a mere `/` behind the host) nothing is selected and a
//! password goes to `AUTH`. The user name says nothing to a 0-db. Connections are kept between requests; one that turns
//! out to be dead is replaced once.
//!
//! Answers are bounded: no line of more than [`LINE_BYTES`], no value of more than [`MAX_SEALED_LEN`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use zmachine_flist::BlockId;

use super::url::percent_decode;
use super::{BlockStore, MAX_SEALED_LEN, StoreError, Timeouts, redact};

/// The port of a URL that names none.
const PORT: u16 = 9900;

/// Longest line of an answer, in bytes: only errors are longer than a number.
const LINE_BYTES: u64 = 4096;

/// Connections kept between requests.
const IDLE_CONNECTIONS: usize = 16;

/// A 0-db.
pub struct ZdbStore {
    place: Place,
    namespace: Option<String>,
    password: Option<String>,
    description: String,
    timeouts: Timeouts,
    idle: Mutex<Vec<Connection>>,
}

#[derive(Debug, Clone)]
enum Place {
    Host(String, u16),
    Socket(PathBuf),
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// One connection whose every read and write ends at a deadline.
struct Wire {
    stream: Stream,
    deadline: Instant,
}

type Connection = BufReader<Wire>;

/// One answer.
enum Reply {
    Nil,
    Integer(i64),
    Bytes(Vec<u8>),
    /// `+OK`, or anything else that is fine.
    Fine,
    Refusal(String),
    TooLong,
}

impl Wire {
    /// Time until the deadline; none left is a timeout.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(left)
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = Some(self.left()?);
        match &mut self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(bytes)),
            Stream::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(bytes)),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = Some(self.left()?);
        match &mut self.stream {
            Stream::Tcp(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
            Stream::Unix(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl ZdbStore {
    /// The store at `url`; nothing is connected.
    ///
    /// # Errors
    /// [`StoreError::Malformed`] when the URL names neither a host nor a socket.
    pub fn new(url: &str, timeouts: Timeouts) -> Result<ZdbStore, StoreError> {
        let description = redact(url).trim_end_matches('/').to_owned();
        let malformed = |what: &str| StoreError::Malformed {
            url: description.clone(),
            what: what.to_owned(),
        };
        let bare = url.split(['?', '#']).next().unwrap_or_default();
        let rest = bare
            .strip_prefix("zdb://")
            .ok_or_else(|| malformed("its scheme is not zdb"))?;
        let (place, namespace, password) = if rest.starts_with('/') {
            if rest == "/" {
                return Err(malformed("it names neither a host nor a socket"));
            }
            (Place::Socket(rest.into()), None, None)
        } else {
            let (authority, namespace) = rest.split_once('/').unwrap_or((rest, ""));
            let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
            let password = user.split_once(':').map(|(_, password)| password);
            let decode = |text: &str| percent_decode(text).ok_or_else(|| malformed("it has a broken percent sign"));
            let namespace = Some(decode(namespace)?).filter(|name| !name.is_empty() && name != "default");
            let password = password.filter(|text| !text.is_empty()).map(decode).transpose()?;
            let (host, port) = host_and_port(host).ok_or_else(|| malformed("its host or port is broken"))?;
            (Place::Host(host, port), namespace, password)
        };
        Ok(ZdbStore {
            place,
            namespace,
            password,
            description,
            timeouts,
            idle: Mutex::default(),
        })
    }

    fn unavailable(&self, error: &io::Error) -> StoreError {
        let what = match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
            io::ErrorKind::ConnectionRefused => "the connection was refused".to_owned(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                "the connection broke off".to_owned()
            }
            _ => error.to_string(),
        };
        StoreError::Unavailable {
            store: self.describe(),
            what,
        }
    }

    fn refused(&self, what: String) -> StoreError {
        StoreError::Refused {
            store: self.describe(),
            what,
        }
    }

    fn connect(&self, deadline: Instant) -> Result<Connection, StoreError> {
        let until = deadline.min(Instant::now() + self.timeouts.connect);
        let stream = self.stream(until).map_err(|error| self.unavailable(&error))?;
        let mut connection = BufReader::new(Wire { stream, deadline });
        let (namespace, password) = (self.namespace.as_deref(), self.password.as_deref());
        let words: Vec<&[u8]> = match (namespace, password) {
            (None, None) => return Ok(connection),
            (None, Some(password)) => vec![b"AUTH", password.as_bytes()],
            (Some(namespace), None) => vec![b"SELECT", namespace.as_bytes()],
            (Some(namespace), Some(password)) => vec![b"SELECT", namespace.as_bytes(), password.as_bytes()],
        };
        match ask(&mut connection, &words).map_err(|error| self.unavailable(&error))? {
            Reply::Fine => Ok(connection),
            Reply::Refusal(what) => Err(self.refused(what)),
            _ => Err(self.refused("it gave an unexpected answer to the login".to_owned())),
        }
    }

    fn stream(&self, until: Instant) -> io::Result<Stream> {
        match &self.place {
            Place::Socket(path) => UnixStream::connect(path).map(Stream::Unix),
            Place::Host(host, port) => {
                let mut failure = io::Error::other("the host name is unknown");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    match TcpStream::connect_timeout(&address, left) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Stream::Tcp(stream));
                        }
                        Err(error) => failure = error,
                    }
                }
                Err(failure)
            }
        }
    }

    /// One command and its answer, on a kept connection or a new one.
    fn command(&self, words: &[&[u8]], deadline: Option<Instant>) -> Result<Reply, StoreError> {
        let latest = Instant::now() + self.timeouts.request;
        let deadline = deadline.map_or(latest, |deadline| deadline.min(latest));
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(mut connection) = kept {
            connection.get_mut().deadline = deadline;
            if let Ok(reply) = ask(&mut connection, words) {
                return Ok(self.keep(connection, reply));
            }
        }
        let mut connection = self.connect(deadline)?;
        let reply = ask(&mut connection, words).map_err(|error| self.unavailable(&error))?;
        Ok(self.keep(connection, reply))
    }

    /// Keeps a connection whose answer was read to its end.
    fn keep(&self, connection: Connection, reply: Reply) -> Reply {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(reply, Reply::TooLong) && idle.len() < IDLE_CONNECTIONS {
            idle.push(connection);
        }
        reply
    }

    fn fetch(&self, id: &BlockId, deadline: Option<Instant>) -> Result<Vec<u8>, StoreError> {
        match self.command(&[b"GET", id.0.as_bytes()], deadline)? {
            Reply::Bytes(bytes) if !bytes.is_empty() => Ok(bytes),
            Reply::Nil | Reply::Bytes(_) => Err(StoreError::NotFound {
                store: self.describe(),
                id: id.to_string(),
            }),
            Reply::TooLong => Err(StoreError::TooLong {
                store: self.describe(),
                id: id.to_string(),
                limit: MAX_SEALED_LEN,
            }),
            Reply::Refusal(what) => Err(self.refused(what)),
            Reply::Integer(_) | Reply::Fine => Err(self.refused("it answered with something else".to_owned())),
        }
    }
}

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']')?;
            (host, behind.strip_prefix(':'))
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

/// Sends a command and reads its answer.
fn ask(connection: &mut Connection, words: &[&[u8]]) -> io::Result<Reply> {
    let mut request = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        request.extend_from_slice(word);
        request.extend_from_slice(b"\r\n");
    }
    connection.get_mut().write_all(&request)?;
    let mut line = Vec::new();
    connection.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "it does not speak the protocol of a 0-db");
    let Some(line) = line.strip_suffix(b"\r\n") else {
        let closed = line.is_empty();
        return Err(if closed {
            io::ErrorKind::UnexpectedEof.into()
        } else {
            broken()
        });
    };
    let (kind, text) = line.split_first().ok_or_else(broken)?;
    let text = String::from_utf8_lossy(text).into_owned();
    Ok(match kind {
        b'+' => Reply::Fine,
        b'-' => Reply::Refusal(text.trim_start_matches("ERR ").to_owned()),
        b':' => Reply::Integer(text.parse().map_err(|_| broken())?),
        b'$' => match text.parse::<i64>().map_err(|_| broken())? {
            -1 => Reply::Nil,
            length if length < 0 => return Err(broken()),
            length if length > MAX_SEALED_LEN as i64 => Reply::TooLong,
            length => {
                let mut bytes = vec![0; length as usize + 2];
                connection.read_exact(&mut bytes)?;
                bytes.truncate(length as usize);
                Reply::Bytes(bytes)
            }
        },
        _ => return Err(broken()),
    })
}

impl BlockStore for ZdbStore {
    fn get(&self, id: &BlockId) -> Result<Vec<u8>, StoreError> {
        self.fetch(id, None)
    }

    fn get_before(&self, id: &BlockId, deadline: Instant) -> Result<Vec<u8>, StoreError> {
        self.fetch(id, Some(deadline))
    }

    fn has(&self, id: &BlockId) -> Result<bool, StoreError> {
        match self.command(&[b"EXISTS", id.0.as_bytes()], None)? {
            Reply::Integer(count) => Ok(count > 0),
            Reply::Refusal(what) => Err(self.refused(what)),
            _ => Err(self.refused("it answered with something else".to_owned())),
        }
    }

    fn put(&self, id: &BlockId, sealed: &[u8]) -> Result<bool, StoreError> {
        if self.has(id)? {
            return Ok(false);
        }
        match self.command(&[b"SET", id.0.as_bytes(), sealed], None)? {
            // A 0-db answers with the key, or with nothing when the same value was there; a Redis with OK.
            Reply::Bytes(_) | Reply::Fine | Reply::Integer(_) => Ok(true),
            Reply::Nil => Ok(false),
            Reply::Refusal(what) => Err(self.refused(what)),
            Reply::TooLong => Err(self.refused("it answered with something else".to_owned())),
        }
    }

    fn describe(&self) -> String {
        self.description.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<(String, Option<String>, Option<String>), StoreError> {
        let store = ZdbStore::new(url, Timeouts::default())?;
        let place = match store.place {
            Place::Host(host, port) => format!("{host} {port}"),
            Place::Socket(path) => path.display().to_string(),
        };
        Ok((place, store.namespace, store.password))
    }

    #[test]
    fn every_form_of_url_is_understood() {
        let some = |text: &str| Some(text.to_owned());
        for (url, place, namespace, password) in [
            ("zdb://h", "h 9900", None, None),
            ("zdb://h:1/", "h 1", None, None),
            ("zdb://h:1/default", "h 1", None, None),
            ("zdb://u:p%40@h:1/n", "h 1", some("n"), some("p@")),
            ("zdb://:p@[::1]:2/n%20s", "::1 2", some("n s"), some("p")),
            ("zdb://[::1]", "::1 9900", None, None),
            ("zdb:///run/zdb.sock", "/run/zdb.sock", None, None),
        ] {
            assert_eq!(parsed(url).unwrap(), (place.to_owned(), namespace, password), "{url}");
        }
        for url in ["zdb://", "zdb:///", "zdb://h:x", "zdb://h/%zz", "zdb://:1"] {
            assert!(parsed(url).is_err(), "{url}");
        }
    }
}
