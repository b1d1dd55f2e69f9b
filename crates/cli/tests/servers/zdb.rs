//! A 0-db with namespaces, as far as flists need one: no registry has the real server. What it answers is what version 2 of
//! that answers: `SELECT` of a namespace that is not there, of a private one without its password or with a wrong one, `SET` of
//! a value that is there (nothing) or new (the key), writing what is public to readers alone.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A namespace.
#[derive(Default)]
pub(crate) struct Namespace {
    /// Who may write, and read unless it is public.
    pub(crate) password: Option<&'static str>,
    /// Whether those without the password may read.
    pub(crate) is_public: bool,
    values: HashMap<Vec<u8>, Vec<u8>>,
}

impl Namespace {
    pub(crate) fn of(password: &'static str, is_public: bool) -> Namespace {
        Namespace {
            password: Some(password),
            is_public,
            values: HashMap::new(),
        }
    }
}

type Namespaces = Arc<Mutex<HashMap<&'static str, Namespace>>>;

/// The server; its threads end with the test program.
pub(crate) struct Zdb {
    port: u16,
    namespaces: Namespaces,
}

impl Zdb {
    /// A server with the namespace `default` and these.
    pub(crate) fn start(namespaces: impl IntoIterator<Item = (&'static str, Namespace)>) -> Zdb {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let default = ("default", Namespace::default());
        let namespaces: Namespaces = Arc::new(Mutex::new(namespaces.into_iter().chain([default]).collect()));
        let shared = Arc::clone(&namespaces);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let namespaces = Arc::clone(&shared);
                // A client that hangs up ends its connection.
                std::thread::spawn(move || serve(&stream, &namespaces).err());
            }
        });
        Zdb { port, namespaces }
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many values a namespace has.
    pub(crate) fn len(&self, namespace: &str) -> usize {
        self.namespaces.lock().unwrap()[namespace].values.len()
    }
}

fn serve(stream: &TcpStream, namespaces: &Namespaces) -> std::io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    let (mut current, mut is_writable) = ("default", true);
    while let Some(words) = command(&mut reader)? {
        let mut namespaces = namespaces.lock().unwrap();
        let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
        let answer = match words.as_slice() {
            [b"SELECT", name, password @ ..] => {
                let found = namespaces.iter().find(|(key, _)| key.as_bytes() == *name);
                match found.map(|(key, space)| (*key, space.password, space.is_public)) {
                    None => b"-Namespace not found\r\n".to_vec(),
                    Some((_, Some(own), _)) if password.first().is_some_and(|given| *given != own.as_bytes()) => {
                        b"-Access denied\r\n".to_vec()
                    }
                    Some((_, Some(_), false)) if password.is_empty() => {
                        b"-Namespace protected and private\r\n".to_vec()
                    }
                    Some((key, own, _)) => {
                        (current, is_writable) = (key, own.is_none() || !password.is_empty());
                        b"+OK\r\n".to_vec()
                    }
                }
            }
            [b"EXISTS", key] => {
                format!(":{}\r\n", u8::from(namespaces[current].values.contains_key(*key))).into_bytes()
            }
            [b"GET", key] => bulk(namespaces[current].values.get(*key).map(Vec::as_slice)),
            [b"SET", ..] if !is_writable => b"-Namespace is in read-only mode\r\n".to_vec(),
            [b"SET", key, value] => {
                let values = &mut namespaces.get_mut(current).unwrap().values;
                let before = values.insert(key.to_vec(), value.to_vec());
                bulk(Some(*key).filter(|_| before.as_deref() != Some(*value)))
            }
            _ => b"-Command not supported\r\n".to_vec(),
        };
        writer.write_all(&answer)?;
    }
    Ok(())
}

fn bulk(value: Option<&[u8]>) -> Vec<u8> {
    match value {
        None => b"$-1\r\n".to_vec(),
        Some(value) => [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat(),
    }
}

/// The next command; `None` at the end of the connection.
fn command(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<Vec<u8>>>> {
    let Some(count) = number(reader)? else { return Ok(None) };
    let mut words = Vec::new();
    for _ in 0..count {
        let length = number(reader)?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let mut word = vec![0; length + 2];
        reader.read_exact(&mut word)?;
        word.truncate(length);
        words.push(word);
    }
    Ok(Some(words))
}

/// The number behind the mark of a line.
fn number(reader: &mut impl BufRead) -> std::io::Result<Option<usize>> {
    let mut line = String::new();
    if reader.take(64).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let number = line.trim_end().get(1..).and_then(|digits| digits.parse().ok());
    Ok(Some(number.ok_or(std::io::ErrorKind::InvalidData)?))
}
